"""What an installation puts where, and the man page that it makes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from agentres.cli import install, manual
from agentres.cli.app import app
from agentres.run.options import OPTIONS

PAGE = manual.page(get_command(app))


def test_the_man_page_has_every_verb_and_option() -> None:
    for verb in ("run", "ps", "show", "set", "unit check", "config show", "doctor", "daemon"):
        assert re.search(rf"^\.SS agentres {verb}\b", PAGE, re.MULTILINE), verb
    for option in OPTIONS:
        assert f"\\fB\\-\\-{option.name.replace('-', chr(92) + '-')}\\fR" in PAGE, option.name


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not here")
def test_the_man_page_is_one() -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww"], input=PAGE, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "agentres run" in done.stdout


def test_no_line_of_the_man_page_is_a_request_by_accident() -> None:
    known = {"TH", "SH", "SS", "TP", "PP", "B", "I", "BR", "nf", "fi"}
    assert {line[1:].split()[0] for line in PAGE.splitlines() if line.startswith(".")} <= known


@pytest.mark.parametrize(
    ("prefix", "units"),
    [("/usr", "/usr/lib"), ("/usr/local", "/usr/local/lib"), ("/opt/a", "/etc")],
)
def test_units_stand_where_systemd_looks(
    prefix: str, units: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "agentres").touch(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python3"))
    made = install.contents(prefix, app)
    assert f"{units}/systemd/system/agentres@.service" in made
    assert f"{prefix}/share/man/man1/agentres.1" in made
    for path, (text, mode) in made.items():
        assert not re.search("@(AGENTRES|PYTHON)@", text), path
        assert mode == (0o755 if "generators" in path else 0o644)
    assert f"ExecStart={tmp_path}/agentres daemon" in made[f"{units}/systemd/system/agentres.service"][0]  # fmt: skip


def test_below_a_root_it_is_called_as_seen_from_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = tmp_path / "usr/lib/agentres/bin"
    there.mkdir(parents=True)
    (there / "agentres").touch(0o755)
    monkeypatch.setattr("sys.executable", str(there / "python3"))
    made = install.contents("/usr", app, str(tmp_path))
    assert "ExecStart=/usr/lib/agentres/bin/agentres daemon\n" in made["/usr/lib/systemd/system/agentres.service"][0]  # fmt: skip
    generator = made["/usr/lib/systemd/system-generators/agentres"][0]
    assert "exec /usr/lib/agentres/bin/python3 -P" in generator


def test_without_a_script_to_call_there_is_nothing_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python3"))
    with pytest.raises(install.UsageError, match=f"there is no {tmp_path}/agentres"):
        install.contents("/usr", app)
