"""``--disk-space``: what an agent may add to a directory, by a project quota on a file system of the test's own."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pwd
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen

import daemons
import pytest
from conftest import (
    AGENTRES,
    DEADLINE,
    ROOT,
    RunAgent,
    not_by_daemon,
    python,
    traces,
    wait_until,
)
from daemons import DEV, Daemon
from stacks import sh, stack

from agentres.kernel import project
from agentres.kernel.walk import below

Start = Callable[..., Popen[str]]

MIB = 1 << 20
EDQUOT, ENOSPC, EXDEV = 122, 28, 18
Q_QUOTAOFF = 0x800003
FSGETXATTR, PROJINHERIT = 0x801C581F, 0x200

as_root = pytest.mark.skipif(not ROOT, reason="only root may mount a file system")
with_xfs = pytest.mark.skipif(
    ROOT and subprocess.run(["modprobe", "-q", "xfs"], check=False).returncode != 0
    and "\txfs\n" not in Path("/proc/filesystems").read_text(),
    reason="this kernel has no XFS",
)  # fmt: skip

daemon = daemons.daemon

FILL = """
import os, sys
def fill(path, most=1 << 30):
    "Bytes that it takes, and why it takes no more."
    with open(path, "ab", buffering=0) as file:
        written = 0
        while written < most:
            try:
                written += file.write(bytes(1 << 16))
            except OSError as error:
                return written, error.errno
    return written, 0
"""


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory on an ext4 or XFS with project quotas, and in it a file and a directory."""
    above = {path: path.stat().st_mode for path in (tmp_path, *tmp_path.parents[:2])}
    for path in above:
        path.chmod(0o755)
    made = stack(getattr(request, "param", "project"), tmp_path)
    try:
        directory = made.mount / "work"
        (directory / "sub").mkdir(parents=True)
        (directory / "old").write_bytes(bytes(5 * MIB))
        yield directory
        assert left(directory) == []
    finally:
        made.remove()
        for path, mode in above.items():
            path.chmod(mode)


def attributes(fd: int) -> tuple[int, ...]:
    """What the file system keeps of a file: flags, extent size, number of extents, project, extent size of copies."""
    return struct.unpack("=5I8x", fcntl.ioctl(fd, FSGETXATTR, bytes(28)))


def left(directory: Path) -> list[str]:
    """Whatever a run could have left: records, numbers, limits."""
    top = os.open(directory, os.O_RDONLY)
    try:
        numbered = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd, _ in below(top, lambda error: pytest.fail(str(error)))
            for flags, _, _, number, _ in [attributes(fd)]
            if number or flags & PROJINHERIT
        ]
        limited = [f"limit {n}" for n in project.NUMBERS[:2] if project._dqblk(top, n).limit]
    finally:
        os.close(top)
    recorded = os.listdir(project.RECORDS) if os.path.isdir(project.RECORDS) else []
    return [*recorded, *numbered, *limited]


@as_root
@pytest.mark.parametrize(
    ("place", "where", "user"),
    [
        ("project", "new", []),
        ("project", "sub/new", ["--user", "nobody"]),
        ("project", "old", ["--user", "nobody"]),
        pytest.param("project-xfs", "sub/new", ["--user", "nobody"], marks=with_xfs),
        pytest.param("project-xfs", "old", [], marks=with_xfs),
    ],
    indirect=["place"],
)
def test_no_more_is_added_than_that(agentres_run: RunAgent, place: Path, where: str, user: list[str]) -> None:  # fmt: skip
    sh("chown", "-R", "nobody", place)
    code = FILL + f"print(*fill({str(place / where)!r}))"
    run = agentres_run("--disk-space", "20M", "--cwd", str(place), *user, command=["/usr/bin/python3", "-c", code])  # fmt: skip
    assert run.status == 0, run.err
    written, why = map(int, run.out.split())
    assert why in (EDQUOT, ENOSPC)  # ext4, XFS
    assert 19 * MIB < written <= 20 * MIB
    assert run.summary is not None
    told = run.summary["disk_space"]
    assert (told["directory"], told["limit"]) == (str(place), 20 * MIB)
    assert written <= told["used"] <= 20 * MIB
    assert f"of 20.0 MiB added to {place}" in run.err
    with open(place / "after", "wb") as file:  # nobody is held any more
        file.write(bytes(30 * MIB))


