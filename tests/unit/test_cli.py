"""The command line from outside: exit statuses, and where its words go."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest

from agentres import __version__
from agentres.run.options import OPTIONS


@cache
def agentres(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    environment.pop("FORCE_COLOR", None)
    return subprocess.run(
        [sys.executable, "-m", "agentres", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


# Refused before it is asked where an agent could be, or by whom it is to be run.
VALUES = [
    (["--memory", "12Q"], "--memory 12Q: expected a size"),
    (["--memory", "-1"], "--memory -1: must not be negative"),
    (["--memory", "0"], "--memory 0: must be above 0"),
    (["--memory", "900T"], "--memory 900T: is above the host's"),
    (["--memory", "101%"], "--memory 101%: is more than the host has"),
    (["--memory", "4k"], "--memory 4k: is below the least, 1.0 MiB"),
    (["--cpu", "0"], "--cpu 0: must be above 0"),
    (["--cpu", "4000"], "--cpu 4000: is above the host's"),
    (["--cpu", "nan"], "--cpu nan: expected cores"),
    (["--pids", "0"], "--pids 0: must be above 0"),
    (["--pids", "many"], "--pids many: expected a whole number"),
    (["--nofile", "0"], "--nofile 0: must be above 0"),
    (["--timeout", "0"], "--timeout 0: must be above 0"),
    (["--timeout", "5 parsecs"], "--timeout 5 parsecs: expected a duration"),
    (["--io-read", "0"], "--io-read 0: must be above 0"),
    (["--io-read", "fast"], "--io-read fast: expected bytes a second"),
    (["--io-write", "vda=5M"], "--io-write vda=5M: a device is a path"),
    (["--name", "a/b"], "--name a/b: expected at most 64 letters"),
    (["--name", ".."], "--name ..: expected"),
    (["--name", "x" * 65], f"--name {'x' * 65}: expected at most 64 letters"),
]

WRONG = [
    *((("run", *options, "--", "true"), 125, words) for options, words in VALUES),
    (("run", "--bogus", "true"), 125, "No such option: --bogus"),
    (("run",), 125, "Missing argument 'COMMAND'"),
    (("run", "--cpu", "1", "--"), 125, "Missing argument 'COMMAND'"),
    (("run", "--cpu"), 125, "Option '--cpu' requires an argument"),
    (("run", "--quiet=1", "--", "true"), 125, "Option '--quiet' does not take a value"),
    (("run", "--cpu", "many", "--", "true"), 125, "--cpu many: expected cores"),
    (("run", "--cpu", "1\n2", "--", "true"), 125, "--cpu 1\\n2: expected cores"),
    (("run", "--name", "x\n", "--", "true"), 125, "--name x\\n: expected"),
    (("laun\nch",), 2, "No such command 'laun"),
    (("run", "--name", "", "--", "true"), 125, "--name : expected"),
    (
        ("run", "--io-write", "/dev/vda=abc", "--", "true"),
        125,
        "--io-write /dev/vda=abc: expected bytes a second",
    ),
    (("run", "--pids", "9" * 5000, "--", "true"), 125, "--pids 9999"),
    (("run", "--name", "../x", "--", "true"), 125, "--name ../x: expected"),
    (
        ("run", "--summary", "/nowhere/run.json", "--", "true"),
        125,
        "--summary /nowhere/run.json: no such file",
    ),
    (("run", "--events", "/nowhere/e", "--", "true"), 125, "--events /nowhere/e: no such file"),
    (("run", "--events", "/tmp", "--", "true"), 125, "--events /tmp: is a directory"),
    (("run", "--events", "", "--", "true"), 125, "--events : no such file"),
    (("run", "--events", "77", "--", "true"), 125, "--events 77: bad file descriptor"),
    (("run", "--events", "9" * 9, "--", "true"), 125, "--events 999999999: bad file descriptor"),
    (("launch",), 2, "No such command 'launch'"),
    (("--bogus",), 2, "No such option: --bogus"),
    (("doctor", "--bogus"), 2, "No such option: --bogus"),
]


@pytest.mark.parametrize(("line", "status", "words"), WRONG)
def test_a_wrong_line_is_one_line_on_stderr_and_a_status(
    line: tuple[str, ...], status: int, words: str
) -> None:
    done = agentres(*line)
    assert done.returncode == status
    assert done.stderr.startswith(f"agentres: {words}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("line", "where"),
    [
        (("run", "--bogus", "true"), "agentres run --help"),
        (("run", "--cpu"), "agentres run --help"),
        (("run", "--quiet=1", "--", "true"), "agentres run --help"),
        (("run",), "agentres run --help"),
        (("doctor", "--bogus"), "agentres doctor --help"),
        (("launch",), "agentres --help"),
    ],
)
def test_a_wrong_line_tells_where_to_read_more(line: tuple[str, ...], where: str) -> None:
    assert agentres(*line).stderr.endswith(f"; see {where}\n")


@pytest.mark.parametrize(
    "line", [("--help",), ("-h",), ("run", "--help"), ("run", "-h"), ("doctor", "-h")]
)
def test_help_is_on_stdout_and_no_failure(line: tuple[str, ...]) -> None:
    done = agentres(*line)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage:" in done.stdout


def test_help_names_every_verb() -> None:
    assert {"run", "doctor"} <= set(agentres("--help").stdout.split())


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_the_help_of_run_has_every_option_with_what_it_takes(option: object) -> None:
    assert isinstance(option, type(OPTIONS[0]))
    lines = agentres("run", "--help").stdout.splitlines()
    (line,) = [line for line in lines if f"--{option.name}" in line.split()[:2]]
    assert option.metavar in line
    assert option.help.split()[0] in line


def test_the_version_is_the_packages() -> None:
    done = agentres("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"agentres {__version__}\n", "")


def test_without_a_verb_the_help_is_shown() -> None:
    assert agentres().stdout.split() == agentres("--help").stdout.split()


def test_a_refused_run_makes_no_summary(tmp_path: object) -> None:
    path = f"{tmp_path}/run.json"
    assert agentres("run", "--summary", path, "--cpu", "many", "--", "true").returncode == 125
    assert not os.path.exists(path)


@pytest.mark.parametrize("line", [["--version"], ["config", "path"]])
def test_a_stdout_that_is_closed_takes_what_is_said(line: list[str]) -> None:
    closed = ["/bin/sh", "-c", 'exec "$@" >&-', "-", sys.executable, "-m", "agentres", *line]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("line", [["--version"], ["config", "path"]])
def test_a_stdout_that_is_full_or_has_no_reader_is_told_without_a_traceback(
    line: list[str],
) -> None:
    command = [sys.executable, "-m", "agentres", *line]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "agentres: cannot write: no space left on device\n")  # fmt: skip
    out, into = os.pipe()
    os.close(out)
    done = subprocess.run(command, stdout=into, stderr=subprocess.PIPE, text=True, check=False)
    os.close(into)
    assert (done.returncode, done.stderr) == (141, "")
