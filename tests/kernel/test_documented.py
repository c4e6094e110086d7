"""The commands of the documentation, page by page, as they stand there; those of the tutorial say what it says they do.

What cannot be run like that has its reason in ``tests/documented.py``.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import DEADLINE, ROOT, not_by_daemon

sys.path.insert(0, str(Path(__file__).parents[1]))

from documented import PAGES, commands, elsewhere, parts

pytestmark = [
    pytest.mark.skipif(ROOT, reason="the pages are an ordinary user's, with sudo where they say so"),
    not_by_daemon("the pages are of a host without one"),
]  # fmt: skip

MARK = "the-command-has-ended"
FILES = {
    "agent.py": "import sys, time\ntime.sleep(float(*sys.argv[1:] or ['0.2']))\n",
    "agent": "#!/bin/sh\nsleep 0.1\n",
    "Makefile": "test:\n\t@true\n",
    "bin/sudo": '#!/bin/sh\nexec /usr/bin/sudo -n env PATH="$PATH" AGENTRES_STATE_DIR="$HOME/root" "$@"\n',
}
"""What the commands find: in their folder, and before all else in PATH."""

PAST = (
    # At once, and for long enough to be watched, and learnt of, and so that the host is looked at.
    "agentres run --quiet --name planner -- python agent.py 12 &",
    "agentres run --quiet -- python agent.py 3 &",
    "! agentres run --quiet --name fixer --memory 64M -- python3 -c 'import time; time.sleep(3); bytearray(200 << 20)' 2>/dev/null",
    "wait",
)
"""What has been run before: the history that the pages tell of."""


def lives(name: str, who: str = "") -> str:
    """The line for an agent that runs until it is ended."""
    return f"{who}agentres run --quiet --name {name} -- sh -c 'echo up; exec sleep 1000' &"


BEFORE = {
    ("README", "agentres ps"): [lives("fixer")],
    ("control", "agentres ps"): [lives("fixer"), lives("crawl"), lives("train")],
    ("control", "agentres wait tests"): [
        "agentres run --quiet --name tests -- sh -c 'echo up; sleep 5' &"
    ],
    ("network", "sudo agentres set fixer --net-out 2MB/s"): [lives("fixer", "sudo ")],
    ("network", "agentres run --net none -- make test"): ["sudo agentres stop fixer"],
}
"""What is typed before a command, as the text of its page has it."""


class Shell:
    """A bash that commands are typed into."""

    def __init__(self, folder: Path) -> None:
        paths = (folder / "bin", Path(sys.executable).parent, os.environ["PATH"])
        environment = {
            "PATH": ":".join(map(str, paths)),
            "HOME": str(folder),
            "USER": os.environ.get("USER", ""),
            "XDG_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"],
            "COLUMNS": "200",
        }
        self.process = subprocess.Popen(
            ["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=folder, env=environment, start_new_session=True,
        )  # fmt: skip
        self._said = ""

    def run(self, command: str, pattern: str = r"(?s:.*)") -> str:
        """Run it to its end, or, in the background, until it has said so; what it says is as in the pattern."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\necho {MARK} $?\n".encode())
        self.process.stdin.flush()
        background = command.endswith(" &")
        end = time.monotonic() + DEADLINE
        while True:
            # What cannot be enforced is told while the command already runs: between any two of its lines.
            said = re.sub(rf"{MARK} 0\n|agentres: NOT enforced: [^\n]*\n", "", self._said)
            if f"{MARK} 0\n" in self._said and (not background or re.fullmatch(pattern, said)):
                break
            assert not re.search(rf"{MARK} [1-9]", self._said), f"{command}\n{self._said}"
            assert time.monotonic() < end, f"{command}: {self._said}"
            self._read(end)
        self._said = ""
        assert re.fullmatch(pattern, said), f"{command}\n{said}"
        return said

    def start(self, command: str) -> None:
        """Run something in the background that says ``up``, or something that ends."""
        self.run(command, r"up\n" if command.endswith(" &") else r"(?s:.*)")

    def _read(self, end: float) -> None:
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        if select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            data = os.read(fd, 1 << 16)
            assert data, self._said
            self._said += data.decode()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=DEADLINE)
        with suppress(ProcessLookupError):  # what a command that failed has left running
            os.killpg(self.process.pid, signal.SIGTERM)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home that others can look into, as those of agents with a user of their own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    yield folder
    subprocess.run(["sudo", "-n", "rm", "-rf", str(folder)], check=True)


@pytest.fixture(scope="module")
def past(home: Path) -> dict[str, str]:
    """What has been run before; the ids in the pages, and those that they stand for."""
    shell = Shell(home)
    try:
        for line in PAST:
            shell.run(line)
        runs = json.loads(shell.run("agentres history --json"))["runs"]
        (killed,) = json.loads(shell.run("agentres alerts --resource oom_kill --json"))["alerts"]
    finally:
        shell.close()
    return {"3f9a": next(run["id"] for run in runs if run["name"] == "fixer"), "8c21": killed["id"]}


@pytest.fixture
def shell(home: Path) -> Iterator[Shell]:
    made = Shell(home)
    yield made
    made.close()


def here(page: str) -> list[str]:
    """The commands of a page that are run, one by one."""
    found = [part for each in commands(page) for part in parts(each.line)]
    return [part for part in found if elsewhere(part) is None]


@pytest.mark.parametrize("page", [page for page in PAGES if page != "tutorial" and here(page)])
def test_the_commands_of_a_page(page: str, past: dict[str, str], shell: Shell) -> None:
    for part in here(page):
        for line in BEFORE.get((page, part), ()):
            shell.start(line)
        for shown, meant in past.items():
            part = part.replace(shown, meant)  # noqa: PLW2901
        assert "Traceback" not in shell.run(part), part


def _pattern(line: str) -> str:
    if line == "…":  # any lines
        return r"(?:[^\n]*\n)*?"
    return re.escape(line).replace("…", r"[^\n]*") + "\n"


def test_the_tutorial_is_true(shell: Shell) -> None:
    assert sum("agentres run" in each.line for each in commands("tutorial")) >= 4
    for each in commands("tutorial"):
        shell.run(each.line, "".join(map(_pattern, each.said)))
