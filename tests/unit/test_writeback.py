"""How long an agent is frozen for what it writes ahead of its rate: simulated time, any load; and what its processes wrote."""

from __future__ import annotations

import os
from io import BytesIO, StringIO
from pathlib import Path
from typing import IO, Any

import pytest
from fake_slice import keep_attributes
from hypothesis import given
from hypothesis import strategies as st

from agentres.kernel import registry, writeback
from agentres.kernel.writeback import ProcessIo, Writeback
from agentres.policy.writeback import BURST_MOST, IN_DEBT, LATEST, LONGEST, SOONEST, LeakyBucket
from agentres.readers.marks import MarkedWrites

MB = 1_000_000
KIB = 1024
RATES = st.floats(0.1, 500).map(lambda rate: rate * MB)


class Writer:
    """An agent that writes at ``speed`` bytes a second whenever it may, and is paced."""

    def __init__(self, rate: float) -> None:
        self.now = self.frozen = self.longest = 0.0
        self.unbilled = self.billed = 0
        self.bucket = LeakyBucket(rate, 0.0)
        self.turns = 0

    def write(self, seconds: float, speed: float, billed: float = 0.0) -> None:
        """Let it run, a turn at a time, until so many seconds have passed."""
        end = self.now + seconds
        look = self.bucket.look
        while self.now < end:
            self.now += look
            self.unbilled += round(speed * look)
            self.billed += round(billed * look)
            turn = self.bucket.observe(self.now, self.billed, self.unbilled)
            self.turns += 1
            if turn.freeze:
                assert self.bucket.level > self.bucket.burst
            assert turn.freeze <= LONGEST
            assert SOONEST <= turn.look <= LATEST
            self.longest = max(self.longest, turn.freeze)
            self.frozen += turn.freeze
            self.now += turn.freeze
            look = turn.look


@given(RATES, st.lists(st.tuples(st.floats(0.01, 3), st.floats(0, 1)), min_size=1, max_size=20))
def test_never_above_the_rate_and_a_burst_and_what_one_look_lets_through(
    rate: float, loads: list[tuple[float, float]]
) -> None:
    # As fast as page cache is, and no faster than a pause of a second makes good what a look lets through.
    fastest = min(2000 * MB, rate * LONGEST / SOONEST)
    writer = Writer(rate)
    late = 0.0
    for seconds, part in loads:
        late += (IN_DEBT if writer.bucket.level > writer.bucket.burst else LATEST) * fastest
        writer.write(seconds, part * fastest)
        assert writer.unbilled <= rate * writer.now + writer.bucket.burst + late + 1


@given(RATES, st.floats(0.0, 0.99), st.floats(0.1, 30))
def test_who_stays_below_the_rate_is_never_frozen(rate: float, part: float, seconds: float) -> None:
    writer = Writer(rate)
    writer.write(seconds, part * rate * 0.5, part * rate * 0.5)
    assert writer.frozen == 0


@given(RATES, st.floats(1, 100))
def test_what_the_kernel_bills_is_not_held_twice(rate: float, times: float) -> None:
    """Of several disks at once it is more than the rate; a little that is not billed comes with it."""
    writer = Writer(rate)
    writer.write(3, 0.05 * rate, times * rate)
    assert writer.frozen <= writer.unbilled / rate + LONGEST


@pytest.mark.parametrize("rate", [2, 8, 50])
@pytest.mark.parametrize("speed", [100, 250, 1000])
def test_over_five_seconds_it_is_the_rate(rate: int, speed: int) -> None:
    writer = Writer(rate * MB)
    writer.write(1, speed * MB)  # the first look is as late as at one that writes nothing
    began, before = writer.now, writer.unbilled
    writer.write(5, speed * MB)
    assert (writer.unbilled - before) / (writer.now - began) == pytest.approx(rate * MB, rel=0.1)


def test_both_together_are_the_rate() -> None:
    writer = Writer(8 * MB)
    writer.write(10, 100 * MB, 4 * MB)
    # The kernel's part goes on while it is frozen in life; here it stands still with it.
    assert (writer.unbilled + writer.billed) / writer.now == pytest.approx(8 * MB, rel=0.1)


