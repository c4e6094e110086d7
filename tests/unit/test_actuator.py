"""What is done to an agent's cgroup, and what is known of it afterwards."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_agent import Fake, Guard
from fake_slice import MIB, FakeSlice

from agentres.kernel.actuator import COMMAND, CONTENTION, Actuator
from agentres.model.errors import ControlFileError, NotEnforceable
from agentres.model.limits import ControlLine, IoMax
from agentres.policy.tripwire import HEADROOM


class Watchful(Guard):
    """A deadman that knows whether it is there."""

    there = 0
    kills = False
    of: tuple[str, int | None] = ("", None)

    def __init__(self, path: str, kill: bool, mark: str = "", uid: int | None = None) -> None:
        Watchful.there += 1
        Watchful.kills = kill
        Watchful.of = mark, uid

    def close(self) -> None:
        Watchful.there -= 1


@pytest.fixture
def cgroup(tmp_path: Path) -> Iterator[Fake]:
    agent = FakeSlice(tmp_path / "cgroup").agent("a", 600 * MIB, 100 * MIB)
    for file, text in {"memory.high": "max", "cgroup.freeze": "0", "cpu.max": "max 100000", "pids.max": "512"}.items():  # fmt: skip
        (agent / file).write_text(f"{text}\n")
    Watchful.there = 0
    made = Fake(str(agent))
    yield made
    made.close()


@pytest.fixture
def actuator(cgroup: Fake) -> Actuator:
    return Actuator(cgroup, guarded=Watchful)


def text(cgroup: Fake, file: str) -> str:
    return cgroup.get_property(file).strip()


def test_what_was_written_last_is_known_by_file_and_device(actuator: Actuator) -> None:
    actuator.cgroup.apply([])
    assert (
        actuator.apply([ControlLine("pids.max", "64"), ControlLine("memory.max", str(300 * MIB))])
        == []
    )
    actuator.write("pids", 100)
    assert set(actuator.lines) == {
        ControlLine("pids.max", "100"), ControlLine("memory.max", str(300 * MIB)),
    }  # fmt: skip


def test_where_a_list_of_cpus_cannot_be_taken_away_it_has_them_all(
    actuator: Actuator, cgroup: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(cgroup.path) / "cpuset.cpus").write_text("1\n")
    (Path(cgroup.path).parent / "cpuset.cpus.effective").write_text("0-1,4\n")
    write = cgroup.set_property

    def before_linux_7(file: str | bytes, value: str) -> None:
        if (file, value) == ("cpuset.cpus", "\n"):
            raise ControlFileError(f"{cgroup.path}/cpuset.cpus", value, errno.ENOSPC)
        write(file, value)

    monkeypatch.setattr(cgroup, "set_property", before_linux_7)
    actuator.write("cpuset", "max")
    assert text(cgroup, "cpuset.cpus") == "0-1,4"
    assert actuator.standing("cpuset") == "max"
    assert actuator.lines == [ControlLine("cpuset.cpus", "0-1,4")]
    actuator.write("cpuset", "0-1,4")  # the same list, asked for
    assert actuator.standing("cpuset") == "0-1,4"


def test_what_does_not_hold_was_not_written(actuator: Actuator, cgroup: Fake) -> None:
    cgroup.refused["pids.max"] = errno.EINVAL
    (refused,) = actuator.apply([ControlLine("pids.max", "64")])
    assert refused.line.file == "pids.max"
    with pytest.raises(ControlFileError):
        actuator.write("pids", 64)
    assert actuator.lines == []


@pytest.mark.parametrize(
    ("key", "file", "content", "standing"),
    [
        ("cpu", "cpu.max", "150000 100000", 1.5),
        ("cpu", "cpu.max", "max 100000", "max"),
        ("memory", "memory.max", "1048576", 1048576),
        ("memory", "memory.max", "max", "max"),
        ("pids", "pids.max", "64", 64),
    ],
)
def test_what_stands_is_the_kernels_word(
    actuator: Actuator, cgroup: Fake, key: str, file: str, content: str, standing: float | str
) -> None:
    Path(cgroup.path, file).write_text(f"{content}\n")
    assert actuator.standing(key) == actuator.limit_or_none(key) == standing


def test_what_nothing_holds_is_none(actuator: Actuator) -> None:
    assert actuator.limit_or_none("swap") is None  # there is no such file
    assert actuator.limit_or_none("net_in") is None
    assert actuator.limit_or_none("io_read") is None
    with pytest.raises(NotEnforceable):
        actuator.write("net_in", 1000)


def test_a_tripwire_has_somebody_who_takes_it_down(actuator: Actuator, cgroup: Fake) -> None:
    assert actuator.set_tripwire(500 * MIB)
    assert actuator.set_tripwire(400 * MIB)
    assert (text(cgroup, "memory.high"), actuator.tripwire) == (str(400 * MIB), 400 * MIB)
    assert Watchful.there == 1
    actuator.lift_tripwire()
    assert (text(cgroup, "memory.high"), actuator.tripwire) == ("max", "max")
    assert Watchful.there == 0


def test_a_tripwire_that_is_refused_leaves_none(actuator: Actuator, cgroup: Fake) -> None:
    actuator.set_tripwire(500 * MIB)
    cgroup.then["memory.high"] = lambda: None
    cgroup.refused["memory.high"] = errno.EINVAL
    assert not actuator.set_tripwire(400 * MIB)
    assert (actuator.tripwire, Watchful.there) == ("max", 0)


def test_one_that_is_to_be_killed_with_us_is_guarded_to_its_end(actuator: Actuator) -> None:
    actuator.guard("RUN=f00d", 1000)
    assert Watchful.of == ("RUN=f00d", 1000)
    assert (Watchful.there, Watchful.kills) == (1, True)
    actuator.set_tripwire(500 * MIB)
    actuator.freeze(COMMAND, "frozen by me")
    actuator.thaw(COMMAND)
    actuator.lift_tripwire()
    assert Watchful.there == 1
    actuator.close()
    assert Watchful.there == 0


def test_no_deadman_no_tripwire(cgroup: Fake) -> None:
    def none(path: str, kill: bool, mark: str, uid: int | None) -> Guard:
        raise OSError(errno.ENOENT, "no /bin/sh")

    actuator = Actuator(cgroup, guarded=none)
    assert not actuator.set_tripwire(500 * MIB)
    assert text(cgroup, "memory.high") == "max"
    with pytest.raises(OSError, match="no /bin/sh"):
        actuator.freeze(COMMAND, "frozen by me")
    assert text(cgroup, "cgroup.freeze") == "0"


THAWS: dict[str, Callable[[Actuator], None]] = {
    "the command's": lambda actuator: actuator.thaw(COMMAND),
    "the others'": lambda actuator: actuator.thaw(CONTENTION),
}


@pytest.mark.parametrize("first", THAWS)
def test_it_goes_on_when_everybody_has_thawed_it(
    actuator: Actuator, cgroup: Fake, first: str
) -> None:
    actuator.freeze(COMMAND, "frozen by me")
    actuator.freeze(CONTENTION, "b needs it")
    assert Watchful.there == 1
    THAWS[first](actuator)
    assert (text(cgroup, "cgroup.freeze"), len(actuator.frozen_by)) == ("1", 1)
    for thaw in THAWS.values():
        thaw(actuator)
    assert (text(cgroup, "cgroup.freeze"), actuator.frozen_by) == ("0", {})


def test_whoever_has_frozen_it_it_can_be_thawed(actuator: Actuator, cgroup: Fake) -> None:
    Path(cgroup.path, "cgroup.freeze").write_text("1\n")  # by somebody else
    actuator.thaw()
    assert text(cgroup, "cgroup.freeze") == "0"
    actuator.freeze(CONTENTION, "b needs it")
    actuator.thaw()
    assert (text(cgroup, "cgroup.freeze"), actuator.frozen_by) == ("0", {})


def test_a_freeze_that_is_refused_freezes_on_nobodys_account(
    actuator: Actuator, cgroup: Fake
) -> None:
    cgroup.refused["cgroup.freeze"] = errno.EPERM
    with pytest.raises(ControlFileError):
        actuator.freeze(COMMAND, "frozen by me")
    assert actuator.frozen_by == {}


def test_exactly_what_is_asked_for_or_not_at_all(actuator: Actuator, cgroup: Fake) -> None:
    cgroup.uses(100 * MIB, cache=300 * MIB)
    actuator.lower_memory(200 * MIB)  # page cache is given back for it
    assert text(cgroup, "memory.max") == str(200 * MIB)
    with pytest.raises(NotEnforceable, match="100 MiB are in use and cannot be given back"):
        actuator.lower_memory(50 * MIB)
    assert text(cgroup, "memory.max") == str(200 * MIB)


def test_a_lowering_that_fails_leaves_the_tripwire_as_it_was(
    actuator: Actuator, cgroup: Fake
) -> None:
    cgroup.uses(100 * MIB)
    with pytest.raises(NotEnforceable):
        actuator.lower_memory(50 * MIB)
    assert (actuator.tripwire, text(cgroup, "memory.high")) == ("max", "max")
    actuator.set_tripwire(200 * MIB)
    with pytest.raises(NotEnforceable):
        actuator.lower_memory(50 * MIB)
    assert (actuator.tripwire, text(cgroup, "memory.high")) == (200 * MIB, str(200 * MIB))


def test_a_limit_that_somebody_lifted_is_not_trimmed(actuator: Actuator, cgroup: Fake) -> None:
    Path(cgroup.path, "memory.max").write_text("max\n")
    with pytest.raises(NotEnforceable, match=r"somebody has lifted memory\.max"):
        actuator.trim_memory(100 * MIB)
    assert cgroup.writes == []


def test_who_is_frozen_is_guarded_whatever_becomes_of_the_tripwire(actuator: Actuator) -> None:
    actuator.set_tripwire(500 * MIB)
    actuator.freeze(COMMAND, "frozen by me")
    actuator.lift_tripwire()
    assert Watchful.there == 1
    actuator.close()
    assert Watchful.there == 0


def test_who_uses_nothing_keeps_room_above_what_it_uses(actuator: Actuator, cgroup: Fake) -> None:
    cgroup.uses(100 * MIB)
    assert actuator.trim_memory(10 * MIB) == 100 * MIB + HEADROOM
    assert text(cgroup, "memory.max") == str(100 * MIB + HEADROOM)
    # Less than a tenth is not worth it.
    assert actuator.trim_memory(100 * MIB + HEADROOM - MIB) == 100 * MIB + HEADROOM


def test_without_an_io_controller_only_what_pauses_hold_can_be_set(cgroup: Fake) -> None:
    lines = [IoMax("8:0", rbps=5, wbps=5)]
    disks = {"": ("8:0",), "/dev/sda": ("8:0",)}
    actuator = Actuator(cgroup, guarded=Watchful)
    actuator.take_disks(lines, disks, pausing=False)
    with pytest.raises(NotEnforceable, match="no io controller"):
        actuator.write("io_write", 7)
    actuator.take_disks(lines, disks, pausing=True)
    actuator.write("io_write", 7)
    assert (actuator.standing("io_write"), actuator.paced_rate("io_write")) == (7, 7)
    for key in ("io_write_iops", "io_write=/dev/sda"):
        with pytest.raises(NotEnforceable, match="no io controller"):
            actuator.write(key, 7)
    assert cgroup.wrote("io.max") == []


def test_a_pace_is_the_highest_rate_of_those_that_have_one(cgroup: Fake) -> None:
    lines = [IoMax("8:0", wbps=5), IoMax("8:16", wbps=9), IoMax("8:32")]
    actuator = Actuator(cgroup, guarded=Watchful)
    actuator.take_disks(lines, {"": ("8:0", "8:16", "8:32")}, pausing=False)
    assert (actuator.paced_rate("io_write"), actuator.paced_rate("io_read")) == (9, None)
