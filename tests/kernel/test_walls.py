"""An isolated agent tries to get at its limits, at us and at others, and gets nowhere."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import AGENTRES, DEADLINE, ROOT, RunAgent, by_daemon, home_of, python, wait_until

from agentres.kernel import registry, walls

as_root = pytest.mark.skipif(not ROOT, reason="walls are root's to make")
as_user = pytest.mark.skipif(ROOT or by_daemon(), reason="root may isolate")
scoped = pytest.mark.skipif(
    walls.landlock() < walls.SCOPES_ABI, reason="Landlock keeps signals inside from Linux 6.12 on"
)

# Tries one thing after another; says of each how it failed, or that it did not.
_TRY = """
import ctypes, json, os, resource, signal, socket, subprocess, sys
told = {}
def attempt(what):
    def run(function):
        try:
            told[what] = f"done: {function()}"
        except Exception as error:
            told[what] = type(error).__name__
    return run
def end():
    print(json.dumps(told))
def write(path, text):
    with open(path, "w") as file:
        file.write(text)
def shell(line):
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout
"""

FAILURES = {
    "PermissionError",
    "ConnectionRefusedError",
    "OSError",
    "RuntimeError",
    "ValueError",
    "FileNotFoundError",
}


def attempts(lines: str, *arguments: object) -> list[str]:
    return python(f"{_TRY}\n{lines}\nend()", *arguments)


def all_failed(out: str) -> dict[str, str]:
    told: dict[str, str] = json.loads(out)
    assert {what: how for what, how in told.items() if how not in FAILURES} == {}
    return told


_STATUS = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Groups", "Uid"):
    told[key] = status[key].split()
told["cgroup"] = [line.strip() for line in open("/proc/self/cgroup") if line.startswith("0::")]
told["limit"] = open(f"{sys.argv[1]}/memory.max").read().strip()
told["seen"] = sorted(os.listdir(sys.argv[1]))
told["fds"] = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
"""


