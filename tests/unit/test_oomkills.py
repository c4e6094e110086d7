"""Who was killed for memory and whose limit it was: control files in folders, a kernel log that is told what to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentres.kernel import ancestors, tree
from agentres.model.oom import Footprint, FullLimit, OomCause, limits_met
from agentres.model.stats import OomKill
from agentres.run.exhaustion import stalled, whose
from agentres.run.oomkills import OomKills

MIB = 1 << 20
SLICE, HOME = "/user.slice/agentres.slice", "/user.slice/agentres.slice/agentres-a.scope"
AGENT = f"{HOME}/agent"
HELD = Footprint({"anon": 1}, ())
KILL = OomKill(7, "cc1", f"{AGENT}/main", SLICE, HELD)


def local(oom: int) -> bytes:
    """The text of memory.events.local."""
    return b"low 0\nhigh 0\nmax 9\noom %d\noom_kill 3\n" % oom


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
        self.begin(counted=True)

    def begin(self, counted: bool) -> None:
        path = str(self.at(AGENT))
        before = tree.local_events(path) if counted else None
        self.kills = OomKills(self, path, AGENT, before)  # type: ignore[arg-type]

    def at(self, path: str) -> Path:
        return self.mount / path[1:]

    def counts(self, path: str, oom: int) -> None:
        (self.at(path) / "memory.events.local").write_bytes(local(oom))

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
        self.kills.note((self.at(AGENT) / "memory.events").read_bytes())
        return self.kills.cause


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_the_events_of_each_cgroup_above_up_to_the_root(kernel: Kernel) -> None:
    found = tree.local_events(str(kernel.at(AGENT)))
    above = [(at, local(5)) for at in (HOME, SLICE, "/user.slice")]
    assert [*found.items()] == [(str(kernel.at(at)), text) for at, text in [*above, ("/", b"")]]


BEFORE = {"/m/a/b": local(1), "/m/a": local(0), "/m": b""}
# The events after a kill, and whose limit was met.
MET = [
    ("the nearer one's", {"/m/a/b": local(2), "/m/a": local(0), "/m": b""}, ("/a/b",)),
    ("the higher one's", {"/m/a/b": local(1), "/m/a": local(3), "/m": b""}, ("/a",)),
    ("of two it is not known which", {"/m/a/b": local(2), "/m/a": local(1), "/m": b""}, ("/a/b", "/a")),
    ("none: the host", {"/m/a/b": local(1), "/m/a": local(0), "/m": b""}, ()),
    ("none of those that are seen in a container", {"/m/a/b": local(1), "/m/a": local(0), "/m": local(0)}, None),
    ("one that is seen in a container", {"/m/a/b": local(2), "/m/a": local(0), "/m": local(0)}, ("/a/b",)),
    ("none of those that can be read", {"/m/a/b": b"", "/m/a": local(0), "/m": b""}, None),
    ("garbage", {"/m/a/b": b"low 0\n", "/m/a": local(0), "/m": b""}, None),
    ("one that nobody had looked at says nothing", {"/m/a/b": local(1), "/m/c": local(7), "/m": b""}, ()),
    ("one that is there anew counts from 0", {"/m/a/b": local(0), "/m/a": local(1), "/m": b""}, ("/a",)),
]  # fmt: skip


@pytest.mark.parametrize(("now", "met"), [row[1:] for row in MET], ids=[row[0] for row in MET])
def test_the_limit_that_was_met_is_the_one_whose_count_has_risen(
    now: dict[str, bytes], met: tuple[str, ...] | None
) -> None:
    assert limits_met(BEFORE, now) == met


def test_what_is_mounted_in_a_container_may_be_the_one() -> None:
    before = {"/m/a": local(0), "/m": local(3)}
    assert limits_met(before, {"/m/a": local(0), "/m": local(4)}) == ("/",)


def test_without_a_kill_there_is_no_cause(kernel: Kernel) -> None:
    kernel.own(1, 0)
    assert kernel.cause() is None


def test_the_kernel_log_knows_best(kernel: Kernel) -> None:
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


def test_one_that_was_killed_before_anybody_looked(kernel: Kernel) -> None:
    kernel.begin(counted=False)
    kernel.own(0, 1)
    assert kernel.cause() == OomCause(None)
    kernel.own(1, 2)
    assert kernel.cause() == OomCause((AGENT,))
    kernel.counts(SLICE, 6)
    kernel.own(1, 3)
    assert kernel.cause() == OomCause((SLICE,))


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
