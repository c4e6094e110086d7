"""``agentres install-units``: installs the files of this installation for systemd, the shells and man(1)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from agentres.cli import manual
from agentres.cli.parameters import Option
from agentres.kernel import delegation, registry, systemd
from agentres.model.errors import AgentresError, UsageError, reason

if TYPE_CHECKING:
    from typer import Typer

_UNITS = ("agentres.service", "agentres.socket", "agentres.slice", "agentres@.service")
_SHELLS = {
    "bash": "share/bash-completion/completions/agentres",
    "zsh": "share/zsh/site-functions/_agentres",
    "fish": "share/fish/vendor_completions.d/agentres.fish",
}
PREFIX = "/usr/local"


def install_units(
    prefix: Annotated[
        str,
        Option("--prefix", metavar="DIR", help="Install below DIR: /usr for a package."),
    ] = PREFIX,
    root: Annotated[
        str,
        Option("--root", metavar="DIR", help="Root directory of a system that is not running: an image, a package."),
    ] = "/",
    remove: Annotated[
        bool, Option("--remove", help="Remove them, and stop the daemon.")
    ] = False,
) -> None:  # fmt: skip
    """Install the systemd units, the group that may use the daemon, shell completion and the man page.

    They call this installation by its path as seen from --root. Nothing is started: systemctl enable --now agentres.socket does that. For root.
    """
    from agentres.cli.app import app

    live = root == "/" and systemd.running()
    made = contents(prefix.rstrip("/"), app, root)
    if remove:
        _remove(Path(root), made, live)
    else:
        _install(Path(root), made, live)


def contents(prefix: str, app: Typer, root: str = "/") -> dict[str, tuple[str, int]]:
    """Return path -> (text, mode).  Programs named in the texts are those of the image at ``root``, or this host's."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]
    from typer.main import get_command

    # systemd searches no other directories.
    lib = f"{prefix}/lib" if prefix in ("/usr", "/usr/local") else "/etc"
    where = _executable(Path(root))
    made = {f"{lib}/systemd/system/{unit}": (_source(unit, where), 0o644) for unit in _UNITS}
    made[f"{lib}/systemd/system-generators/agentres"] = (_source("agentres.generator", where), 0o755)  # fmt: skip
    made[f"{lib}/sysusers.d/agentres.conf"] = (_source("agentres.sysusers", where), 0o644)
    made[f"{lib}/tmpfiles.d/agentres.conf"] = (_source("agentres.tmpfiles", where), 0o644)
    made[f"{prefix}/share/man/man1/agentres.1"] = (manual.page(get_command(app)), 0o644)
    for shell, path in _SHELLS.items():
        script = get_completion_script(
            prog_name="agentres", complete_var="_AGENTRES_COMPLETE", shell=shell
        )
        made[f"{prefix}/{path}"] = (script + "\n", 0o644)
    return made


def _executable(root: Path) -> Mapping[str, str]:
    python = Path(sys.executable)
    beside = python.with_name("agentres")
    if not os.access(beside, os.X_OK):
        raise UsageError(f"there is no {beside}", "install agentres with pip, then call that one")
    if python.is_relative_to(root):  # in an image or a package: it will be called from inside that
        beside, python = ("/" / path.relative_to(root) for path in (beside, python))
    return {"@AGENTRES@": str(beside), "@PYTHON@": str(python)}


def _source(name: str, where: Mapping[str, str]) -> str:
    packed: Any = files("agentres") / "systemd" / name
    if not packed.is_file():  # an editable installation: the file is in the source tree
        packed = Path(__file__).parents[3] / "systemd" / name
    text: str = packed.read_text()
    for mark, path in where.items():
        text = text.replace(mark, path)
    return text


def _install(root: Path, made: Mapping[str, tuple[str, int]], live: bool) -> None:
    for path, (text, mode) in made.items():
        target = root / path.lstrip("/")
        try:
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            # A new file: what is running keeps the old one.
            fresh = target.with_name(f".{target.name}.new")
            fresh.write_text(text)
            fresh.chmod(mode)
            fresh.replace(target)
        except OSError as error:
            raise AgentresError(f"cannot write {target}: {reason(error)}") from error
        print(target)
    if live:
        sysusers, tmpfiles = (next(path for path in made if part in path) for part in ("sysusers.d", "tmpfiles.d"))  # fmt: skip
        _call("systemd-sysusers", sysusers)
        _call("systemd-tmpfiles", "--create", tmpfiles)
        _call("systemctl", "daemon-reload")


def _remove(root: Path, made: Mapping[str, tuple[str, int]], live: bool) -> None:
    if live:
        if agents := registry.running(delegation.hierarchy().mount):
            names = ", ".join(agent.name for agent in agents[:5])
            raise UsageError(f"agents run: {names}", "agentres stop ends them")
        units = [unit for unit in ("agentres.service", "agentres.socket") if _known(unit)]
        if units:
            _call("systemctl", "disable", "--now", "--quiet", *units)
    for path in made:
        _unlink(root / path.lstrip("/"))
    for link in (root / "etc/systemd/system").glob("*.wants/agentres[.@]*"):  # what is enabled
        _unlink(link)
    if live:
        # Sockets, and what systemd was told of the budget and of agents that are units.
        for left in (
            Path("/run/agentres"),
            *Path("/run/systemd/system.control").glob("agentres[.@]*.d"),
        ):
            shutil.rmtree(left, ignore_errors=True)
        _call("systemctl", "daemon-reload")


def _unlink(target: Path) -> None:
    try:
        target.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise AgentresError(f"cannot remove {target}: {reason(error)}") from error
    print(target)


def _known(unit: str) -> bool:
    done = subprocess.run(["systemctl", "cat", unit], capture_output=True, check=False)
    return done.returncode == 0


def _call(*line: str) -> None:
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise AgentresError(f"there is no {line[0]} here") from None
    if done.returncode:
        raise AgentresError(f"{' '.join(line)}: {done.stderr.strip().splitlines()[-1:]}")
