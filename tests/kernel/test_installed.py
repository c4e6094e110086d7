"""As an administrator has it: installed by scripts/install, and run by systemd."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import DEADLINE, ROOT, agents_cgroup, wait_until

TREE = Path(__file__).parents[2]
WHEELS = Path("/opt/agentres/wheels")
PREFIX = Path("/opt/installed")
AGENTRES = str(PREFIX / "bin" / "agentres")
AGENTS = Path("/etc/agentres/agents.d")
UNITS = ("agentres.service", "agentres.socket", "agentres.slice", "agentres@x.service")
DEV = "dev"

pytestmark = [
    pytest.mark.skipif(not ROOT, reason="root installs"),
    pytest.mark.skipif(not WHEELS.is_dir(), reason="only the project's VM has what pip needs"),
]


def call(*line: str, check: bool = True, **kwargs: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300, **kwargs)  # type: ignore[call-overload]
    assert isinstance(done, subprocess.CompletedProcess)
    said = done.stdout + done.stderr
    if check and done.returncode and line[:2] == ("systemctl", "start"):
        said += call("journalctl", "--unit", line[2], "--lines", "30", check=False).stdout
    assert not check or done.returncode == 0, said
    return done


def as_user(user: str, *line: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """In a session of its own, with the groups that it has now."""
    home = pwd.getpwnam(user).pw_dir
    return call("setpriv", f"--reuid={user}", f"--regid={user if user == DEV else 'nogroup'}", "--init-groups",
                "env", "-i", f"HOME={home}", f"PATH={PREFIX}/bin:/usr/bin:/bin", *line, check=check, cwd="/")  # fmt: skip


def in_etc() -> set[Path]:
    return {path for path in Path("/etc/systemd").rglob("*agentres*") if not path.is_dir()}


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    before = in_etc()
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS)}
    line = [str(TREE / "scripts" / "install"), "--prefix", str(PREFIX)]
    done = subprocess.run(
        line, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    call("systemctl", "enable", "--now", "agentres.socket")
    call("usermod", "-aG", "agentres", DEV)
    yield
    call(str(TREE / "scripts" / "uninstall"), "--prefix", str(PREFIX))
    call("gpasswd", "-d", DEV, "agentres")
    call("groupdel", "agentres")
    assert in_etc() == before
    assert not (PREFIX / "lib" / "agentres").exists()
    assert not Path("/run/agentres").exists()
    shutil.rmtree(PREFIX)
    shutil.rmtree("/etc/agentres")


@contextlib.contextmanager
def described(name: str, text: str) -> Iterator[str]:
    """An agent's unit, whose file is gone afterwards."""
    path = AGENTS / f"{name}.toml"
    path.write_text(text)
    call("systemctl", "daemon-reload")
    unit = f"agentres@{name}.service"
    try:
        yield unit
    finally:
        call("systemctl", "stop", unit, check=False)
        call("systemctl", "reset-failed", unit, check=False)
        path.unlink()
        call("systemctl", "daemon-reload")


def state(unit: str, name: str) -> str:
    return call("systemctl", "show", unit, f"--property={name}", "--value").stdout.strip()


def agent_of(name: str) -> Path:
    return agents_cgroup() / f"agentres@{name}.service" / "agent"