@as_root
def test_what_is_removed_may_be_written_again_and_what_is_elsewhere_is_free(agentres_run: RunAgent, place: Path) -> None:  # fmt: skip
    other = place.parent / "other"
    code = FILL + f"""
print(*fill("a"))
os.unlink("a")
os.unlink("old")
print(fill("b")[0] >> 20)
print(*fill({str(other)!r}, 30 << 20))
try:
    os.rename({str(other)!r}, "moved")
except OSError as error:
    print(error.errno)
os.symlink("b", "link")
"""  # fmt: skip
    run = agentres_run("--disk-space", f"{place}=20M", "--cwd", str(place), command=python(code))
    assert run.status == 0, run.err
    first, second, elsewhere, moved = run.out.splitlines()
    assert first.split()[1] == str(EDQUOT)
    assert 24 <= int(second) <= 25
    assert elsewhere == f"{30 * MIB} 0"
    assert int(moved) == EXDEV


@as_root
def test_each_has_a_limit_of_its_own_and_a_directory_has_one(
    agentres_run: RunAgent, start: Start, place: Path
) -> None:
    options = ("--quiet", "--disk-space", f"{place}=20M")
    first = start(*options, command=["sh", "-c", "echo up; read line"])
    assert first.stdout is not None
    assert first.stdout.readline() == "up\n"
    for taken in (place, place / "sub", place.parent):
        run = agentres_run("--disk-space", f"{taken}=20M", command=["echo", "ran"])
        assert (run.status, run.out) == (125, ""), run.err
        assert f"is in project {project.NUMBERS[0]} already" in run.err
    beside = place.parent / "beside"
    beside.mkdir()
    code = FILL + "print(*fill('new'))"
    run = agentres_run(
        "--disk-space", "10M", "--cwd", str(beside), command=python(code), check=True
    )
    written, why = map(int, run.out.split())
    assert (why, written >> 20) == (EDQUOT, 9) or (why, written) == (EDQUOT, 10 * MIB)
    first.communicate("\n", timeout=DEADLINE)
    assert first.returncode == 0


@as_root
def test_what_a_killed_supervisor_left_is_taken_back(start: Start, place: Path) -> None:
    options = ("--quiet", "--orphan=keep", "--disk-space", f"{place}=20M")
    agent = start(*options, command=["sh", "-c", "echo $$; exec sleep 1000"])
    assert agent.stdout is not None
    pid = int(agent.stdout.readline())
    agent.send_signal(signal.SIGKILL)
    agent.wait(DEADLINE)
    gc = [*AGENTRES, "gc"]
    done = subprocess.run(gc, capture_output=True, text=True, check=True)
    assert done.stdout == "nothing is left\n"  # it runs, and is held
    assert left(place)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not traces(), "no traces")
    done = subprocess.run(gc, capture_output=True, text=True, check=True)
    assert done.stdout == f"the limit on disk space of {place}\n"


@as_root
def test_it_is_taken_back_where_the_directory_was_removed(agentres_run: RunAgent, place: Path) -> None:  # fmt: skip
    beside = place.parent / "beside"
    beside.mkdir()
    agentres_run("--disk-space", f"{beside}=20M", command=["rmdir", str(beside)], check=True)


