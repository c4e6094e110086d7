"""What an installation puts where, and the man page that it makes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command

from agentres.cli import install, manual
from agentres.cli.app import app
from agentres.run.options import OPTIONS

ROOT = Path(__file__).parents[2]
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


# scripts/install, into the root of a system that does not run.


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="only development has what builds")
    into = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(into)]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    return next(into.glob("*.whl"))


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """One of scripts/, with DESTDIR.  pip and what agentres imports are this environment's: nothing is fetched."""
    python = tmp_path / "python3"
    python.write_text(
        f'#!/bin/sh\ntest "$1 $2" != "-m venv" || set -- -m venv --without-pip "$3"\nexec {getattr(sys, "_base_executable")} "$@"\n'  # noqa: B009
    )
    python.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_COMPILE": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DESTDIR": f"{tmp_path}/root",
    }

    def call(name: str, *words: str, **others: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "scripts" / name, "--prefix", "/usr", *words], env=environment | others, cwd=tmp_path,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return call


def files(root: Path) -> dict[str, bytes | str]:
    """What lies there, but for bytecode and the sums of files, one of which was changed."""
    found = [path for path in root.rglob("*") if not path.is_dir() or path.is_symlink()]
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in found
        if path.suffix != ".pyc" and path.name != "RECORD"
    }  # fmt: skip


def enable_one(root: Path) -> None:
    """Have an agent start at boot, and the socket."""
    for target, unit in (("multi-user", "agentres@x.service"), ("sockets", "agentres.socket")):
        wants = root / f"etc/systemd/system/{target}.target.wants"
        wants.mkdir(parents=True)
        (wants / unit).symlink_to(f"/usr/lib/systemd/system/{unit}")


def test_destdir_and_prefix_are_respected_twice_is_once_and_nothing_stays(
    wheel: Path, script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    done = script("install", "--wheel", str(wheel))
    assert done.returncode == 0, done.stderr
    first = files(root)
    for path in ("lib/systemd/system/agentres.service", "lib/systemd/system/agentres.slice", "lib/sysusers.d/agentres.conf",
                 "lib/tmpfiles.d/agentres.conf", "share/man/man1/agentres.1", "share/zsh/site-functions/_agentres"):  # fmt: skip
        assert f"usr/{path}" in first
    assert first["usr/bin/agentres"] == "/usr/lib/agentres/bin/agentres"
    for path, text in first.items():  # nothing knows where it was made
        if "site-packages" not in path:
            assert str(root) not in str(text), path
    assert first["usr/lib/agentres/bin/agentres"].startswith(b"#!/usr/lib/agentres/bin/python\n")  # type: ignore[arg-type]
    done = script("install", "--wheel", str(wheel))
    assert done.returncode == 0, done.stderr
    assert files(root) == first
    enable_one(root)
    done = script("uninstall")
    assert done.returncode == 0, done.stderr
    assert files(root) == {}
    done = script("uninstall")
    assert done.returncode == 125
    assert "nothing was installed" in done.stderr


def test_places_may_be_written_in_other_ways(
    wheel: Path, script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    done = script(
        "install",
        "--wheel",
        str(wheel),
        "--prefix",
        "/usr//local/",
        DESTDIR=f"{tmp_path}//b/../root/",
    )
    assert done.returncode == 0, done.stderr
    made = files(root)
    assert "usr/local/lib/systemd/system/agentres.service" in made
    assert not any(str(root).encode() in text for path, text in made.items()
                   if isinstance(text, bytes) and "site-packages" not in path)  # fmt: skip
    done = script("uninstall", "--prefix", "/usr/local")
    assert done.returncode == 0, done.stderr
    assert files(root) == {}
    done = script("uninstall", "--prefix", "usr/local")
    assert (done.returncode, done.stderr) == (
        125,
        "uninstall: --prefix usr/local: expected a whole path\n",
    )


def test_what_cannot_be_installed_leaves_nothing(
    script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "broken.whl").write_text("no wheel")
    done = script("install", "--wheel", str(tmp_path / "broken.whl"))
    assert done.returncode == 125
    assert f"install: pip cannot install {tmp_path}/broken.whl" in done.stderr
    assert files(tmp_path / "root") == {}


def test_it_is_removed_by_its_list_where_python_is_another_since(
    wheel: Path, script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    assert script("install", "--wheel", str(wheel)).returncode == 0
    enable_one(root)
    for lib in (root / "usr/lib/agentres/lib").iterdir():
        shutil.rmtree(lib)
    done = script("uninstall")
    assert done.returncode == 0, done.stderr
    assert "another Python" in done.stderr
    assert files(root) == {}


def test_without_python_and_list_it_says_so(
    wheel: Path, script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    assert script("install", "--wheel", str(wheel)).returncode == 0
    for lib in (root / "usr/lib/agentres/lib").iterdir():
        shutil.rmtree(lib)
    (root / "usr/lib/agentres/installed").unlink()
    before = files(root)
    done = script("uninstall")
    assert done.returncode == 125
    assert "call scripts/install once more" in done.stderr
    assert files(root) == before


def test_an_installation_that_stops_half_way_can_be_finished_or_undone(
    wheel: Path, script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "usr/share").mkdir(parents=True)
    (root / "usr/share/man").write_text("in the way of the man page")
    done = script("install", "--wheel", str(wheel))
    assert done.returncode != 0
    assert f"cannot write {root}/usr/share/man" in done.stderr
    (root / "usr/share/man").unlink()
    done = script("uninstall")
    assert done.returncode == 0, done.stderr
    assert files(root) == {}


def test_what_cannot_be_removed_is_told(
    wheel: Path, script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    assert script("install", "--wheel", str(wheel)).returncode == 0
    enabled = root / "etc/systemd/system/sockets.target.wants/agentres.socket"
    enabled.mkdir(parents=True)
    done = script("uninstall")
    assert done.returncode != 0
    assert f"cannot remove {enabled}: " in done.stderr
    enabled.rmdir()
    assert script("uninstall").returncode == 0
    assert files(root) == {}


@pytest.mark.parametrize("prefix", ["", "/", "//"])
def test_no_prefix_is_no_place(
    script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, prefix: str
) -> None:
    for name in ("install", "uninstall"):
        done = script(name, f"--prefix={prefix}")
        assert done.returncode == 125
        assert f"{name}: --prefix" in done.stderr


def test_what_is_not_ours_is_not_taken(
    script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    theirs = tmp_path / "root/usr/lib/agentres/theirs"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    assert "another" in script("install").stderr
    assert script("uninstall").stderr == (
        f"uninstall: there is another {theirs.parent}, without a pyvenv.cfg: nothing was installed below {tmp_path}/root/usr\n"
    )
    assert theirs.exists()