def test_the_units_make_sense_to_systemd() -> None:
    done = call("systemd-analyze", "verify", "--man=no", *UNITS, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_how_much_of_the_daemon_is_closed() -> None:
    done = call("systemd-analyze", "security", "--no-pager", "agentres.service")
    exposure = re.search(r"Overall exposure level for agentres.service: ([0-9.]+)", done.stdout)
    assert exposure is not None, done.stdout
    assert float(exposure[1]) <= 7.3  # 9.6 without any of it; docs/daemon.md


def test_there_are_a_man_page_and_completion() -> None:
    page = (PREFIX / "share/man/man1/agentres.1").read_text()
    assert "agentres run" in page
    assert "_AGENTRES_COMPLETE" in (PREFIX / "share/bash-completion/completions/agentres").read_text()  # fmt: skip


def test_a_member_of_the_group_gets_what_needs_root() -> None:
    with_limit = subprocess.Popen(
        ["setpriv", "--reuid=dev", "--regid=dev", "--init-groups", AGENTRES, "run", "--name", "held",
         "--io-write", "20MB/s", "--", "sh", "-c", "echo ready; read line; exit 7"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
        env={"PATH": "/usr/bin:/bin", "HOME": "/home/dev"},
    )  # fmt: skip
    assert with_limit.stdout is not None
    assert with_limit.stdout.readline() == "ready\n"
    home = agents_cgroup() / f"agentres-{pwd.getpwnam(DEV).pw_uid}:held.scope"
    assert "wbps=20000000" in (home / "agent" / "io.max").read_text()
    # It goes on while the service does not.
    call("systemctl", "restart", "agentres.service")
    killed = state("agentres.service", "MainPID")
    call("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "agentres.service")
    # systemd has it as active until it hears of the kill.
    wait_until(lambda: state("agentres.service", "MainPID") not in (killed, "0"), "another daemon")
    wait_until(lambda: state("agentres.service", "ActiveState") == "active", "it is back")
    assert "populated 1" in (home / "cgroup.events").read_text()
    with_limit.communicate("\n", timeout=DEADLINE)
    assert with_limit.returncode == 7
    call("systemctl", "reload", "agentres.service")


# What is loaded of it by a process of another version fails.
OF_ONE_VERSION = """
import agentres as _of_one_version
assert _of_one_version.__version__ == "0.1.999", "of another version"
"""


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The wheel of a version that shares no module with this one, made without an environment of its own."""
    tree = tmp_path / "newer"
    shutil.copytree(TREE, tree, ignore=shutil.ignore_patterns("tests", "__pycache__", ".*"))
    package = tree / "src" / "agentres"
    for path in package.rglob("*.py"):
        if path.read_text().strip():
            path.write_text(path.read_text() + OF_ONE_VERSION)
    first = package / "__init__.py"
    first.write_text(re.sub('__version__ = ".*"', '__version__ = "0.1.999"', (package / "__init__.py").read_text()).replace(OF_ONE_VERSION, ""))  # fmt: skip
    call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(tmp_path), str(tree))  # fmt: skip
    [wheel] = tmp_path.glob("*.whl")
    return wheel


@pytest.fixture
def clean() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def end(*agents: subprocess.Popen[str]) -> None:
    """Leave none to the next test, whatever became of this one."""
    for agent in agents:
        if agent.poll() is None:
            agent.kill()
            agent.communicate()
    homes = agents_cgroup()
    wait_until(lambda: not [*homes.glob("*kept-*"), *homes.glob("*alone*")], "they have gone")


def test_an_upgrade_loses_none_of_twenty_agents_and_no_alert(newer: Path, clean: contextlib.ExitStack) -> None:  # fmt: skip
    older = PREFIX / "older"
    ends = (
        'for n in 3 4 5 6 7 8 9; do eval "exec $n</dev/null"; done; echo ready; read line; exit 7'
    )
    rules = "/etc/agentres/agentres.toml"
    Path(rules).write_text(
        '[alerts.fds]\nwarning = 5\nduration = "0s"\n[sampling]\ninterval = "1s"\n'
    )
    call("systemctl", "restart", "agentres.service")
    user = ["setpriv", "--reuid=dev", "--regid=dev", "--init-groups"]

    def begin(name: str, *line: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*line, AGENTRES, "run", "--name", name, "--memory", "20M", *([] if line else ["--local"]), "--", "sh", "-c", ends],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
            env={"PATH": "/usr/bin:/bin", "HOME": "/home/dev" if line else "/root"},
        )  # fmt: skip

    kept = [begin(f"kept-{n}", *user) for n in range(20)]
    alone = begin("alone")
    clean.callback(end, *kept, alone)
    for agent in (*kept, alone):
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
    shown = [AGENTRES, "show", "kept-7"]
    wait_until(lambda: "fds" in as_user(DEV, *shown).stdout, "an alert")
    call("systemctl", "reload", "agentres.service")
    call("systemctl", "stop", "agentres.service")
    call("systemctl", "start", "agentres.service")
    assert "fds" in as_user(DEV, *shown).stdout
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS)}
    line = [str(TREE / "scripts" / "install"), "--wheel", str(newer), "--prefix", str(PREFIX)]
    [packages] = (PREFIX / "lib" / "agentres" / "lib").glob("python3*/site-packages")
    shutil.copytree(packages, older, symlinks=True)
    try:
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=500)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "the daemon was restarted" in done.stdout + done.stderr
        assert "0.1.999" in call(AGENTRES, "--version").stdout
        # Those that the daemon has had run answer as before; one that ran alone says why it cannot, and how it ends.
        assert "fds" in as_user(DEV, *shown).stdout
        as_user(DEV, AGENTRES, "set", "kept-7", "--memory", "30M")
        refused = call(AGENTRES, "show", "alone", check=False)
        assert "agentres was upgraded" in refused.stderr
        for agent in (*kept, alone):
            _, err = agent.communicate("\n", timeout=DEADLINE)
            assert agent.returncode == 7, err
        assert as_user(DEV, AGENTRES, "run", "--", "true").returncode == 0
    finally:
        Path(rules).unlink()
        shutil.rmtree(packages)
        older.rename(packages)
        call("systemctl", "restart", "agentres.service")


def test_a_daemon_that_hangs_is_replaced_and_its_agents_go_on() -> None:
    drop_in = Path("/run/systemd/system/agentres.service.d/watchdog.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nWatchdogSec=2\n")
    call("systemctl", "daemon-reload")
    try:
        call("systemctl", "restart", "agentres.service")
        agent = subprocess.Popen(
            ["setpriv", "--reuid=dev", "--regid=dev", "--init-groups", AGENTRES, "run", "--", "sh", "-c", "echo ready; read line; exit 7"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
            env={"PATH": "/usr/bin:/bin", "HOME": "/home/dev"},
        )  # fmt: skip
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        hung = int(state("agentres.service", "MainPID"))
        os.kill(hung, signal.SIGSTOP)
        wait_until(lambda: state("agentres.service", "MainPID") not in (str(hung), "0"), "another one")  # fmt: skip
        agent.communicate("\n", timeout=DEADLINE)
        assert agent.returncode == 7
    finally:
        drop_in.unlink()
        drop_in.parent.rmdir()
        call("systemctl", "daemon-reload")
        call("systemctl", "restart", "agentres.service")


def test_who_is_not_in_the_group_is_not_the_daemons() -> None:
    socket = Path("/run/agentres/agentres.sock").stat()
    assert socket.st_mode & 0o777 == 0o660
    done = as_user("nobody", AGENTRES, "run", "--", "true", check=False)
    assert done.returncode == 125
    assert "has no systemd user manager" in done.stderr


_REACHES = """
import json, socket
told = {}
for path in ("/run/agentres/agentres.sock", "/run/dbus/system_bus_socket", "/run/systemd/private"):
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        told[path] = "connected"
    except OSError as error:
        told[path] = type(error).__name__
print(json.dumps(told))
"""


def test_a_users_agent_by_the_daemon_reaches_no_manager() -> None:
    outside = json.loads(as_user(DEV, sys.executable, "-c", _REACHES).stdout)
    assert outside["/run/agentres/agentres.sock"] == "connected"  # else nothing is shown
    inside = json.loads(as_user(DEV, AGENTRES, "run", "--quiet", "--", sys.executable, "-c", _REACHES).stdout)  # fmt: skip
    assert "connected" not in inside.values()


def test_an_agent_is_a_unit() -> None:
    text = (
        '[agent]\ncommand = ["sh", "-c", "echo here; exec sleep 1000"]\npriority = "high"\n[limits]\nmemory = "64M:256M"\n'
        '[sampling]\ninterval = "1s"\n[scaling]\nphilosophy = "conservative"\n[alerts.fds]\nwarning = 2\nduration = "0s"\n'
    )
    with described("unit", text) as unit:
        call("systemctl", "start", unit)
        assert state(unit, "ActiveState") == "active"
        agent = agent_of("unit")
        assert "populated 1" in (agent / "cgroup.events").read_text()
        assert (agent.parent / "cpu.weight").read_text() == "400\n"
        assert int(state(unit, "MainPID")) in map(int, (agent.parent / "supervisor" / "cgroup.procs").read_text().split())  # fmt: skip
        uid = os.stat(f"/proc/{(agent / 'main' / 'cgroup.procs').read_text().split()[0]}").st_uid
        assert uid >= 0x70000000  # one of its own

        def shown() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(call(AGENTRES, "show", "unit", "--json").stdout)
            return found

        assert shown()["philosophy"] == "conservative"
        wait_until(
            lambda: [a["rule"] for a in shown()["alerts"]] == ["fds"], "the alert of its file"
        )
        assert (agents_cgroup() / "memory.max").read_text() != "max\n"
        (AGENTS / "unit.toml").write_text(text.replace("64M:256M", "100M"))
        call("systemctl", "reload", unit)
        assert (agent / "memory.max").read_text() == f"{100 * 2**20}\n"
        again = call(AGENTRES, "unit", "run", "unit", check=False)
        assert "an agent named unit is running" in again.stderr
        call("systemctl", "stop", unit)
        # systemd forgets what did not fail, and 143 is no failure.
        assert state(unit, "ActiveState") == "inactive"
        assert not agent.parent.exists()
    assert "here" in call(AGENTRES, "logs", "unit").stdout


@pytest.mark.parametrize("status", [0, 7])
def test_its_exit_status_is_the_units(status: int) -> None:
    with described("ends", f'[agent]\ncommand = ["sh", "-c", "sleep 1; exit {status}"]\n') as unit:
        call("systemctl", "start", unit)
        wait_until(lambda: state(unit, "ActiveState") in ("inactive", "failed"), "its end")
        assert state(unit, "ExecMainStatus") == str(status)
        assert state(unit, "ActiveState") == ("failed" if status else "inactive")


def test_one_that_cannot_be_enforced_does_not_start() -> None:
    with described("never", '[agent]\ncommand = ["true"]\nuser = "nobody-of-this-name"\n') as unit:
        done = call("systemctl", "start", unit, check=False)
        assert done.returncode != 0
        assert state(unit, "ExecMainStatus") == "125"


def test_it_restarts_and_waits_longer_each_time() -> None:
    text = '[agent]\ncommand = ["false"]\nrestart = "on-failure"\nrestart_delay = "1s"\nrestart_delay_max = "1h"\n'
    with described("again", text) as unit:
        assert (state(unit, "Restart"), state(unit, "RestartSteps")) == ("on-failure", "8")
        call("systemctl", "start", unit, check=False)
        wait_until(lambda: int(state(unit, "NRestarts")) >= 1, "it starts again")
        wait_until(lambda: state(unit, "RestartUSecNext") not in ("1s", "infinity"), "it waits longer")  # fmt: skip


def test_a_killed_supervisor_takes_nothing_with_it_for_good() -> None:
    text = '[agent]\ncommand = ["sleep", "1000"]\nrestart = "always"\n'
    with described("killed", text) as unit:
        call("systemctl", "start", unit)
        before = state(unit, "MainPID")
        os.kill(int(before), 9)
        # Right after the signal it is "active" still, with the process that was killed.
        wait_until(lambda: state(unit, "MainPID") not in (before, "0") and state(unit, "ActiveState") == "active", "it is back")  # fmt: skip
        procs = (agent_of("killed") / "main" / "cgroup.procs").read_text().split()
        assert len(procs) == 1


def test_what_is_enabled_starts_with_the_host() -> None:
    with described("boots", '[agent]\ncommand = ["sleep", "1000"]\n') as unit:
        call("systemctl", "enable", unit)
        try:
            # What boot does; a target that is there already starts what it lacks.
            call("systemctl", "start", "multi-user.target")
            wait_until(lambda: state(unit, "ActiveState") == "active", "it runs")
        finally:
            call("systemctl", "disable", unit)


def test_files_of_agents_are_checked() -> None:
    with described("wrong", '[agent]\ncommand = "x"\n'):
        done = call(AGENTRES, "unit", "check", check=False)
        assert done.returncode == 1
        assert "agents.d/wrong.toml: agent.command" in done.stderr


def test_with_agents_it_is_not_taken_away() -> None:
    with described("stays", '[agent]\ncommand = ["sleep", "1000"]\n') as unit:
        call("systemctl", "start", unit)
        done = call(str(TREE / "scripts" / "uninstall"), "--prefix", str(PREFIX), check=False)
        assert done.returncode != 0
        assert "agents run: stays" in done.stderr
        assert Path(AGENTRES).exists()