def test_who_writes_nothing_is_looked_at_seldom() -> None:
    writer = Writer(8 * MB)
    writer.write(60, 0)
    assert writer.turns < 60 / writer.bucket.latest + 20


def test_a_burst_is_an_eighth_of_a_second_and_no_more_than_that() -> None:
    assert LeakyBucket(8 * MB, 0).burst == 1 * MB
    assert LeakyBucket(100 * MB, 0).burst == BURST_MOST


# What processes wrote.


class Processes:
    """/proc/PID/io of some processes, and who their parents are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wrote: dict[int, int] = {}
        self.parents: dict[int, int] = {}
        self.hidden: set[int] = set()
        self.zombies: set[int] = set()
        self.ignoring: set[int] = set()
        self.cancelled = 0
        self.unit = 1
        monkeypatch.setattr(writeback, "parent", lambda pid: self.parents.get(pid, 0))
        monkeypatch.setattr(writeback, "open", self.open, raising=False)
        monkeypatch.setattr(writeback, "is_zombie", self.zombies.__contains__)
        monkeypatch.setattr(writeback, "ignores_children", self.ignoring.__contains__)
        self.io = ProcessIo()

    def open(self, path: str, mode: str) -> BytesIO:
        pid = int(path.removeprefix("/proc/").removesuffix("/io"))
        if pid in self.hidden:
            raise PermissionError
        if pid not in self.wrote:
            raise ProcessLookupError
        wrote, cancelled = self.wrote[pid] * self.unit, self.cancelled * self.unit
        text = f"rchar: 1\nwchar: 1\nsyscr: 1\nsyscw: 1\nread_bytes: {wrote // 2}\n"
        return BytesIO(
            f"{text}write_bytes: {wrote}\ncancelled_write_bytes: {cancelled if pid == 100 else 0}\n".encode()
        )

    def fork(self, pid: int, parent: int) -> None:
        self.wrote[pid], self.parents[pid] = 0, parent

    def end(self, pid: int, waited: bool = True) -> None:
        """It ends; its parent waits for it, or is no more of the agent's."""
        if waited:
            self.wrote[self.parents[pid]] += self.wrote[pid]
        del self.wrote[pid]
        for child, parent in self.parents.items():
            if parent == pid:
                self.parents[child] = 1

    @property
    def dirtied(self) -> int:
        _, written, cancelled = self.io.figures(self.wrote.keys() - self.zombies)
        return written - cancelled


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    made = Processes(monkeypatch)
    made.fork(100, 50)
    return made


def test_children_that_were_waited_for_count_once(processes: Processes) -> None:
    processes.fork(101, 100)
    processes.wrote |= {100: 5, 101: 7}
    assert processes.io.figures(processes.wrote) == (5, 12, 0)
    processes.end(101)
    assert processes.dirtied == 12
    processes.fork(102, 100)
    processes.fork(103, 102)
    processes.wrote |= {102: 1, 103: 2}
    assert processes.dirtied == 15
    processes.end(103)
    processes.end(102)  # both between two looks
    assert processes.dirtied == 15


def test_one_that_ended_and_was_not_waited_for_still_counts(processes: Processes) -> None:
    processes.fork(101, 100)
    processes.wrote[101] = 7
    assert processes.dirtied == 7
    processes.wrote[101] = 8
    processes.zombies.add(101)  # cgroup.procs does not list it
    assert processes.dirtied == 8
    processes.end(101)
    processes.zombies.clear()
    assert processes.dirtied == 8


def test_children_of_one_that_ignores_their_ends_still_count(processes: Processes) -> None:
    """The kernel adds their figures to nobody's."""
    processes.ignoring.add(100)
    for number in (101, 102, 103):
        processes.fork(number, 100)
        processes.wrote[number] = 10
        assert processes.dirtied == 10 * (number - 100)
        processes.end(number, waited=False)
    assert processes.dirtied == 30


