"""Exit statuses: the agent's own, 124, 125, 126, 127, 128+N; bad input in one line."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest
from conftest import ROOT, RunAgent, alike, python

Start = Callable[..., Popen[str]]


@pytest.mark.parametrize("status", alike(0, 7, 1, 125, 255))
def test_the_agents_own_status(agentres_run: RunAgent, status: int) -> None:
    run = agentres_run(command=["sh", "-c", f"exit {status}"])
    assert run.status == status
    assert run.summary is not None
    assert run.summary["exit_code"] == status
    assert f"exited {status} after" in run.err


@pytest.mark.parametrize("number", alike(signal.SIGKILL, 34, signal.SIGTERM, signal.SIGSEGV))
def test_ended_by_a_signal(agentres_run: RunAgent, number: int) -> None:
    run = agentres_run(command=["sh", "-c", f"kill -{int(number)} $$"])
    assert run.status == 128 + number
    assert run.summary is not None
    assert run.summary["signal"] == number
    assert f"ended by signal {int(number)}" in run.err


def test_time_limit(agentres_run: RunAgent) -> None:
    start = time.monotonic()
    run = agentres_run("--timeout", "1s", command=["sleep", "1000"])
    assert run.status == 124
    assert time.monotonic() - start < 60
    assert "time limit: 1.00 s had passed, ended by SIGTERM;" in run.err
    assert run.summary is not None
    assert run.summary["timed_out"] is True
    assert run.summary["wall_seconds"] >= 1


def test_time_limit_kills_what_ignores_sigterm(agentres_run: RunAgent) -> None:
    run = agentres_run(
        "--timeout", "1s", command=["sh", "-c", "trap '' TERM; sleep 1000; sleep 1000"]
    )
    assert run.status == 124
    assert "SIGTERM, then SIGKILL" in run.err


def test_time_limit_wakes_what_is_stopped(agentres_run: RunAgent) -> None:
    run = agentres_run("--timeout", "1s", command=["sh", "-c", "kill -STOP $$"])
    assert run.status == 124
    assert "ended by SIGTERM;" in run.err


NOT_STARTED = alike(
    (["/nonexistent/agent"], 127, "cannot execute /nonexistent/agent: no such file or directory"),
    (["/etc/passwd"], 126, "cannot execute /etc/passwd: permission denied"),
    (["no-such-agent"], 127, "cannot execute no-such-agent: not found in PATH"),
    (["/"], 126, "cannot execute /: permission denied"),
    ([""], 127, "cannot execute : not found in PATH"),
)


@pytest.mark.parametrize(("command", "status", "text"), NOT_STARTED)
def test_a_command_that_cannot_start(
    agentres_run: RunAgent, command: list[str], status: int, text: str
) -> None:
    run = agentres_run(command=command)
    assert (run.status, run.err) == (status, f"agentres: {text}\n")


def test_a_program_without_a_format(agentres_run: RunAgent, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo hello\n")
    script.chmod(0o755)
    run = agentres_run(command=[str(script)])
    assert run.status == 126
    assert "no #! line" in run.err
    script.write_text("#!/nonexistent/interpreter\n")
    run = agentres_run(command=[str(script)])
    assert run.status == 127
    assert "its interpreter does not exist" in run.err


# What is refused before the kernel is asked of anything is tests/unit/test_cli.py's; the first stands for that here.
BAD = [
    (["--memory", "12Q"], "--memory 12Q: expected a size"),
    (["--io-write", "/dev/nonexistent=5M"], "device /dev/nonexistent: no such file"),
    (["--io-write", "/dev/null=5M"], "device /dev/null: not a block device"),
    (["--io-write", "/proc=5M"], "device /proc: /proc is proc, with no block device behind it"),
    (["--cwd", "/nonexistent"], "cannot enter /nonexistent: no such file or directory"),
]


@pytest.mark.parametrize(("options", "text"), BAD, ids=[" ".join(o)[:40] for o, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(
    agentres_run: RunAgent, options: list[str], text: str
) -> None:
    run = agentres_run(*options, command=["echo", "ran"])
    assert run.status == 125
    assert run.out == ""
    assert text.lower() in run.err.lower()
    assert run.err.startswith("agentres: ")
    assert run.err.count("\n") == 1


@pytest.mark.skipif(ROOT, reason="root may enter any directory")
def test_a_directory_that_cannot_be_entered(agentres_run: RunAgent, tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o000)
    run = agentres_run("--cwd", str(tmp_path / "shut"), command=["true"])
    assert run.status == 125
    assert f"cannot enter {tmp_path}/shut: permission denied" in run.err.lower()


@pytest.mark.skipif(ROOT, reason="root may")
def test_user_is_for_root(agentres_run: RunAgent) -> None:
    run = agentres_run("--user", "nobody", command=["true"])
    assert (run.status, run.out) == (125, "")
    assert "only root may" in run.err


@pytest.mark.skipif(not ROOT, reason="--user is for root")
@pytest.mark.parametrize("isolate", ["yes", "no"])
def test_user_drops_everything(agentres_run: RunAgent, isolate: str) -> None:
    show = "import os; print(os.getresuid(), os.getresgid(), os.getgroups(), *map(os.environ.get, ['HOME', 'USER', 'LOGNAME']))"
    options = ("--user", "dev", f"--isolate={isolate}", "--cwd", "/")
    run = agentres_run(*options, command=["python3", "-c", show], check=True)
    import pwd

    entry = pwd.getpwnam("dev")
    groups = [] if isolate == "yes" else os.getgrouplist("dev", entry.pw_gid)
    ids = f"({entry.pw_uid}, {entry.pw_uid}, {entry.pw_uid}) ({entry.pw_gid}, {entry.pw_gid}, {entry.pw_gid})"
    printed_groups = run.out[run.out.index("[") + 1 : run.out.index("]")].split(", ")
    assert run.out.startswith(ids)
    assert sorted(int(group) for group in printed_groups if group) == sorted(groups)
    assert run.out.split("] ")[1].split() == [entry.pw_dir, "dev", "dev"]


@pytest.mark.skipif(not ROOT, reason="--user is for root")
def test_user_that_does_not_exist(agentres_run: RunAgent) -> None:
    run = agentres_run("--user", "nonesuch", command=["true"])
    assert (run.status, run.err) == (125, "agentres: --user nonesuch: there is no such user\n")


@pytest.mark.skipif(not ROOT, reason="--user is for root")
def test_user_may_not_enter_the_directory(agentres_run: RunAgent, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    run = agentres_run("--user", "dev", command=["true"], cwd=tmp_path)
    assert run.status == 125
    assert "cannot enter the current directory" in run.err


def test_a_name_that_is_taken(agentres_run: RunAgent, start: Start) -> None:
    first = start("--name", "taken", command=["cat"])
    assert first.stdin is not None
    assert first.stdout is not None
    first.stdin.write("up\n")
    first.stdin.flush()
    assert first.stdout.readline() == "up\n"
    second = agentres_run("--name", "taken", command=["echo", "ran"])
    assert (second.status, second.out) == (125, "")
    assert second.err.count("\n") == 1
    assert "an agent named taken is running" in second.err
    first.stdin.close()
    assert first.wait(60) == 0
    # The name is free as soon as the first run has returned, whatever systemd still has to do.
    assert agentres_run("--name", "taken", command=["true"]).status == 0


def test_quiet_says_nothing(agentres_run: RunAgent) -> None:
    run = agentres_run("--quiet", command=["sh", "-c", "echo out; echo err >&2"])
    assert (run.out, run.err) == ("out\n", "err\n")


def test_verbose_names_every_write(agentres_run: RunAgent) -> None:
    run = agentres_run("--verbose", "--memory", "64M", command=["true"])
    assert f"memory.max = {64 << 20}" in run.err


def test_summary_to_a_pipe(tmp_path: Path) -> None:
    import json
    import subprocess

    from conftest import AGENTRES

    line = [*AGENTRES, "run", "--quiet", "--summary", "/dev/stdout", "--", "true"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["exit_code"] == 0


def test_python_can_tell_what_it_was_given(agentres_run: RunAgent) -> None:
    code = "import sys; print(sys.argv[1:])"
    run = agentres_run(command=python(code, "a b", "", "--memory", "--", "ü\n"), check=True)
    assert run.out == "['a b', '', '--memory', '--', 'ü\\n']\n"


def test_a_refused_launch_leaves_no_old_summary(tmp_path: Path) -> None:
    import subprocess

    from conftest import AGENTRES

    file = tmp_path / "summary"
    file.write_text("{}")
    line = [*AGENTRES, "run", "--summary", str(file), "--", "/nonexistent"]
    assert subprocess.run(line, capture_output=True, check=False).returncode == 127
    assert file.read_text() == ""


def test_a_summary_where_stdout_is_closed(tmp_path: Path) -> None:
    import json
    import subprocess

    from conftest import AGENTRES

    file = tmp_path / "summary"
    line = [*AGENTRES, "run", "--quiet", "--summary", str(file), "--", "true"]
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *line], check=False)
    assert done.returncode == 0
    assert json.loads(file.read_text())["exit_code"] == 0


def test_a_summary_to_a_file_that_is_our_stdout_is_appended(tmp_path: Path) -> None:
    import json
    import subprocess

    from conftest import AGENTRES

    line = [*AGENTRES, "run", "--quiet", "--summary", "/dev/stdout", "--", "echo", "from the agent"]
    with (tmp_path / "out").open("w") as out:
        subprocess.run(line, stdout=out, check=True)
    first, _, rest = (tmp_path / "out").read_text().partition("\n")
    assert first == "from the agent"
    assert json.loads(rest)["exit_code"] == 0


def test_a_current_directory_that_is_gone(agentres_run: RunAgent, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    script = f"mkdir {gone} && cd {gone} && rmdir {gone} && exec "
    import subprocess

    from conftest import AGENTRES

    line = script + " ".join([*AGENTRES[:1], "-P", *AGENTRES[1:], "run", "--", "true"])
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "the current directory: no such file or directory" in done.stderr
