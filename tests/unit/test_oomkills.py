"""Who was killed for memory and whose limit it was: control files in folders, a kernel log that is told what to say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentres.kernel import ancestors
from agentres.model.oom import Footprint, limits_met
from agentres.model.stats import FullLimit, OomCause, OomCounts, OomKill
from agentres.run.exhaustion import stalled, whose
from agentres.run.oomkills import OomKills

MIB = 1 << 20
SLICE, HOME = "/user.slice/agentres.slice", "/user.slice/agentres.slice/agentres-a.scope"
AGENT = f"{HOME}/agent"
HELD = Footprint({"anon": 1}, ())
KILL = OomKill(7, "cc1", f"{AGENT}/main", SLICE, HELD)


class Kernel:
    """The agent's cgroup and those above it in a folder, the kernel log, and who notes kills."""

    def __init__(self, folder: Path) -> None:
        self.mount = folder / "cgroup"
        for path in ("", "/user.slice", SLICE, HOME, AGENT):
            (self.mount / path[1:]).mkdir(parents=True)
            (self.mount / path[1:] / "cgroup.controllers").write_text("memory\n")
            if path:
                self.counts(path, 5)  # of what was before
        self.own(0, 0)
        self.log: list[OomKill] = []
        self._events = os.open(self.at(AGENT) / "memory.events", os.O_RDONLY)
        self.kills = OomKills(self, str(self.at(AGENT)), AGENT, self._events)  # type: ignore[arg-type]

    def at(self, path: str) -> Path:
        return self.mount / path[1:]

    def counts(self, path: str, oom: int) -> None:
        text = f"low 0\nhigh 0\nmax 9\noom {oom}\noom_kill 3\n"
        (self.at(path) / "memory.events.local").write_text(text)

    def own(self, oom: int, oom_kill: int) -> None:
        (self.at(AGENT) / "memory.events").write_text(f"max 9\noom {oom}\noom_kill {oom_kill}\n")

    def limits(self, path: str, **texts: int | str) -> None:
        for name, text in texts.items():
            (self.at(path) / name.replace("_", ".")).write_text(f"{text}\n")

    def oom_kills(self, cgroup: str) -> list[OomKill]:
        assert cgroup == AGENT
        found, self.log = self.log, []
        return found

    def cause(self) -> OomCause | None:
        self.kills.note()
        return self.kills.cause

    def close(self) -> None:
        os.close(self._events)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    made = Kernel(tmp_path)
    yield made
    made.close()


def test_counts_are_those_of_each_cgroup_above_up_to_the_root(kernel: Kernel) -> None:
    found = ancestors.oom_counts(str(kernel.at(AGENT)))
    assert found == OomCounts({HOME: 5, SLICE: 5, "/user.slice": 5}, whole=True)
    assert [*found.counts] == [HOME, SLICE, "/user.slice"]


def test_in_a_container_not_all_cgroups_above_are_seen(kernel: Kernel) -> None:
    kernel.counts("/", 1)
    found = ancestors.oom_counts(str(kernel.at(AGENT)))
    assert (found.counts["/"], found.whole) == (1, False)


@pytest.mark.parametrize("text", [None, "", "low 0\n", "low 0\noom x\n"])
def test_a_count_that_is_not_known_is_left_out_and_that_is_told(kernel: Kernel, text: str | None) -> None:  # fmt: skip
    file = kernel.at(SLICE) / "memory.events.local"
    file.unlink()
    if text is not None:
        file.write_text(text)
    found = ancestors.oom_counts(str(kernel.at(AGENT)))
    assert (SLICE in found.counts, found.whole) == (False, False)


BEFORE = OomCounts({"/a/b": 1, "/a": 0}, whole=True)
# The counts after a kill, whether they are those of all, and whose limit was met.
MET = [
    ("the nearer one's", {"/a/b": 2, "/a": 0}, True, ("/a/b",)),
    ("the higher one's", {"/a/b": 1, "/a": 3}, True, ("/a",)),
    ("of two it is not known which", {"/a/b": 2, "/a": 1}, True, ("/a/b", "/a")),
    ("none: the host", {"/a/b": 1, "/a": 0}, True, ()),
    ("none of those that are seen", {"/a/b": 1, "/a": 0}, False, None),
    ("one that is seen, though not all are", {"/a/b": 2, "/a": 0}, False, ("/a/b",)),
    ("one that nobody had counted says nothing", {"/a/b": 1, "/c": 7}, True, ()),
    ("one that is there anew counts from 0", {"/a/b": 0, "/a": 1}, True, ("/a",)),
]


