"""``agentres top`` as a command: what it says where it does not draw."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentres.tui import rows


def top(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "agentres", "top", *words],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "top draws on a terminal; agentres ps prints the same once"),
        (["--interval", "0.1s"], "--interval 0.1s: expected 0.2s or more"),
        (["--interval", "soon"], "--interval soon: expected"),
        (["--sort", "colour"], "--sort colour: expected one of name, cpu,"),
    ],
)
def test_what_makes_no_sense_is_one_line(words: list[str], said: str) -> None:
    done = top(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"agentres: {said}")
    assert done.stderr.count("\n") == 1


def test_help_names_all_that_it_sorts_by() -> None:
    told = " ".join(top("--help", COLUMNS="200").stdout.replace("│", " ").split())
    *names, last = rows.SORTS
    assert f"{', '.join(names)} or {last}." in told


def test_without_textual_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "textual.py").write_text("raise ModuleNotFoundError('none', name='textual')")
    done = subprocess.run(
        [sys.executable, "-m", "agentres", "top"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1,
        "agentres: top needs the package textual; pip install 'agentres[tui]'\n",
    )
