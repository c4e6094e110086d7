"""What a slice's agents have and want, on folders."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Literal

import pytest
from fake_slice import MIB, FakeSlice, keep_attributes

from agentres.kernel import tree
from agentres.kernel.delegation import Hierarchy, Place
from agentres.kernel.registry import ClaimMark
from agentres.policy.capacity import Claim

GIB = 1 << 30


@pytest.fixture(name="slice")
def _slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlice:
    keep_attributes(tmp_path, monkeypatch)
    return FakeSlice(tmp_path / "cgroup", "user.slice/agentres.slice")


def names(slice: FakeSlice) -> list[str]:
    return [claim.name for claim in tree.claims(str(slice.path))]


# Claims.


def test_an_agents_files_and_marks_become_its_claim(slice: FakeSlice) -> None:
    said = ClaimMark(400, 64 * MIB, 300 * MIB, 0.5, 1024 * MIB)
    agent = slice.agent("a", 256 * MIB, 200 * MIB, 20 * MIB, 1234.5, said)
    assert tree.claims(str(slice.path)) == [
        Claim(
            str(agent), "a", 1234.5, 256 * MIB, 200 * MIB,
            priority=400, least=64 * MIB, wants=300 * MIB, since=0.5, most=1024 * MIB,
        )
    ]  # fmt: skip


def test_the_oldest_comes_first_and_other_folders_are_no_agents(slice: FakeSlice) -> None:
    slice.agent("late", started=30)
    slice.agent("early", started=10)
    (slice.path / "agentres.bystanders").mkdir()
    (slice.path / "agentres-empty.scope").mkdir()
    (slice.path / "somebody.service/agent").mkdir(parents=True)
    (slice.path / "agentres-file").write_text("")
    assert names(slice) == ["early", "late"]


def test_nothing_is_claimed_where_there_is_no_slice_yet(slice: FakeSlice) -> None:
    assert tree.claims(f"{slice.path}/gone") == []


def test_an_agent_without_a_limit_takes_what_it_uses(slice: FakeSlice) -> None:
    slice.agent("a", "max", 300 * MIB)
    (claim,) = tree.claims(str(slice.path))
    assert (claim.limit, claim.taken) == (None, 300 * MIB)


def test_page_cache_that_can_be_dropped_is_no_use(slice: FakeSlice) -> None:
    agent = slice.agent("a", use=10 * MIB, cache=90 * MIB)
    assert [claim.use for claim in tree.claims(str(slice.path))] == [10 * MIB]
    # The two files are not read at the same moment.
    (agent / "memory.current").write_text(f"{80 * MIB}\n")
    assert [claim.use for claim in tree.claims(str(slice.path))] == [0]


def test_what_is_frozen_is_told(slice: FakeSlice) -> None:
    slice.agent("a", frozen=True)
    slice.agent("b")
    assert [claim.frozen for claim in tree.claims(str(slice.path))] == [True, False]


def test_an_agent_whose_supervisor_is_gone_still_has_what_it_has(slice: FakeSlice) -> None:
    slice.agent("a", supervised=False)
    slice.agent("b")
    found = {claim.name: claim for claim in tree.claims(str(slice.path))}
    assert {name: claim.orphan for name, claim in found.items()} == {"a": True, "b": False}
    assert found["a"].taken == 256 * MIB


def test_one_that_claims_nothing_can_be_asked_for_nothing(slice: FakeSlice) -> None:
    slice.agent("a", claimed=None)
    (claim,) = tree.claims(str(slice.path))
    assert claim.orphan
    assert (claim.priority, claim.least, claim.wants) == (100, 0, 0)


def test_what_a_killed_run_left_takes_nothing(slice: FakeSlice) -> None:
    slice.agent("a", supervised=False, populated=False)
    assert names(slice) == []


def test_a_time_to_come_keeps_nobody_waiting(slice: FakeSlice) -> None:
    slice.agent("a", claimed=ClaimMark(wants=1, since=1e11))
    (claim,) = tree.claims(str(slice.path))
    assert claim.since <= time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.mark.parametrize(
    "file", ["memory.max", "memory.current", "memory.stat", "cgroup.freeze", "cgroup.events"]
)
def test_one_that_vanishes_meanwhile_is_left_out(
    slice: FakeSlice, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    gone = slice.agent("gone").parent
    slice.agent("here")
    real = os.open

    def vanishing(path: str, *rest: int) -> int:
        if path.startswith(str(gone)) and path.endswith(file):
            raise OSError(errno.ENODEV, "No such device", path)
        return real(path, *rest)

    monkeypatch.setattr(os, "open", vanishing)
    assert names(slice) == ["here"]


@pytest.mark.parametrize("text", ["", "garbage\n", "12 34\n"])
@pytest.mark.parametrize("file", ["memory.max", "memory.current", "memory.stat"])
def test_what_cannot_be_read_hides_only_itself(slice: FakeSlice, file: str, text: str) -> None:
    (slice.agent("bad") / file).write_text(text)
    slice.agent("good")
    assert names(slice) == ["good"]


@pytest.mark.parametrize(
    "mark",
    [b"", b"1", b"high 0 0 0 0", b"0 0 0 0 0", b"1001 0 0 0 0", b"100 -1 0 0 0", b"100 0 0 nan 0",
     b"100 0 0 inf 0", b"100 0 0 -1 0", b"100 0 0 0 -1", b"100 0 0 0 0 0", b"100 0 " + b"9" * 900 + b" 0 0",
     b"100 0 1152921504606846976 0 0", b"\xff\xfe"],
)  # fmt: skip
def test_a_claim_that_makes_no_sense_is_none(slice: FakeSlice, mark: bytes) -> None:
    os.setxattr(slice.agent("a"), "user.agentres.claim", mark)
    (claim,) = tree.claims(str(slice.path))
    assert claim.orphan
    assert (claim.priority, claim.least, claim.wants, claim.since, claim.most) == (100, 0, 0, 0, 0)


@pytest.mark.parametrize("mark", [b"nan", b"inf", b"-1", b"", b"today"])
def test_an_age_that_makes_no_sense_is_no_agents(slice: FakeSlice, mark: bytes) -> None:
    os.setxattr(slice.agent("a"), "user.agentres.started", mark)
    assert names(slice) == []


def test_a_name_commands_no_terminal(slice: FakeSlice) -> None:
    os.setxattr(slice.agent("a"), "user.agentres.name", b"\x1b[2Jx\n" + b"y" * 3000)
    (name,) = names(slice)
    assert name.startswith("\\x1b[2Jx\\n")
    assert name.isprintable()
    assert len(name) < 300


def test_many_agents_are_read_at_once(slice: FakeSlice) -> None:
    for each in range(20):
        slice.agent(f"a{each:02}", started=each)
    assert names(slice) == [f"a{each:02}" for each in range(20)]


def test_no_file_stays_open(slice: FakeSlice) -> None:
    slice.agent("a")
    (slice.agent("b") / "memory.current").write_text("x")
    before = len(os.listdir("/proc/self/fd"))
    tree.claims(str(slice.path))
    tree.budget(str(slice.path), GIB, 0.8)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_orphan_is_thawed(slice: FakeSlice) -> None:
    agent = slice.agent("a", frozen=True, supervised=False)
    tree.thaw(str(agent))
    (claim,) = tree.claims(str(slice.path))
    assert not claim.frozen
    shutil.rmtree(agent)
    with pytest.raises(FileNotFoundError):
        tree.thaw(str(agent))


# Where they are.


@pytest.mark.parametrize(
    ("kind", "uid", "below"),
    [
        ("system", 0, "/agentres.slice"),
        ("user", 1000, "/user.slice/user-1000.slice/user@1000.service/agentres.slice"),
    ],
)
def test_the_slice_is_below_the_manager_that_makes_it(
    slice: FakeSlice, kind: Literal["system", "user"], uid: int, below: str
) -> None:
    place = Place(kind, "/run/bus", Hierarchy(str(slice.mount), "/", v1=False))
    found = tree.slice_of(place, uid)
    assert found.startswith(f"{slice.mount}/")
    assert found.endswith(below)


def test_without_systemd_it_is_below_what_was_delegated(slice: FakeSlice) -> None:
    place = Place("direct", "/mnt/cg/ours", Hierarchy("/mnt/cg", "/ours/x", v1=False))
    assert tree.slice_of(place, 1000) == "/mnt/cg/ours/agentres.slice"


# The budget.


def test_the_budget_is_a_share_of_the_host(slice: FakeSlice) -> None:
    found = tree.budget(str(slice.path), GIB + 4097, 0.8)
    assert (found.host, found.share, found.held_by) == (GIB + 4097, 0.8, "")
    assert found.limit % os.sysconf("SC_PAGE_SIZE") == 0
    assert 0.8 * GIB - 4096 < found.limit <= 0.8 * (GIB + 4097)


def test_the_kernels_limit_holds_where_it_is_smaller(slice: FakeSlice) -> None:
    slice.limit(GIB // 2)
    found = tree.budget(str(slice.path), GIB, 0.8)
    assert (found.limit, found.held_by) == (GIB // 2, str(slice.path))
    slice.limit(GIB)
    assert tree.budget(str(slice.path), GIB, 0.8).held_by == ""


def test_a_limit_further_up_holds_too_and_is_seen_at_each_look(slice: FakeSlice) -> None:
    slice.limit(GIB // 2)
    (slice.path.parent / "memory.max").write_text(f"{GIB // 4}\n")
    assert tree.budget(str(slice.path), GIB, 0.8).limit == GIB // 4
    assert tree.budget(str(slice.path), GIB, 0.8).held_by == str(slice.path.parent)
    (slice.mount / "memory.max").write_text(f"{GIB // 8}\n")
    assert tree.budget(str(slice.path), GIB, 0.8).limit == GIB // 8
    (slice.mount / "memory.max").unlink()
    (slice.path.parent / "memory.max").write_text("max\n")
    assert tree.budget(str(slice.path), GIB, 0.8).limit == GIB // 2


def test_a_host_that_has_shrunk_has_a_smaller_budget(slice: FakeSlice) -> None:
    slice.limit(GIB)
    assert tree.budget(str(slice.path), GIB // 2, 0.8).limit <= 0.4 * GIB


def test_before_the_first_run_those_above_the_slice_count(slice: FakeSlice) -> None:
    slice.limit(GIB // 2)
    found = tree.budget(f"{slice.path}/later.slice", GIB, 0.8)
    assert (found.limit, found.held_by) == (GIB // 2, str(slice.path))


@pytest.mark.parametrize("text", ["", "garbage\n"])
def test_a_limit_that_cannot_be_read_is_none(slice: FakeSlice, text: str) -> None:
    slice.limit(text, text)
    assert tree.budget(str(slice.path), GIB, 1.0).limit == GIB
    assert tree.cpu_budget(str(slice.path), 4, 0.8) == (3.2, "")


def test_the_budget_of_cpu_is_in_cores(slice: FakeSlice) -> None:
    assert tree.cpu_budget(str(slice.path), 4, 0.5) == (2.0, "")
    slice.limit(cpu="150000 100000")
    assert tree.cpu_budget(str(slice.path), 4, 0.5) == (1.5, str(slice.path))
    assert tree.cores(str(slice.path)) == 1.5
    slice.limit(cpu="max 100000")
    assert tree.cores(str(slice.path)) is None


# The lock.