def test_orphans_that_have_ended_still_count(processes: Processes) -> None:
    processes.fork(101, 100)
    processes.fork(102, 101)
    processes.wrote |= {101: 3, 102: 4}
    assert processes.dirtied == 7
    processes.end(101)  # a daemon that forks twice
    assert processes.dirtied == 7
    processes.wrote[102] = 40
    assert processes.dirtied == 43
    processes.end(102, waited=False)
    assert processes.dirtied == 43
    processes.fork(103, 1)
    processes.wrote[103] = 10
    assert processes.dirtied == 53


def test_another_process_of_the_same_number_is_another_one(processes: Processes) -> None:
    processes.fork(101, 1)
    processes.wrote[101] = 9
    assert processes.dirtied == 9
    processes.wrote[101] = 2
    assert processes.dirtied == 11


def test_who_may_not_be_looked_at_is_counted_as_last_seen(processes: Processes) -> None:
    processes.fork(101, 100)
    processes.wrote |= {101: 9}
    assert processes.dirtied == 9
    processes.hidden.add(101)
    processes.wrote[100] = 1
    assert (processes.dirtied, processes.io.hidden) == (10, 1)


@given(st.data())
def test_any_family_is_counted_as_far_as_it_was_seen(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        processes = Processes(monkeypatch)
        processes.fork(100, 50)
        after, wrote = 101, 0
        for _ in range(data.draw(st.integers(1, 30))):
            alive = sorted(processes.wrote)
            match data.draw(st.sampled_from(["fork", "write", "end", "look"])):
                case "fork":
                    processes.fork(after, data.draw(st.sampled_from(alive)))
                    after += 1
                case "write":
                    processes.wrote[data.draw(st.sampled_from(alive))] += 10
                    wrote += 10
                case "end":
                    assert processes.dirtied == wrote  # what is not seen may be lost
                    if (pid := data.draw(st.sampled_from(alive))) != 100:
                        processes.end(pid, waited=processes.parents[pid] in processes.wrote)
                case "look":
                    assert processes.dirtied == wrote
        assert processes.dirtied == wrote


class Kernel:
    """What the kernel tells of an agent's writeback; all in KiB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(writeback.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(writeback, "PAGE", 0)  # of which the counts for the host lag by some
        self.processes = Processes(monkeypatch)
        self.processes.unit = KIB
        self.processes.fork(100, 50)
        self.host = self.others = self.disk = 0
        monkeypatch.setattr(writeback, "open", self._open, raising=False)
        self.counted = Writeback(["253:0"])

    def _open(self, path: str, mode: str = "r") -> IO[Any]:
        if path == "/proc/meminfo":
            return BytesIO(f"Dirty: {self.host} kB\nWriteback: 0 kB\n".encode())
        if path == "/proc/diskstats":
            return StringIO(
                f"253 0 dm-0 0 0 0 0 0 0 {2 * self.disk} 0\n253 16 dm-1 0 0 0 0 0 0 9 0\n"
            )
        return self.processes.open(path, mode)

    def figures(
        self, dirtied: int, wbytes: int, host: int, own: int | None
    ) -> dict[str, int | None]:
        self.processes.wrote[100], self.host = dirtied, host
        # All that does not wait is on the disk.
        self.disk = max(self.disk, dirtied - min(host if own is None else own, host)) + self.others
        self.counted.look(self.processes.wrote)
        return self.read(wbytes, own)

    def read(self, wbytes: int | None, own: int | None = 0) -> dict[str, int | None]:
        """The figures after a look."""
        disks = None
        if wbytes is not None:
            disks = (("253:0", 0, wbytes * KIB, 0, 0), ("253:16", 0, 999 * KIB, 0, 0))
        waits = (None, None) if own is None else (own * KIB, 0)
        found = self.counted.figures(disks, *waits)
        return {key: None if value is None else value // KIB for key, value in found.items()}

    def unbilled(self, *given: int | None) -> int | None:
        return self.figures(*given)["unbilled_bytes"]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def test_what_waits_for_its_writeback_is_not_unbilled(kernel: Kernel) -> None:
    assert kernel.unbilled(100, 0, 100, 100) == 0
    assert kernel.unbilled(100, 70, 30, 30) == 0
    assert kernel.unbilled(100, 70, 0, 0) == 30
    assert kernel.figures(100, 90, 0, 0) == {"read_bytes": 50, "dirtied_bytes": 100, "billed_bytes": 90, "unbilled_bytes": 30}  # fmt: skip


def test_memory_stat_is_not_believed_before_it_is_up_to_date(kernel: Kernel) -> None:
    kernel.now += 3
    for _ in range(10):  # it says 0 of what waits, as on Linux 7.3
        kernel.now += 0.2
        assert kernel.unbilled(100, 0, 100, 0) == 0
    kernel.now += 3
    assert kernel.unbilled(100, 0, 100, 100) == 0


def test_on_a_host_where_others_write_it_is_seen_a_little_later(kernel: Kernel) -> None:
    found = []
    for _ in range(40):
        kernel.now += 0.2
        found.append(kernel.unbilled(100, 0, 10_000, 0))
    assert found[0] == 0
    assert found[-1] == 100
    assert found.index(100) * 0.2 <= 2 * 2.5 + 0.4


def test_what_the_disk_was_not_written_is_not_unbilled_yet(kernel: Kernel) -> None:
    """Direct writes are counted before they are billed, and pages in whole though less of them is dirty."""
    assert kernel.unbilled(0, 0, 0, 0) == 0
    kernel.processes.wrote[100] = 100
    kernel.counted.look(kernel.processes.wrote)
    kernel.disk = 20
    assert kernel.read(20)["unbilled_bytes"] == 0
    kernel.disk = 50
    assert kernel.read(20)["unbilled_bytes"] == 30


def test_what_was_taken_back_before_it_was_written_is_not_unbilled(kernel: Kernel) -> None:
    """A temporary file that is removed before its writeback, on a host where others write."""
    for _ in range(40):
        kernel.now += 0.2
        assert kernel.unbilled(100, 0, 10_000, 100) == 0
    kernel.processes.cancelled, kernel.others = 100, 1000
    for _ in range(40):
        kernel.now += 0.2
        assert kernel.unbilled(100, 0, 10_000, 0) == 0


def test_what_others_have_written_long_ago_bounds_nothing(kernel: Kernel) -> None:
    kernel.disk = 5000
    assert kernel.unbilled(0, 0, 0, 0) == 0
    kernel.disk = 90_000
    for _ in range(30):
        kernel.now += 1
        assert kernel.unbilled(0, 0, 0, 0) == 0
    kernel.processes.wrote[100] = 100  # direct, and waiting in the kernel
    kernel.counted.look(kernel.processes.wrote)
    assert kernel.read(20)["unbilled_bytes"] == 0
    kernel.disk += 60
    assert kernel.read(20)["unbilled_bytes"] == 40


def test_without_memory_stat_the_hosts_figures_count(kernel: Kernel) -> None:
    for _ in range(40):
        kernel.now += 0.2
        assert kernel.unbilled(100, 0, 100, None) == 0
    assert kernel.unbilled(100, 0, 40, None) == 60


def test_without_an_io_controller_nothing_is_billed(kernel: Kernel) -> None:
    kernel.processes.wrote[100] = 100
    kernel.counted.look(kernel.processes.wrote)
    figures = kernel.read(None)
    assert (figures["dirtied_bytes"], figures["unbilled_bytes"]) == (100, None)


def test_what_the_supervisor_marked_is_what_readers_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    keep_attributes(tmp_path, monkeypatch)
    fd = os.open(tmp_path, os.O_RDONLY)
    marked = MarkedWrites(str(tmp_path))
    assert set(marked.figures(None, None, None).values()) == {None}
    registry.mark_writes(fd, 5, 100, 30)
    assert marked.figures(None, None, None) == {
        "read_bytes": 5,
        "dirtied_bytes": 100,
        "unbilled_bytes": 30,
    }
    registry.mark_writes(fd, 5, 100, None)
    assert marked.figures(None, None, None) == {
        "read_bytes": 5,
        "dirtied_bytes": 100,
        "unbilled_bytes": None,
    }
    os.setxattr(fd, "user.agentres.writes", b"1 2")
    assert set(marked.figures(None, None, None).values()) == {None}
    os.close(fd)