@as_root
def test_what_an_isolated_agent_is(agentres_run: RunAgent) -> None:
    mount = os.path.dirname(str(home_of("x").parent))
    with open("/etc/hostname") as kept:
        os.dup2(kept.fileno(), 19)  # survives, where nobody closes it
        run = agentres_run(
            "--isolate",
            "--memory",
            "64M",
            "--cwd",
            "/",
            command=attempts(_STATUS, mount),
            pass_fds=[19],
            check=True,
        )
    os.close(19)
    told = json.loads(run.out)
    none = ["0000000000000000"]
    assert [told[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == [none] * 5
    assert told["NoNewPrivs"] == ["1"]
    assert told["Groups"] == []
    (uid,) = set(told["Uid"])
    assert int(uid) in walls.DYNAMIC
    assert told["cgroup"] == ["0::/main"]
    assert told["limit"] == str(64 << 20)  # where whatever sizes itself by its limits looks
    assert "agentres.slice" not in told["seen"]
    assert set(told["fds"]) <= {0, 1, 2, 3}  # 3 is the listing's own
    assert "runs as root" not in run.err


@as_root
def test_no_two_agents_share_a_user(
    start: Callable[..., subprocess.Popen[str]], agentres_run: RunAgent
) -> None:
    show = ["sh", "-c", "id -u; read line"]
    first = start("--isolate", "--cwd", "/", "--name", "first", command=show)
    assert first.stdout is not None
    one = int(first.stdout.readline())
    held = socket.socket(socket.AF_UNIX)
    with pytest.raises(OSError, match="in use"):
        held.bind(f"\0agentres/uid/{one}")
    other = agentres_run("--user", "auto", "--cwd", "/", command=["id", "-u"], check=True)
    assert int(other.out) != one
    first.communicate("\n", timeout=DEADLINE)
    held.bind(f"\0agentres/uid/{one}")
    held.close()


_LIMITS = """
mount, agent, supervisor, kept = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
attempt("its own file")(lambda: write(mount + "/memory.max", "max"))
attempt("by the host's path")(lambda: write(agent + "/memory.max", "max"))
attempt("through /proc")(lambda: write(f"/proc/{supervisor}/root{agent}/memory.max", "max"))
attempt("out by path")(lambda: write(mount + "/../cgroup.procs", "0"))
attempt("a new cgroup")(lambda: os.mkdir(mount + "/own"))
attempt("a kept descriptor")(lambda: os.write(kept, b"0"))
attempt("remount")(lambda: shell(f"mount -o remount,rw {mount}"))
attempt("unmount")(lambda: shell(f"umount {mount}"))
attempt("systemd-run")(lambda: shell("systemd-run --scope true"))
attempt("systemd-run --user")(lambda: shell("systemd-run --user --scope true"))
attempt("the manager's bus")(lambda: socket.socket(socket.AF_UNIX).connect("/run/dbus/system_bus_socket"))
attempt("the manager's socket")(lambda: socket.socket(socket.AF_UNIX).connect("/run/systemd/private"))
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
attempt("more files")(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard + 1)))
attempt("signal")(lambda: os.kill(supervisor, signal.SIGTERM))
attempt("memory")(lambda: open(f"/proc/{supervisor}/mem", "r+b"))
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
def attach():
    if ptrace(16, supervisor, None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")
attempt("ptrace")(attach)
attempt("agentres")(lambda: shell(f"{sys.executable} -m agentres set walled --memory max"))
at = "/tmp/walled-" + str(os.getpid())
os.mkdir(at)
for what, line in (
    ("its limit in a new mount", f"echo max > {at}/memory.max"),
    ("a cgroup in a new mount", f"mkdir {at}/own"),
    ("its move in a new mount", f"echo 0 > {at}/cgroup.procs"),
):
    attempt(what)(lambda: shell(f"unshare --user --map-root-user --mount --cgroup sh -c 'mount -t cgroup2 none {at} && {line}'"))
os.rmdir(at)
"""


@as_root
def test_it_does_not_get_at_its_limits_nor_out(start: Callable[..., subprocess.Popen[str]]) -> None:
    agent = home_of("walled") / "agent"
    mount = str(agent.parents[2])
    kept = os.open(f"{mount}/cgroup.procs", os.O_WRONLY)
    os.set_inheritable(kept, True)
    # It is told the supervisor's number when that is known.
    script = 'read pid; exec "$0" -S -c "$1" "$2" "$3" "$pid" "$4"'
    interpreter, _, _, code = attempts(_LIMITS)
    process = start(
        *("--isolate", "--name", "walled", "--cwd", "/", "--memory", "256M"),
        command=["sh", "-c", script, interpreter, code, mount, str(agent), str(kept)],
        pass_fds=[kept],
    )
    out, err = process.communicate(f"{process.pid}\n", timeout=DEADLINE)
    os.close(kept)
    assert process.returncode == 0, err
    told = all_failed(out)
    assert len(told) == 20


@as_root
def test_a_setuid_program_gives_it_nothing(agentres_run: RunAgent) -> None:
    run = agentres_run("--user", "dev", "--cwd", "/", command=["sudo", "-n", "id", "-u"])
    assert run.status == 1
    assert "no new privileges" in run.err
    free = ["--user", "dev", "--isolate=no", "--cwd", "/"]
    assert agentres_run(*free, command=["sudo", "-n", "id", "-u"], check=True).out == "0\n"


_OTHERS = """
other, name = int(sys.argv[1]), sys.argv[2]
attempt("signal")(lambda: os.kill(other, signal.SIGKILL))
attempt("memory")(lambda: open(f"/proc/{other}/mem", "r+b"))
attempt("root")(lambda: os.listdir(f"/proc/{other}/root/"))
attempt("socket")(lambda: socket.socket(socket.AF_UNIX).connect("\\0" + name))
attempt("bus")(lambda: os.stat("/run/user/1000/bus"))
"""


@as_root
@scoped
def test_it_does_not_get_at_other_processes_of_its_user(agentres_run: RunAgent) -> None:
    other = subprocess.Popen(["runuser", "-u", "dev", "--", "sleep", "1000"])
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0walls-test")
    listener.listen()
    try:
        (sleep,) = _children(other.pid)
        run = agentres_run(
            "--user",
            "dev",
            "--cwd",
            "/",
            command=attempts(_OTHERS, sleep, "walls-test"),
            check=True,
        )
        assert len(all_failed(run.out)) == 5
        assert os.path.exists(f"/proc/{sleep}")
        free = agentres_run(
            "--user", "dev", "--isolate=no", "--cwd", "/", command=attempts(_OTHERS, sleep, "walls-test"), check=True
        )  # fmt: skip
        assert json.loads(free.out)["signal"] == "done: None"
    finally:
        listener.close()
        other.send_signal(signal.SIGTERM)
        other.wait(DEADLINE)


def _children(pid: int) -> list[int]:
    found: list[int] = []

    def there() -> bool:
        found[:] = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return bool(found) and "sleep" in Path(f"/proc/{found[0]}/comm").read_text()

    wait_until(there, "sleep runs")
    return found


@as_root
def test_its_own_processes_and_namespaces_are_its_own_business(agentres_run: RunAgent) -> None:
    own = "sleep 1000 & kill $! && unshare --user --map-root-user --mount id -u"
    run = agentres_run("--isolate", "--cwd", "/", command=["sh", "-c", own], check=True)
    assert run.out == "0\n"


def test_a_sandbox_of_the_users_choice_runs_in_it(agentres_run: RunAgent, tmp_path: Path) -> None:
    box = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--unshare-all", "--die-with-parent", "--new-session"]  # fmt: skip
    # One after the other: what is left when the main process ends is killed.
    inside = "import os; os.fork() and os.wait(); print(len([p for p in os.listdir('/proc') if p.isdigit()]) > 0, os.access('/etc', os.W_OK))"
    run = agentres_run("--pids", "20", "--cwd", "/", command=[*box, *python(inside)], check=True)
    assert run.out.splitlines() == ["True False"] * 2
    assert run.usage["pids_peak"] >= 2
    forks = agentres_run("--pids", "20", "--cwd", "/", command=[*box, *python("import os\nwhile True: os.fork()")])  # fmt: skip
    assert forks.usage["pids_max_events"] > 0  # the limits hold in there


@as_root
def test_root_without_walls_is_told_what_that_means(agentres_run: RunAgent) -> None:
    run = agentres_run(command=["true"], check=True)
    assert "it runs as root, and can undo its limits" in run.err
    assert "undo" not in agentres_run("--quiet", command=["true"], check=True).err


@as_root
def test_who_is_isolated_is_watched_and_commanded_as_ever(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    process = start(
        "--isolate", "--name", "seen", "--cwd", "/", command=["sh", "-c", "echo up; read l"]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    done = subprocess.run([*AGENTRES, "show", "seen", "--json"], capture_output=True, check=True)
    used = json.loads(done.stdout)["used"]
    assert used["fds"] >= 3
    assert registry.control(str(home_of("seen") / "agent"))
    subprocess.run([*AGENTRES, "stop", "seen"], check=True)
    assert process.wait(DEADLINE) == 128 + signal.SIGTERM


@as_user
def test_isolate_is_roots_and_says_so(agentres_run: RunAgent) -> None:
    run = agentres_run("--isolate", command=["echo", "ran"])
    assert (run.status, run.out) == (125, "")
    assert "cannot enforce --isolate: walls are root's to make" in run.err