@pytest.mark.parametrize(("counts", "whole", "met"), [row[1:] for row in MET], ids=[row[0] for row in MET])  # fmt: skip
def test_the_limit_that_was_met_is_the_one_whose_count_has_risen(
    counts: dict[str, int], whole: bool, met: tuple[str, ...] | None
) -> None:
    assert limits_met(BEFORE, OomCounts(counts, whole)) == met


def test_without_a_kill_there_is_no_cause(kernel: Kernel) -> None:
    kernel.kills.begin()
    kernel.own(1, 0)
    assert kernel.cause() is None


def test_the_kernel_log_knows_best(kernel: Kernel) -> None:
    kernel.kills.begin()
    kernel.counts(HOME, 6)
    kernel.own(0, 1)
    kernel.log = [KILL]
    assert kernel.cause() == OomCause((SLICE,), HELD)
    assert kernel.kills.victims == (KILL,)
    kernel.own(0, 2)
    kernel.log = [KILL.but(limit_cgroup="", footprint=None)]
    assert kernel.cause() == OomCause(())


def test_who_is_in_the_log_before_the_kernel_counts_it_is_not_lost(kernel: Kernel) -> None:
    kernel.log = [KILL]
    assert kernel.cause() is None
    kernel.own(0, 1)
    assert kernel.cause() == OomCause((SLICE,), HELD)


def test_without_the_log_the_counts_tell(kernel: Kernel) -> None:
    kernel.kills.begin()
    kernel.counts(SLICE, 6)
    kernel.own(0, 1)
    assert kernel.cause() == OomCause((SLICE,))
    assert kernel.cause() == OomCause((SLICE,))  # nothing has happened since
    kernel.own(0, 2)  # what the slice has met before is not the cause of this one
    assert kernel.cause() == OomCause(())
    kernel.own(1, 3)
    assert kernel.cause() == OomCause((AGENT,))
    kernel.own(1, 4)
    assert kernel.cause() == OomCause(())


def test_one_that_was_killed_before_anybody_counted(kernel: Kernel) -> None:
    kernel.own(0, 1)
    assert kernel.cause() == OomCause(None)
    kernel.own(1, 2)
    assert kernel.cause() == OomCause((AGENT,))


WORDS = [
    ((AGENT,), ""),
    ((f"{AGENT}/main/tool",), ""),
    ((), "not by this agent's limit: the host ran out of memory"),
    (None, "not by this agent's limit but by one above it, or the host ran out"),
    ((SLICE,), "not by this agent's limit but by that of the budget of all agents (agentres.slice)"),
    (("/user.slice",), "not by this agent's limit but by that of /user.slice"),
    ((SLICE, "/user.slice"), "not by this agent's limit but by that of the budget of all agents (agentres.slice) or /user.slice"),
    (("/",), "not by this agent's limit but by that of /"),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "words"), WORDS)
def test_whose_limit_it_was_in_words(limits: tuple[str, ...] | None, words: str) -> None:
    assert whose(limits, f"/sys/fs/cgroup{AGENT}") == words


def test_limits_that_are_met_now(kernel: Kernel) -> None:
    kernel.limits(AGENT, memory_high="max", memory_max=30 * MIB, memory_current=30 * MIB - 4096)
    kernel.limits(HOME, memory_high="max", memory_max="max", memory_current=30 * MIB)
    kernel.limits(SLICE, memory_high=30 * MIB, memory_max=80 * MIB, memory_current=31 * MIB)
    kernel.limits("/user.slice", memory_high=32 * MIB, memory_max=34 * MIB, memory_current=31 * MIB)
    assert ancestors.full_limits(str(kernel.at(AGENT))) == [
        FullLimit(AGENT, "memory.max", 30 * MIB),  # the kernel charges in batches
        FullLimit(SLICE, "memory.high", 30 * MIB),
    ]


HIGH = FullLimit(SLICE, "memory.high", 30 * MIB)
STALLED = [
    ([], "no limit of its own or above it is met: the host is short of memory, or a limit that is not seen here holds it up"),
    ([FullLimit(AGENT, "memory.max", 64 * MIB)], "by its own limit, 64.0 MiB: the kernel takes memory back, and has not killed"),
    ([FullLimit(AGENT, "memory.max", 64 * MIB), HIGH], "by memory.high of the budget of all agents (agentres.slice), 30.0 MiB: not this agent's to lift"),
    ([HIGH, FullLimit("/user.slice", "memory.max", 64 * MIB)], "by memory.high of the budget of all agents (agentres.slice), 30.0 MiB, and by memory.max of /user.slice, 64.0 MiB: not this agent's to lift"),
]  # fmt: skip


@pytest.mark.parametrize(("met", "words"), STALLED)
def test_what_holds_it_up_in_words(met: list[FullLimit], words: str) -> None:
    assert stalled(met, f"/sys/fs/cgroup{AGENT}") == words
