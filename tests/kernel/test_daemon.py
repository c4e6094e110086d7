"""Agents by way of the daemon: whose they are, what holds them, and what ends them."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import daemons
import psutil
import pytest
from conftest import AGENTRES, DEADLINE, ROOT, python, wait_until
from daemons import DEV, Daemon, client_of, home_of, keeper_of, ready

from agentres import __version__
from agentres.daemon import submission
from agentres.daemon.submission import Submission
from agentres.kernel import delegation, registry, walls

pytestmark = pytest.mark.skipif(not ROOT, reason="the daemon is root's")

daemon = daemons.daemon


_WHO = """
import json, os, resource
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "uid": os.getresuid(), "gid": os.getresgid(), "groups": sorted(os.getgroups()),
    "cwd": os.getcwd(), "umask": int(status["Umask"], 8), "caps": int(status["CapBnd"], 16),
    "private": status["NoNewPrivs"].strip(), "mine": os.environ.get("MINE"),
    "stack": resource.getrlimit(resource.RLIMIT_STACK), "nice": os.nice(0),
    "adjusted": open("/proc/self/oom_score_adj").read().strip(),
    "session": os.getsid(0) == os.getpid(), "fds": sorted(os.listdir("/proc/self/fd"))[:4],
}))
"""


def test_it_runs_as_who_asked_with_what_a_child_has(daemon: Daemon) -> None:
    shell = f'cd /usr && umask 027 && ulimit -s 4096 && export MINE=yes && exec {" ".join(AGENTRES)} run -- "$@"'
    dev = pwd.getpwnam(DEV)
    line = [
        "runuser", "-u", DEV, "--", "nice", "-n", "3", "env", f"AGENTRES_SOCKET={daemon.socket}",
        f"PATH={os.environ['PATH']}", "sh", "-c", shell, "sh", *python(_WHO),
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["uid"] == [dev.pw_uid] * 3
    assert told["gid"] == [dev.pw_gid] * 3
    assert told["groups"] == []  # walls leave none
    assert (told["cwd"], told["umask"], told["mine"]) == ("/usr", 0o027, "yes")
    assert told["stack"] == [4096 * 1024] * 2
    assert told["nice"] == 3
    assert (told["caps"], told["private"]) == (0, "1")
    assert told["fds"] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("user", [["--isolate"], ["--user", "auto"]])
def test_an_ordinary_user_is_behind_walls_or_has_a_user_of_its_own(daemon: Daemon, user: list[str]) -> None:  # fmt: skip
    done = daemon.run(*user, command=python("import os; print(os.getuid())"))
    assert done.returncode == 0, done.stderr
    own = int(done.stdout) in walls.DYNAMIC
    assert own if "auto" in user else int(done.stdout) == pwd.getpwnam(DEV).pw_uid


def test_root_that_asks_for_walls_has_a_user_of_its_own(daemon: Daemon) -> None:
    done = daemon.run("--isolate", command=python("import os; print(os.getuid())"), user="root")
    assert int(done.stdout) in walls.DYNAMIC, done.stderr


def test_root_is_told_what_its_agent_can_do(daemon: Daemon) -> None:
    done = daemon.run(command=["true"], user="root")
    assert "it runs as root, without capabilities" in done.stderr


_HANDLER = """
import os, resource, sys
own = open("/proc/self/cgroup").read().split("0::")[1].split("\\n")[0]
pids = open(f"/sys/fs/cgroup{own}/pids.max").read().strip()
print(pids, *resource.getrlimit(resource.RLIMIT_STACK), os.nice(0), file=open(sys.argv[1], "a"))
"""


def test_handlers_are_the_callers_too_and_held(daemon: Daemon, tmp_path: Path) -> None:
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(0o777)
    heard, config, script = tmp_path / "heard", tmp_path / "agentres.toml", tmp_path / "handler.py"
    script.write_text(_HANDLER)
    command = [sys.executable, str(script), str(heard)]
    config.write_text(
        '[alerts.fds]\nwarning = 5\nduration = "0s"\n[sampling]\ninterval = "1s"\n[handlers.terminal]\nenabled = false\n'
        f'[handlers.test]\ntype = "command"\ncommand = {json.dumps(command)}\n'
    )
    keep = "import os, sys; [os.open('/dev/null', 0) for _ in range(20)]; print('ready', flush=True); sys.stdin.read()"
    line = daemon.line("--config", str(config), command=python(keep))
    # As dev: where runuser asks PAM, as on Debian 12, that sets limits of its own.
    shell, at = (
        ["sh", "-c", 'ulimit -s 4096; exec nice -n 3 "$@"', "sh"],
        line.index(sys.executable),
    )
    agent = Popen([*line[:at], *shell, *line[at:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")  # fmt: skip
    daemon.begun.append(agent)
    ready(agent)
    wait_until(lambda: heard.exists() and heard.read_text().endswith("\n"), "an alert")
    assert heard.read_text().splitlines()[0] == f"256 {4096 * 1024} {4096 * 1024} 3"
    agent.communicate("", timeout=DEADLINE)


_ANOTHER = """
import os, socket, sys, time
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.settimeout(0.5)
try:
    sock.recv(1)  # accepted meanwhile