@as_root
@pytest.mark.parametrize("moved", [False, True], ids=["removed", "moved"])
def test_without_the_directory_the_limit_goes_all_the_same(start: Start, place: Path, moved: bool) -> None:  # fmt: skip
    beside, away = place.parent / "beside", place.parent / "away"
    beside.mkdir()
    agent = start("--quiet", "--disk-space", f"{beside}=20M", command=["sh", "-c", "echo up; exec sleep 1000"])  # fmt: skip
    assert agent.stdout is not None
    assert agent.stdout.readline() == "up\n"
    agent.send_signal(signal.SIGKILL)
    agent.wait(DEADLINE)
    wait_until(lambda: not traces(), "no traces")
    assert left(place)
    beside.rename(away)
    if not moved:
        away.rmdir()
    done = subprocess.run([*AGENTRES, "gc"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"the limit on disk space of {beside}, which is there no more: ")


@as_root
def test_whatever_is_below_the_rest_is_taken_back(start: Start, place: Path) -> None:
    """A file with a lease cannot be opened; to another one no path leads."""
    code = """
import os
open("leased", "w").close()
for _ in range(20):
    os.mkdir("d" * 250)
    os.chdir("d" * 250)
open("deep", "w").close()
print("up", flush=True)
input()
"""
    agent = start("--disk-space", "20M", "--cwd", str(place), command=python(code))
    assert agent.stdout is not None
    assert agent.stdout.readline() == "up\n"
    leased = os.open(place / "leased", os.O_WRONLY)
    fcntl.fcntl(leased, fcntl.F_SETSIG, signal.SIGURG)  # to which nothing happens
    fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        _, told = agent.communicate("\n", timeout=DEADLINE)
    finally:
        os.close(leased)
    assert agent.returncode == 0, told
    assert f"1 file below {place} cannot be opened, and may keep the number" in told
    assert left(place) == [str(place / "leased")]
    os.unlink(place / "leased")


@as_root
def test_where_limits_are_off_it_is_refused(agentres_run: RunAgent, place: Path) -> None:
    fd = os.open(place, os.O_RDONLY)
    try:
        project._quotactl(fd, Q_QUOTAOFF, 0, ctypes.create_string_buffer(1))
    finally:
        os.close(fd)
    run = agentres_run("--disk-space", f"{place}=20M", command=["echo", "ran"])
    assert (run.status, run.out, run.err.count("\n")) == (125, "", 1), run.err
    assert f"{place.parent} counts what projects have, and holds none to its limit; quotaon -P {place.parent}" in run.err  # fmt: skip


@as_root
def test_elsewhere_it_is_refused_with_the_remedy(agentres_run: RunAgent, tmp_path: Path) -> None:
    plain = stack("loop", tmp_path)
    try:
        for directory, words in {
            plain.mount: "tune2fs -O project -Q prjquota /dev/loop",
            Path("/dev/shm"): "is on tmpfs, which has no project quota; have it work on an ext4",
            tmp_path / "none": "no such file or directory",
        }.items():
            run = agentres_run("--disk-space", f"{directory}=20M", command=["echo", "ran"])
            assert (run.status, run.out, run.err.count("\n")) == (125, "", 1), run.err
            assert words in run.err
        run = agentres_run("--best-effort", "--disk-space", "/dev/shm=20M", command=["echo", "ran"])
        assert run.out == "ran\n"
        assert "NOT enforced: disk space (" in run.err
        assert run.summary is not None
        assert run.summary["disk_space"] is None
    finally:
        plain.remove()


@pytest.mark.skipif(ROOT, reason="a user's")
@not_by_daemon("root does it")
def test_a_user_is_told_that_it_is_roots(agentres_run: RunAgent) -> None:
    run = agentres_run("--disk-space", "20M", command=["echo", "ran"])
    assert (run.status, run.out) == (125, "")
    assert "a project quota is root's to set; the daemon does it for users" in run.err


@as_root
def test_by_the_daemon_users_have_it_for_directories_of_their_own(daemon: Daemon, place: Path) -> None:  # fmt: skip
    code = FILL + "print(*fill('new'))"
    options = ("--disk-space", f"{place}=20M", "--cwd", str(place))
    done = daemon.run(*options, command=python(code))
    assert done.returncode == 125
    assert "the directory is another user's" in done.stderr
    sh("chown", "-R", DEV, place)
    done = daemon.run(*options, command=python(code))
    assert done.returncode == 0, done.stderr
    written, why = map(int, done.stdout.split())
    assert why == EDQUOT
    assert 19 * MIB < written <= 20 * MIB
    assert (place / "new").stat().st_uid == pwd.getpwnam(DEV).pw_uid


@as_root
def test_by_the_daemon_only_what_is_the_user_s_alone_is_counted(daemon: Daemon, place: Path) -> None:  # fmt: skip
    sh("chown", "-R", DEV, place)
    (place / "root-s").touch()
    (place / "linked").hardlink_to(place / "old")
    (place / "own").touch()
    os.chown(place / "own", pwd.getpwnam(DEV).pw_uid, -1)
    code = f"""
import fcntl, struct
for name in ("own", "linked", "root-s"):
    with open(name) as file:
        found = fcntl.ioctl(file, {FSGETXATTR}, bytes(28))
        print(struct.unpack("=5I8x", found)[3])
"""
    done = daemon.run("--disk-space", f"{place}=20M", "--cwd", str(place), command=python(code))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(project.NUMBERS[0]), "0", "0"]
