"""`scripts/vm` itself: what exec passes through, copies, two machines beside each other, and nothing left after down.

    python -m pytest tests/vm            with the accelerator that scripts/vm picks, or AGENTRES_VM_ACCEL

It takes machines of its own, beside the clone's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

TREE = Path(__file__).resolve().parents[2]
DEADLINE = 600.0  # an emulated boot, and what it is made of
SYSCTL = Path("/proc/sys/vm/max_map_count")


class Vm:
    """One machine of this clone."""

    def __init__(self, name: str, tree: Path = TREE) -> None:
        self.line = [str(tree / "scripts" / "vm")]
        self.environment = os.environ | {"AGENTRES_VM_NAME": name}

    def __call__(
        self, *words: str, given: bytes = b"", check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [*self.line, *words],
            env=self.environment, input=given, capture_output=True, timeout=DEADLINE, check=False,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, done.stderr.decode()
        return done

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.line, "exec", *words],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip

    def exec(self, *words: str, given: bytes = b"", check: bool = True) -> bytes:
        return self("exec", "--", *words, given=given, check=check).stdout

    @property
    def status(self) -> dict[str, object]:
        found = json.loads(self("status", "--json", check=False).stdout)
        assert isinstance(found, dict)
        return found


def processes() -> dict[int, str]:
    """What runs on this host, by pid."""
    found = {}
    for process in psutil.process_iter(["pid", "cmdline"]):
        found[process.info["pid"]] = " ".join(process.info["cmdline"] or [])
    return found


def namespaces() -> set[str]:
    """The network namespaces that some process is in."""
    found = set()
    for pid in processes():
        try:
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
        except OSError:
            continue
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="the sysctl is root's")
def test_a_raised_sysctl_goes_back_with_the_last_machine() -> None:
    if [line for line in processes().values() if "umid=agentres-vm-" in line]:
        pytest.skip("another machine runs on this host")
    before = SYSCTL.read_text()
    machine = Vm("sysctl")
    machine("up")
    try:
        uml = machine.status["accelerator"] == "uml"
        assert (int(SYSCTL.read_text()) >= 8388608) == (uml or int(before) >= 8388608)
    finally:
        machine("down")
    assert SYSCTL.read_text() == before


@pytest.fixture(scope="module")
def vm() -> Iterator[Vm]:
    machine = Vm("itself")
    machine("down")
    machine("up")
    yield machine
    machine("down")


def test_it_says_what_it_is(vm: Vm) -> None:
    told = vm.status
    assert told["state"] == "up"
    forced = os.environ.get("AGENTRES_VM_ACCEL")
    allowed = {None: {"kvm", "uml", "tcg"}, "stock": {"kvm", "tcg"}}
    assert told["accelerator"] in allowed.get(forced, {forced})
    assert vm("status").stdout.startswith(b"state: up\n")


@pytest.mark.parametrize("status", [0, 1, 3, 125, 255])
def test_the_exit_status_is_the_commands(vm: Vm, status: int) -> None:
    assert vm("exec", "--", "sh", "-c", f"exit {status}", check=False).returncode == status


def test_a_death_by_signal_is_told(vm: Vm) -> None:
    assert vm("exec", "--", "sh", "-c", "kill -9 $$", check=False).returncode == 137
    assert vm("exec", "--", "no-such-command", check=False).returncode == 127


def test_arguments_arrive_as_they_were(vm: Vm) -> None:
    words = ["a b", "$HOME", "'", '"', "\\", "", "*", "ä\n€"]
    assert vm.exec("printf", "%s\\0", *words).decode().split("\0")[:-1] == words


def test_streams_are_binary_and_apart(vm: Vm) -> None:
    data = bytes(range(256)) * 4096
    done = vm("exec", "--", "sh", "-c", "cat; echo aside >&2", given=data)
    assert done.stdout == data
    assert done.stderr.endswith(b"aside\n")


def test_as_whom(vm: Vm) -> None:
    assert vm("exec", "--user", "dev", "--", "id", "-un").stdout == b"dev\n"
    assert (
        vm(
            "exec", "--user", "dev", "--", "systemctl", "--user", "is-active", "default.target"
        ).stdout
        == b"active\n"
    )
    assert vm.exec("id", "-un") == b"root\n"


def test_the_sources_are_those_of_now(vm: Vm) -> None:
    assert vm.exec("cat", "README.md") == (TREE / "README.md").read_bytes()
    assert vm.exec("agentres", "--version").startswith(b"agentres ")


def test_what_the_kernel_tests_need(vm: Vm) -> None:
    assert set(vm.exec("cat", "/sys/fs/cgroup/cgroup.controllers").decode().split()) >= {
        "cpuset",
        "cpu",
        "io",
        "memory",
        "pids",
    }
    disk = vm.exec("blockdev", "--getsize64", "/dev/disk/by-id/agentres-data")
    assert int(disk) == 2 << 30
    assert b"some" in vm.exec("cat", "/proc/pressure/memory")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_in_the_guest_too(vm: Vm, number: int) -> None:
    process = vm.begin("--", "sh", "-c", "echo begun; exec sleep 4242")
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    process.stdout.close()
    assert vm("exec", "--", "pgrep", "-f", "[s]leep 4242", check=False).returncode == 1


def test_files_go_there_and_back(vm: Vm, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "data").write_bytes(os.urandom(1 << 20))
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    vm("push", str(folder), "/tmp/there")
    vm("pull", "/tmp/there", str(tmp_path / "back"))
    back = tmp_path / "back"
    assert (back / "below" / "data").read_bytes() == (folder / "below" / "data").read_bytes()
    assert os.access(back / "run", os.X_OK)
    assert vm("pull", "/tmp/not-there", str(tmp_path), check=False).returncode == 125


def test_two_clones_at_once_and_nothing_is_left(vm: Vm, tmp_path: Path) -> None:
    before, cables = processes(), namespaces()
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(TREE), str(clone)], check=True)
    for name in ("_vm", "vm"):  # also what is not committed
        part = TREE / "scripts" / name
        if part.is_dir():
            shutil.copytree(part, clone / "scripts" / name, dirs_exist_ok=True)
        else:
            shutil.copy(part, clone / "scripts" / name)
    other = Vm("", clone)
    try:
        other("up")
        other.exec("sh", "-c", "echo other >/tmp/whose")
        vm.exec("sh", "-c", "echo first >/tmp/whose")
        assert other.exec("cat", "/tmp/whose") == b"other\n"
        assert vm.exec("cat", "/tmp/whose") == b"first\n"
        assert other.status["pid"] != vm.status["pid"]
    finally:
        other("down")
    left = {
        pid: line for pid, line in processes().items() if pid not in before and "sshd" not in line
    }
    assert not [line for line in left.values() if "agentres-vm" in line or "uml-userspace" in line]
    assert namespaces() <= cables
    folder = Path(str(other.status["folder"]))
    assert {path.suffix for path in folder.iterdir()} <= {"", ".log"}
    assert other("status", check=False).returncode == 3


def test_one_of_another_kind_starts_beside_it(vm: Vm) -> None:
    """Both have the image; the locks of one kind would keep the other from starting."""
    beside = Vm("beside")
    kind = "tcg" if vm.status["accelerator"] == "uml" else "uml"
    beside.environment["AGENTRES_VM_ACCEL"] = kind
    try:
        beside("up")
        assert beside.status["accelerator"] == kind
    finally:
        beside("down")


def test_a_guest_that_panics_is_down_and_comes_back(vm: Vm) -> None:
    other = Vm("panics")
    other("up")
    try:
        # The connection hangs where the guest has gone without a word: what counts is the machine.
        panic = "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger || kill -6 1"
        process = other.begin("--no-sync", "--", "sh", "-c", panic)
        end = time.monotonic() + 60
        while other("status", check=False).returncode != 3:
            assert time.monotonic() < end, "the machine outlives its guest's panic"
            time.sleep(0.2)
        assert process.wait(30) == 125  # ssh alone would wait for ten minutes
        assert process.stdout is not None
        process.stdout.close()
        console = Path(str(other.status["folder"]), "console.log").read_text(errors="replace")
        assert "anic" in console or "sysrq" in console.lower(), console[-2000:]
        assert other.exec("echo", "again") == b"again\n"
    finally:
        other("down")


def test_down_waits_for_nobody_who_waits_for_a_machine_that_hangs(vm: Vm) -> None:
    other = Vm("hangs")
    other("up")
    try:
        told = other.status
        os.kill(int(str(told["pid"])), signal.SIGSTOP)
        waits = other.begin("--user", "dev", "--", "true")  # that one has no connection yet
        with Path(str(told["folder"])).with_suffix(".lock").open("a") as lock:
            end = time.monotonic() + 60
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    break
                fcntl.flock(lock, fcntl.LOCK_UN)
                assert time.monotonic() < end, "it does not wait"
                time.sleep(0.05)
        began = time.monotonic()
        other("down")
        assert time.monotonic() - began < 60
        assert waits.wait(60) == 125
        assert waits.stdout is not None
        waits.stdout.close()
    finally:
        other("down")


def test_the_dashboard_over_ssh(vm: Vm) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        line = [*vm.line, "exec", "--tty", "--", "agentres", "top"]
        os.execve(line[0], line, {**vm.environment, "TERM": "xterm"})
    drawn, end = b"", time.monotonic() + DEADLINE
    while b"no agent runs" not in drawn:
        assert time.monotonic() < end, drawn
        drawn += os.read(terminal, 1 << 16)
    os.write(terminal, b"q")
    with contextlib.suppress(OSError):  # its end, on Linux
        while os.read(terminal, 1 << 16):
            pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