except TimeoutError:
    pass
sock.settimeout(60)
if (pid := os.fork()) != 0:
    os.execvp("sudo", ["sudo", "-n", "sleep", "3"])
while os.stat(f"/proc/{os.getppid()}").st_uid:
    time.sleep(0.01)
body = os.memfd_create("x")
os.write(body, sys.argv[2].encode())
null, here = os.open("/dev/null", os.O_RDWR), os.open("/", os.O_RDONLY)
socket.send_fds(sock, [b'{"agentres": 1, "do": "run", "streams": [0, 1, 2]}\\n'], [body, here, null, null, null])
print(sock.recv(1 << 16).decode())
"""


def submitted(**values: Any) -> str:
    asked = Submission(__version__, values, ["true"], {}, 0o22)
    return submission.write(asked).decode()


def test_who_lets_another_program_ask_is_refused(daemon: Daemon) -> None:
    """One that is executed with root's rights lifts its own limits first, as sudo does."""
    line = ["runuser", "-u", DEV, "--", *python(_ANOTHER, daemon.socket, submitted())]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=DEADLINE, cwd="/")  # fmt: skip
    assert "another one by now" in done.stdout, done.stderr


def test_streams_are_passed_as_they_are(daemon: Daemon) -> None:
    done = daemon.run(
        "--quiet",
        command=["sh", "-c", "tr a-z A-Z; echo told >&2; exit 7"],
        input="one\ntwo\n" * 20000,
    )
    assert (done.stdout, done.returncode) == ("ONE\nTWO\n" * 20000, 7)
    assert done.stderr == "told\n"


def test_its_disk_rate_holds_though_the_user_has_no_such_controller(
    daemon: Daemon, tmp_path: Path
) -> None:
    path = home_of("disk") / "agent" / "io.max"
    agent = daemon.begin("--name", "disk", "--io-write", "20MB/s", command=python("print('ready', flush=True); import sys; sys.stdin.read()"))  # fmt: skip
    ready(agent)
    assert "wbps=20000000" in path.read_text()
    agent.communicate("")
    assert agent.returncode == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_client_leaves_is_gone_in_two_seconds(daemon: Daemon, how: int) -> None:
    lines = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for depth in range(2):
    if os.fork():
        if depth: os._exit(0)
        break
    os.setsid()
else:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    print("ready", flush=True)
time.sleep(1000)
"""
    agent = daemon.begin("--name", "leased", command=python(lines))
    ready(agent)
    procs = home_of("leased") / "agent" / "cgroup.procs"
    events = home_of("leased") / "agent" / "cgroup.events"
    assert procs.exists()
    before = time.monotonic()
    if how == signal.SIGKILL:
        client_of(agent).kill()
        wait_until(lambda: not events.exists() or "populated 0" in events.read_text(), "empty")
        # A host does so in milliseconds; ten times that is what the emulator needs.
        assert time.monotonic() - before < 2
        wait_until(lambda: not home_of("leased").exists(), "removed")
        assert time.monotonic() - before < 3
    else:
        # It ignores the signal: the lease holds until the client goes.
        client_of(agent).send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            agent.wait(1)
        assert "populated 1" in events.read_text()
        client_of(agent).kill()
    agent.wait(DEADLINE)
    wait_until(lambda: not home_of("leased").exists(), "the scope is gone")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGQUIT"])
def test_signals_reach_the_agent(daemon: Daemon, name: str) -> None:
    code = """
import signal, sys
def told(number, frame):
    print(signal.Signals(number).name, flush=True)
    sys.exit(9)
signal.signal(getattr(signal, sys.argv[1]), told)
print("ready", flush=True)
while True: signal.pause()
"""
    agent = daemon.begin(command=python(code, name))
    ready(agent)
    client_of(agent).send_signal(getattr(signal, name))
    out, err = agent.communicate(timeout=DEADLINE)
    assert (out, agent.returncode) == (f"{name}\n", 9), err


def test_a_signal_that_ends_it_is_told(daemon: Daemon) -> None:
    agent = daemon.begin(command=["sh", "-c", "echo ready; exec sleep 1000"])
    ready(agent)
    client_of(agent).terminate()
    agent.communicate(timeout=DEADLINE)
    assert agent.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("command", "status"),
    [(["true"], 0), (["false"], 1), (["/nonexistent"], 127), (["/etc/passwd"], 126)],
)
def test_the_exit_status_is_the_commands(daemon: Daemon, command: list[str], status: int) -> None:
    done = daemon.run(command=command)
    assert done.returncode == status, done.stderr


def test_the_summary_is_the_clients_to_write(daemon: Daemon, tmp_path: Path) -> None:
    where = Path(f"/tmp/summary-{os.getpid()}.json")
    try:
        done = daemon.run("--summary", str(where), "--memory", "64M", command=["true"])
        assert done.returncode == 0, done.stderr
        assert where.stat().st_uid == pwd.getpwnam(DEV).pw_uid
        assert json.loads(where.read_text())["exit_code"] == 0
    finally:
        where.unlink(missing_ok=True)


def test_two_users_may_have_agents_of_one_name(daemon: Daemon) -> None:
    wait = ["sh", "-c", "echo ready; exec sleep 1000"]
    users = (DEV, "root", "nobody")
    agents = [daemon.begin("--name", "same", command=wait, user=user) for user in users]
    for agent in agents:
        ready(agent)
    found = registry.running(delegation.hierarchy().mount)
    owners = {agent.uid for agent in found if agent.name == "same"}
    assert owners == {pwd.getpwnam(user).pw_uid for user in users}
    again = daemon.run("--name", "same", command=["true"])
    assert again.returncode == 125
    assert "an agent named same is running" in again.stderr
    for agent in agents:
        client_of(agent).terminate()
        agent.communicate(timeout=DEADLINE)


CEILINGS = """
[ceilings.all]
agents = 1
memory = "100M"
[ceilings.dev]
users = ["dev"]
agents = 2
memory = "200M"
pids = 50
cpuset = 1
"""


def test_nobody_gets_more_than_the_ceilings_let(daemon: Daemon) -> None:
    daemon.reload(CEILINGS)
    refused = daemon.run("--memory", "300M", command=["true"])
    assert refused.returncode == 125
    assert "--memory: 300 MiB is above the ceiling of 200 MiB for dev" in refused.stderr
    agent = daemon.begin("--name", "low", command=["sh", "-c", "echo ready; exec sleep 1000"])
    ready(agent)
    inside = home_of("low") / "agent"
    assert int((inside / "pids.max").read_text()) == 50
    assert int((inside / "memory.max").read_text()) <= 200 * 2**20
    assert (inside / "cpuset.cpus").read_text().strip().isdecimal()
    raised = subprocess.run(
        ["runuser", "-u", DEV, "--", "env", f"PATH={os.environ['PATH']}", *AGENTRES, "set", "low", "--memory", "300M"],
        capture_output=True, text=True, check=False, timeout=DEADLINE,
    )  # fmt: skip
    assert raised.returncode != 0
    assert "ceiling" in raised.stderr
    refused = daemon.run("--cpuset", "0-1", command=["true"])
    assert "--cpuset: 2 CPUs is above the ceiling of 1 CPU for dev" in refused.stderr
    other = daemon.begin("--name", "two", command=["sh", "-c", "echo ready; exec sleep 1000"])
    ready(other)
    third = daemon.run(command=["true"])
    assert third.returncode == 125
    assert "dev has 2 agents, and may have 2" in third.stderr
    nobody = daemon.run("--memory", "150M", command=["true"], user="nobody")
    assert "above the ceiling of 100 MiB for nobody" in nobody.stderr
    for one in (agent, other):
        client_of(one).terminate()
        one.communicate(timeout=DEADLINE)


def test_a_ceiling_may_be_a_groups(daemon: Daemon) -> None:
    daemon.reload('[ceilings.team]\ngroups = ["dev"]\nmemory = "100M"\n')
    refused = daemon.run("--memory", "300M", command=["true"])
    assert refused.returncode == 125
    assert "--memory: 300 MiB is above the ceiling of 100 MiB for dev" in refused.stderr
    done = daemon.run("--memory", "300M", command=["true"], user="nobody")
    assert done.returncode == 0, done.stderr


OTHER_VERSION = """
import sys
import agentres
agentres.__version__ = "0.0.1"
sys.argv[0] = "agentres"
from agentres.__main__ import main
main()
"""


def test_a_client_of_another_version_is_refused_in_a_line(daemon: Daemon) -> None:
    line = daemon.line(command=["true"])
    at = line.index("run")
    of_other = [sys.executable, "-P", "-c", OTHER_VERSION]
    line[at - len(AGENTRES) : at] = of_other
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=DEADLINE, cwd="/")  # fmt: skip
    assert done.returncode == 125
    (said,) = done.stderr.splitlines()
    assert "the daemon is of version" in said
    assert "and this is 0.0.1" in said
    assert "systemctl restart agentres" in said


def test_root_has_no_ceiling(daemon: Daemon) -> None:
    daemon.reload(CEILINGS)
    done = daemon.run("--memory", "300M", command=["true"], user="root")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--user", "root"], "only root may run an agent as another user"),
        (["--isolate=no"], "--local runs it without"),
        (["--escaped=move"], "--escaped kill ends them with the run"),
    ],
)
def test_what_is_roots_alone_is_refused(daemon: Daemon, options: list[str], words: str) -> None:
    done = daemon.run(*options, command=["true"])
    assert done.returncode == 125
    assert words in done.stderr


def test_doctor_knows_it(daemon: Daemon) -> None:
    """A user without a manager of its own gets agents by the daemon, and by nobody else."""
    line = daemon.line(command=["true"], user="nobody")
    at = line.index("run")
    doctor = [*line[:at], "doctor", "--json"]
    done = subprocess.run(doctor, capture_output=True, text=True, check=False, timeout=DEADLINE, cwd="/")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert str(daemon.socket) in found["daemon"]["detail"]
    assert found["cgroup"]["status"] == "refused"


def test_local_is_not_the_daemons(daemon: Daemon) -> None:
    agent = daemon.begin("--local", "--name", "own", command=["sh", "-c", "echo ready; exec sleep 1000"], user="root")  # fmt: skip
    ready(agent)
    assert keeper_of("own", "root").pid == client_of(agent).pid
    client_of(agent).terminate()
    agent.communicate(timeout=DEADLINE)


def test_who_lives_in_other_namespaces_is_refused(daemon: Daemon) -> None:
    line = daemon.line(command=["true"], user="root")
    done = subprocess.run(["unshare", "-n", *line], capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "yours has its own (net)" in done.stderr


def test_a_priority_above_normal_is_refused_unless_it_is_given(daemon: Daemon) -> None:
    refused = daemon.run("--priority", "high", command=["true"])
    assert refused.returncode == 125
    assert "above the ceiling of 100 for dev" in refused.stderr
    daemon.reload('[ceilings.dev]\nusers = "dev"\npriority = "high"\n')
    assert daemon.run("--priority", "high", command=["true"]).returncode == 0


def test_who_sends_what_makes_no_sense_hurts_nobody(daemon: Daemon) -> None:
    def sent(data: bytes, *fds: int) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(str(daemon.socket))
            try:
                if fds:
                    socket.send_fds(sock, [data], list(fds))
                else:
                    sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                return sock.recv(1 << 16)
            except OSError:  # it has hung up in the middle
                return b""

    held = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(20)]
    for silent in held:  # who says nothing keeps nobody from anything
        silent.connect(str(daemon.socket))
    good = b'{"agentres": 1, "do": "run", "streams": [0, 1, 2]}\n'
    with open("/dev/null") as nothing, open(os.memfd_create("x"), "wb") as body:
        body.write(b'{"version": ')
        body.flush()
        null, half = nothing.fileno(), body.fileno()
        answers = [
            sent(os.urandom(1000)), sent(b"{"), sent(b"\n"), sent(b"[]\n"), sent(b"x" * 10_000_000),
            sent(b"[" * 4000 + b"\n"), sent(b'{"agentres": 2, "do": "run", "streams": []}\n'),
            sent(good), sent(good, null), sent(good, null, null, null, null, null),
            sent(good, half, null, null, null, null), sent(good[:-1]), sent(good + b"more", null),
            sent(b'{"agentres": 1, "do": "run", "streams": [0, 0]}\n'),
        ]  # fmt: skip
        for values in ({"memory": True}, {"io_write": "1MB/s"}, {"quiet": "1"}, {"nothing": "1"}):
            with open(os.memfd_create("y"), "w") as asked:
                asked.write(submitted(**values))
                asked.flush()
                cwd = os.open("/", os.O_RDONLY)
                answer = sent(good, asked.fileno(), cwd, null, null, null)
                os.close(cwd)
            assert "error" in json.loads(answer)["failed"]
            assert "fault" not in answer.decode()
    for answer in answers:
        if answer:
            assert "error" in json.loads(answer)["failed"], answer
    assert daemon.run(command=["true"]).returncode == 0
    for silent in held:
        silent.close()
    wait_until(lambda: not psutil.Process(daemon.process.pid).children(), "no child is left")


def test_an_agent_cannot_ask_for_another(daemon: Daemon) -> None:
    inner = [*AGENTRES, "run", "--", "true"]
    done = daemon.run(command=["env", f"AGENTRES_SOCKET={daemon.socket}", *inner])
    assert done.returncode == 125
    assert "an agent's own agents live inside its limits" in done.stderr
    assert "run the outer one with --local" in done.stderr


def test_it_serves_one_socket_once(daemon: Daemon) -> None:
    second = subprocess.run(
        [*AGENTRES, "daemon"], env=daemon.environment, capture_output=True, text=True, check=False
    )
    assert second.returncode != 0
    assert "serves" in second.stderr


def test_everybody_may_ask_it(daemon: Daemon) -> None:
    assert daemon.socket.stat().st_mode & 0o777 == 0o666
