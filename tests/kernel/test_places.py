"""Where an agent can live: a service with Delegate=yes, a delegated cgroup without systemd, inside
another agent.  (The scopes of systemd's managers are what all other tests use.)
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shlex import join, quote

import pytest
from conftest import AGENTRES, ROOT, RunAgent, not_by_daemon, once, wait_until

SHOW = "cat /proc/self/cgroup"


def sh(*command: str, check: bool = True, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=check, timeout=120, **kwargs
    )  # type: ignore[call-overload,no-any-return]


SYSTEMD = int(sh("systemctl", "--version").stdout.split()[1].split(".")[0].split("~")[0])


def service(*properties: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command as a transient service of our manager, to its end."""
    line = [
        "systemd-run",
        *([] if ROOT else ["--user"]),
        "--quiet",
        "--wait",
        "--pipe",
        "--collect",
    ]
    options = [option for each in properties for option in ("-p", each)]
    # The user manager's environment knows nothing of this Python's path.
    return sh(*line, "--unit=agentres-test", *options, "--", *command, check=False)


def test_a_service_with_delegation_keeps_its_agent() -> None:
    command = [*AGENTRES, "run", "--name", "inner", "--memory", "64M", "--", "sh", "-c", SHOW]
    done = service("Delegate=yes", command=command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(
        "/agentres-test.service/agentres.slice/agentres-inner/agent/main"
    )


@once
def test_a_service_that_may_open_no_unix_socket_has_agents_that_take_no_commands() -> None:
    agentres = join(AGENTRES)
    script = f"""
        {agentres} run --quiet --name deaf --pids 64 -- sh -c 'until [ -e /run/agentres-deaf ]; do sleep 0.1; done' &
        until {agentres} ps | grep -q ^deaf; do sleep 0.1; done
        {agentres} set deaf --pids 32
        echo set: $?
        touch /run/agentres-deaf
        wait $!
        echo run: $?
        rm /run/agentres-deaf
    """
    done = service("Delegate=yes", "RestrictAddressFamilies=AF_INET", command=["sh", "-c", script])
    assert done.stdout.splitlines() == ["set: 1", "run: 0"], done.stderr
    assert "agentres: the supervisor of deaf could not listen: it takes no commands" in done.stderr


@pytest.mark.skipif(SYSTEMD < 254, reason="DelegateSubgroup= came with systemd 254")
def test_a_service_with_a_subgroup() -> None:
    command = [*AGENTRES, "run", "--name", "inner", "--", "sh", "-c", SHOW]
    done = service("Delegate=yes", "DelegateSubgroup=payload", command=command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(
        "/agentres-test.service/agentres.slice/agentres-inner/agent/main"
    )


def test_a_service_whose_script_runs_agents_one_after_and_beside_another() -> None:
    """The script shares the service's cgroup: it makes room, and is put back."""
    run = f"{' '.join(AGENTRES)} run --quiet --memory 64M --name"
    script = f"""
        set -e
        own() {{ cut -d: -f3 /proc/self/cgroup; }}
        before=$(own)
        {run} a -- sh -c 'sleep 1; exit 0' &
        {run} b -- sh -c 'sleep 2; exit 0' &
        {run} c -- sh -c 'exit 0'
        wait
        test "$(own)" = "$before" || {{ own; echo not put back; exit 1; }}
        {run} d -- sh -c 'exit 0'
        test "$(own)" = "$before"
        find /sys/fs/cgroup$before -mindepth 1 -type d
        cat /sys/fs/cgroup$before/cgroup.subtree_control
    """
    done = service("Delegate=yes", command=["bash", "-c", script])
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr + done.stdout


@not_by_daemon("there is no place for agents inside an agent, see test_daemon.py")
def test_an_agent_inside_an_agent_stays_inside(agentres_run: RunAgent) -> None:
    inner = [*AGENTRES, "run", "--quiet", "--name", "inner", "--memory", "64M", "--", "sh", "-c"]
    run = agentres_run("--name", "outer", command=[*inner, SHOW], check=True)
    assert run.out.strip().endswith(
        "agentres-outer.scope/agent/main/agentres.slice/agentres-inner/agent/main"
    )


needs_root = pytest.mark.skipif(not ROOT, reason="makes the cgroup to delegate: root only")


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A cgroup of dev's own with all controllers, outside of what systemd manages for dev."""
    path = Path("/sys/fs/cgroup/agentres-test")
    (path.parent / "cgroup.subtree_control").write_text("+cpu +memory +io +pids")
    path.mkdir()
    for file in (path, path / "cgroup.procs", path / "cgroup.subtree_control"):
        sh("chown", "dev:", str(file))
    yield path
    wait_until(lambda: not (path / "cgroup.procs").read_text(), "the test's processes are gone")
    path.rmdir()


def without_systemd(
    cgroup: Path, script: str, user: str = "dev"
) -> subprocess.CompletedProcess[str]:
    """Run a script in the cgroup as ``user``, in a mount namespace where systemd is not to be seen."""
    enter = f"""
        echo 0 > {cgroup}/cgroup.procs
        mount -t tmpfs none /run/systemd
        mount -t tmpfs none /run/user
        exec setpriv --reuid {user} --regid {user} --init-groups env HOME=/tmp bash -c {quote(script)}
    """
    return sh("unshare", "--mount", "bash", "-e", "-c", enter, check=False, cwd="/tmp")


@needs_root
@pytest.mark.parametrize("user", ["dev", "root"])
def test_a_delegated_cgroup_without_systemd(delegated: Path, user: str) -> None:
    run = f"{' '.join(AGENTRES)} run --quiet --name direct --memory 64M --io-write 5M --pids 20"
    script = f'{run} -- sh -c "{SHOW}; exit 4"; echo $?; cat /proc/self/cgroup'
    done = without_systemd(delegated, script, user)
    assert done.stdout.split() == [
        "0::/agentres-test/agentres.slice/agentres-direct/agent/main",
        "4",
        "0::/agentres-test",
    ], done.stderr
    assert [p for p in delegated.iterdir() if p.is_dir()] == []


@needs_root
def test_limits_hold_there(delegated: Path) -> None:
    grow = "held = [bytearray(1 << 20) for _ in range(300)]"
    hog = f"{' '.join(AGENTRES)} run --memory 64M -- python3 -c {quote(grow)}"
    done = without_systemd(delegated, f"{hog}; echo $?")
    assert done.stdout.strip() == "137", done.stderr
    assert "1 process was killed" in done.stderr


@needs_root
def test_the_kernel_holds_all_agents_to_the_budget_there(delegated: Path) -> None:
    slice = delegated / "agentres.slice"
    wait = f"until test $(cat {slice}/memory.max) != max; do sleep 0.1; done"
    show = f"{wait}; cat {slice}/memory.max {slice}/cpu.max"
    done = without_systemd(delegated, f"{' '.join(AGENTRES)} run --quiet -- sh -c {quote(show)}")
    memory, cpu, _ = done.stdout.split()
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert int(memory) == pytest.approx(0.8 * host, abs=4096), done.stderr
    assert int(cpu) == round(0.8 * (os.cpu_count() or 1) * 100_000)


@needs_root
def test_a_killed_supervisor_is_swept_by_the_next_run(delegated: Path) -> None:
    run = f"{' '.join(AGENTRES)} run --quiet"
    group = f"{delegated}/agentres.slice/agentres-old"
    script = f"""
        pid=$(mktemp); mkfifo $pid.fifo
        {run} --name old --orphan keep -- sh -c 'echo $PPID > '$pid'; read line' < $pid.fifo &
        exec 3> $pid.fifo
        until test -s $pid; do sleep 0.1; done
        kill -9 $(cat $pid); wait %1
        grep 'populated 1' {group}/cgroup.events
        exec 3>&-  # the agent reads its end and leaves
        until grep -q 'populated 0' {group}/cgroup.events; do sleep 0.1; done
        rm $pid $pid.fifo
        {run} --name new -- true; echo $?
    """
    done = without_systemd(delegated, script)
    assert done.stdout == "populated 1\n0\n", done.stderr
    assert [p for p in delegated.iterdir() if p.is_dir()] == []


@needs_root
def test_a_name_that_is_taken_there(delegated: Path) -> None:
    run = f"{' '.join(AGENTRES)} run --quiet --name twin"
    done = without_systemd(delegated, f"{run} -- {run} -- true; {run} -- true; echo $?")
    # The inner one is inside the outer one: another cgroup, so another name space.
    assert done.stdout.strip() == "0", done.stderr
    script = f"""
        mkfifo /tmp/agentres-test-fifo
        {run} -- cat /tmp/agentres-test-fifo &
        exec 3> /tmp/agentres-test-fifo   # opens when cat does: the first one runs
        {run} -- true; echo $?
        exec 3>&-; wait; rm /tmp/agentres-test-fifo
    """
    done = without_systemd(delegated, script)
    assert done.stdout.strip() == "125", done.stderr
    assert "an agent named twin is running" in done.stderr


@needs_root
def test_no_delegation_is_refused_with_the_remedy() -> None:
    script = f"{' '.join(AGENTRES)} run -- echo ran; echo $?"
    hide = "mount -t tmpfs none /run/user"
    become = f"exec setpriv --reuid nobody --regid nogroup --clear-groups bash -c {quote(script)}"
    done = sh("unshare", "--mount", "bash", "-e", "-c", f"{hide}; {become}", cwd="/")
    assert done.stdout == "125\n"
    assert done.stderr.count("\n") == 1
    assert "no systemd user manager" in done.stderr
    assert "loginctl enable-linger" in done.stderr


@needs_root
def test_a_hybrid_host_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """A stand-in: a v1 hierarchy beside a cgroup2 mount whose root has no controllers."""
    run = " ".join([*AGENTRES, "run"])
    inside = f"""
        mount -t tmpfs none /run/systemd
        umount --lazy /sys/fs/cgroup
        mount -t cgroup2 none /sys/fs/cgroup
        {run} -- echo ran; echo $?
        {run} --best-effort --pids 50 --timeout 60s -- sh -c "echo ran anyway"; echo $?
    """
    # A child of a cgroup that enables nothing has no controllers.
    bare = "/sys/fs/cgroup/agentres-test/bare"
    script = f"""
        mkdir -p {bare}
        echo 0 > {bare}/cgroup.procs
        mkdir {tmp_path}/v1
        mount -t cgroup -o none,name=agentres-test none {tmp_path}/v1
        unshare --cgroup --mount bash -c {quote(inside)}
        umount {tmp_path}/v1
        echo 0 > /sys/fs/cgroup/cgroup.procs
        rmdir {bare} /sys/fs/cgroup/agentres-test
    """
    done = sh("bash", "-c", script, cwd="/tmp")
    lines = done.stdout.split("\n")
    assert lines[:4] == ["125", "ran anyway", "0", ""], done.stderr
    first, *rest = done.stderr.splitlines()
    assert "cgroup v1 holds the controllers" in first
    assert "systemd.unified_cgroup_hierarchy=1" in first
    missing = [line for line in rest if "NOT enforced" in line]
    assert [line.split()[3] for line in missing] == [
        "cpu.max", "memory.oom.group", "memory.max", "memory.swap.max", "pids.max",
    ]  # fmt: skip  # disk rates hold without a controller, by pausing it


def test_doctor_agrees_with_run() -> None:
    done = sh(*AGENTRES, "doctor", "--json")
    report = json.loads(done.stdout)
    assert report["run"] is True
    status = {row["check"]: row["status"] for row in report["findings"]}
    assert {status[file] for file in ("cpu.max", "memory.max", "pids.max")} == {"ok"}
    assert status["io.max"] == "ok" if ROOT else status["io.max"] in ("ok", "missing")
    (disk,) = [row["detail"] for row in report["findings"] if row["check"] == "io.max"]
    assert "by pausing" in disk


@needs_root
def test_doctor_where_run_is_refused() -> None:
    hide = "mount -t tmpfs none /run/user"
    script = f"{' '.join(AGENTRES)} doctor --json"
    become = f"exec setpriv --reuid nobody --regid nogroup --clear-groups {script}"
    done = sh("unshare", "--mount", "bash", "-e", "-c", f"{hide}; {become}", check=False, cwd="/")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["run"] is False
    (refused,) = [row for row in report["findings"] if row["status"] == "refused"]
    assert "loginctl enable-linger" in refused["remedy"]


@needs_root
def test_the_remedy_for_io_works() -> None:
    """What doctor tells a user whose manager does not delegate io gives that user io.max."""
    dev = ["runuser", "-l", "dev", "-c"]
    uid = sh("id", "-u", "dev").stdout.strip()
    session = f"export XDG_RUNTIME_DIR=/run/user/{uid}; cd /; "
    report = json.loads(sh(*dev, f"{session}{' '.join(AGENTRES)} doctor --json").stdout)
    (row,) = [row for row in report["findings"] if row["check"] == "io.max"]
    assert row["status"] == "missing"
    assert "held on average by pausing the agent" in row["detail"]
    command, _, then = row["remedy"].partition(", then ")
    assert then == "log in again"
    sh("bash", "-c", command.replace("sudo ", ""))
    try:
        sh("systemctl", "restart", f"user@{uid}.service")
        line = (
            f"{session}{' '.join(AGENTRES)} run --quiet --io-strict off --io-write 5M -- echo ran"
        )
        assert sh(*dev, line).stdout == "ran\n"
    finally:
        Path("/etc/systemd/system/user@.service.d/delegate.conf").unlink()
        sh("systemctl", "daemon-reload")
        sh("systemctl", "restart", f"user@{uid}.service")
