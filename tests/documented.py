"""The commands of the documentation: which there are, and which of them no test can run as they stand there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

TREE = Path(__file__).parents[1]
PAGES = {
    path.stem: path
    for path in (TREE / "README.md", TREE / "CONTRIBUTING.md", *sorted(TREE.glob("docs/*.md")))
}


class Command(NamedTuple):
    """A line after a prompt, without the comment behind it, and the lines that it prints there."""

    page: str
    line: str
    said: tuple[str, ...] = ()


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """The language and the text of each block."""
    yield from re.findall(r"^```(\S*)\n(.*?)^```$", PAGES[page].read_text(), re.DOTALL | re.M)


def commands(page: str) -> list[Command]:
    """Those of all ``console`` blocks of a page, in their order."""
    found: list[Command] = []
    for language, text in blocks(page):
        for line in text.splitlines() if language == "console" else ():
            if prompt := re.match(r"(dev)?\$ ", line):
                found.append(Command(page, re.sub(r"\s+# .*", "", line[prompt.end() :])))
            else:
                found[-1] = found[-1]._replace(said=(*found[-1].said, line))
    return found


def spans(page: str) -> Iterator[str]:
    """What stands between backquotes in the text."""
    text = re.sub(r"^```.*?^```$", "", PAGES[page].read_text(), flags=re.DOTALL | re.M)
    yield from re.findall(r"`([^`\n]+)`", text)


class Elsewhere(NamedTuple):
    """Why a command is not run as it stands, and what shows that it does what is said."""

    why: str
    shown_by: str


_CHECKS = Elsewhere("it is the checks themselves, for many minutes", ".github/workflows/ci.yml")
_PIP = Elsewhere("it fetches packages", "tests/unit/test_package.py")
_INSTALLED = Elsewhere("it changes what is installed", "tests/kernel/test_installed.py")
_DAEMON = Elsewhere("it wants the daemon, as it is installed", "tests/kernel/test_installed.py")
_DEB = Elsewhere("it changes what is installed", "tests/kernel/test_package.py")
_BUILDS = Elsewhere("it fetches packages, and builds", "tests/unit/test_package.py")
_TOP = Elsewhere("it wants a terminal", "tests/kernel/test_top.py")
_WEB = Elsewhere("it serves until it is interrupted", "tests/kernel/test_top.py")
_VAGRANT = Elsewhere("it wants Vagrant and libvirt", "scripts/_tests/vagrant.py")
_VM = Elsewhere("it boots the machine in which these tests run", "tests/vm/test_vm.py")

ELSEWHERE: Mapping[str, Elsewhere] = {
    r"pip install .*": _PIP,
    r"sudo (scripts/install|systemctl enable|adduser) .*|sudo scripts/install": _INSTALLED,
    r"systemctl (daemon-reload|reload .*)": _INSTALLED,
    r"agentres unit check": _DAEMON,
    r"agentres logs .*": Elsewhere("the journal is not everybody's to read", "tests/kernel/test_installed.py"),
    r"agentres run --io-write 20MB/s .*": _DAEMON,
    r"sudo apt install .*": _DEB,
    r"scripts/build-deb.*": _DEB,
    r"scripts/docs": Elsewhere("it builds", "tests/unit/test_docs.py"),
    r"scripts/build": _BUILDS,
    r"scripts/build --test": Elsewhere("it fetches packages", ".github/workflows/ci.yml"),
    r"scripts/(test|lint)\b.*": _CHECKS,
    r"scripts/vm\b.*": _VM,
    r"scripts/try\b.*": Elsewhere("it may boot a machine", "tests/kernel/test_example.py"),
    r"scripts/build-box\b.*": _VAGRANT,
    r"vagrant .*": _VAGRANT,
    r"agentres top": _TOP,
    r"agentres dashboard": _WEB,
    r"agentres history .* --plot .*": Elsewhere("it wants matplotlib", "tests/unit/test_history_cli.py"),
    r"agentres report .*\.html.*": Elsewhere("it wants matplotlib", "tests/unit/test_report_cli.py"),
    r"agentres metrics --listen .*": Elsewhere("it serves until it is interrupted", "tests/unit/test_metrics_cli.py"),
    r"agentres alerts list --follow": Elsewhere("it goes on until it is interrupted", "tests/kernel/test_breaches.py"),
    r"agentres run --events .*": Elsewhere("it wants jq", "tests/kernel/test_events.py"),
    r"agentres run --progress .*": Elsewhere("it draws on a terminal alone", "tests/kernel/test_terminal.py"),
    r"sudo agentres doctor --fix-net": Elsewhere("it changes interfaces", "tests/kernel/test_pacing.py"),
    r"journalctl .*": Elsewhere("an alert has to be there", "tests/unit/test_handlers_journal.py"),
}  # fmt: skip
"""Patterns of what no test runs as it stands; all other commands are run by ``tests/kernel/test_documented.py``."""


def parts(line: str) -> list[str]:
    """The commands that a line of the shell joins."""
    whole = r"""'[^']*'|"[^"]*"|[<>]&\d"""
    found = [""]
    for piece in re.findall(rf"{whole}|;|&&|\|\||[^;&<>'\"]+|.", line):
        if piece in (";", "&&", "||", "&"):
            found.append("")
        else:
            found[-1] += piece
    return [part for each in found if (part := each.strip())]


def elsewhere(part: str) -> Elsewhere | None:
    """What shows a command that is not run."""
    return next((how for what, how in ELSEWHERE.items() if re.fullmatch(what, part)), None)
