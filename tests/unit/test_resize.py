"""Other limits for an agent that runs, on a folder in place of its cgroup."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_agent import MEMORY, Life, memory
from fake_slice import MIB, FakeSlice

from agentres.kernel import registry
from agentres.kernel.delegation import Hierarchy
from agentres.model.cpus import format_list
from agentres.model.errors import ControlFileError, NoRoom, NotEnforceable, UsageError
from agentres.model.limits import Host, IoMax, Limits, Range
from agentres.policy.elastic import Terms
from agentres.run.resize import Resize

HOST = Host(cpus=8, memory=8192 * MIB)


@pytest.fixture
def slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlice:
    monkeypatch.setattr("agentres.kernel.host.read", lambda: HOST)
    monkeypatch.setattr("agentres.kernel.host.memory", lambda: HOST.memory)
    return FakeSlice(tmp_path)


Start = Callable[..., Life]


@pytest.fixture
def start(slice: FakeSlice) -> Start:
    def begin(limits: Limits | None = None, name: str = "a", **kwargs: object) -> Life:
        life = Life(slice, name, limits or memory(512), **kwargs)  # type: ignore[arg-type]
        (life.agent / "memory.swap.max").write_text("0\n")
        return life

    return begin


def resized(life: Life, **texts: str | list[str]) -> Resize:
    return Resize(life.actuator, life.terms, texts)


def standing(life: Life, file: str) -> str:
    return (life.agent / file).read_text().strip()


def test_one_value_is_fixed_and_a_range_moves_on_from_what_stands(start: Start) -> None:
    life = start()
    done = resized(life, memory="1G", cpu="0.5:4", pids="64:128")
    assert standing(life, "memory.max") == str(1024 * MIB)
    assert "memory" not in done.terms.limits.ranges
    assert done.terms.limits.ranges["cpu"] == Range(0.5, 4.0)
    assert [(one.key, one.after) for one in done.changes] == [
        ("memory", 1024 * MIB), ("cpu", 4.0), ("pids", 128),
    ]  # fmt: skip
    assert registry.claim_mark(str(life.agent)) == registry.ClaimMark(100, 1024 * MIB)


def test_a_range_starts_where_the_limit_is_as_far_as_it_allows(start: Start) -> None:
    life = start()
    done = resized(life, memory="256M:2G")
    assert standing(life, "memory.max") == str(512 * MIB)
    assert done.terms.limits.ranges["memory"] == Range(256 * MIB, 2048 * MIB)
    assert registry.claim_mark(str(life.agent)) == registry.ClaimMark(
        100, 256 * MIB, most=2048 * MIB
    )


def test_memory_below_what_is_in_use_is_refused_and_kills_nobody(start: Start) -> None:
    life = start()
    life.cgroup.uses(300 * MIB, 100 * MIB)
    with pytest.raises(NotEnforceable, match=r"300\.0 MiB are in use|300 MiB are in use"):
        resized(life, memory="200M")
    assert standing(life, "memory.max") == str(512 * MIB)
    assert all(text != str(200 * MIB) for file, text in life.cgroup.writes if file == "memory.max")
    resized(life, memory="320M")  # the cache is given back
    assert standing(life, "memory.max") == str(320 * MIB)


def test_memory_that_the_budget_has_not_is_refused(start: Start) -> None:
    other = start(memory(3000), name="b")
    life = start(Limits(memory=512 * MIB), name="a")
    with pytest.raises(NoRoom, match="MiB"):
        resized(life, memory="1500M")
    assert standing(life, "memory.max") == str(512 * MIB)
    assert standing(other, "memory.max") == str(3000 * MIB)


def test_all_or_none(start: Start) -> None:
    life = start(Limits(memory=512 * MIB, cpu=1.0, pids=50))
    (life.agent / "cpu.max").write_text("100000 100000\n")
    (life.agent / "pids.max").write_text("50\n")
    life.cgroup.refused["pids.max"] = errno.EINVAL
    claimed = registry.claim_mark(str(life.agent))
    with pytest.raises(ControlFileError):
        resized(life, memory="1G", cpu="2", pids="60")
    assert standing(life, "memory.max") == str(512 * MIB)
    assert standing(life, "cpu.max") == "100000 100000"
    assert registry.claim_mark(str(life.agent)) == claimed


def test_a_quota_that_falls_lets_its_burst_fall_first(start: Start) -> None:
    life = start(Limits(cpu=2.0, memory=512 * MIB, ranges={"cpu": Range(0.5, 4)}))
    resized(life, cpu="1")
    files = life.cgroup.wrote("cpu.max", "cpu.max.burst")
    assert files == [("cpu.max.burst", "0"), ("cpu.max", "100000 100000")]
    resized(life, cpu="max")
    assert standing(life, "cpu.max") == "max 100000"


def test_disks_all_and_one(start: Start) -> None:
    lines = (IoMax("8:0", wbps=1000), IoMax("8:16", wbps=1000))
    life = start(
        Limits(memory=512 * MIB, io_write={"": 1000}), io_max=lines, disks={"": ("8:0", "8:16")}
    )
    done = resized(life, io_write="5000", io_read="max")
    for key, rate in {"io_write": 5000, "io_read": "max"}.items():
        assert (life.actuator.standing(key), life.actuator.fastest(key)) == (rate, rate)
    assert done.terms.limits.io_write == {"": 5000}


def test_cpus_are_written_and_put_back_where_another_limit_is_refused(
    start: Start, slice: FakeSlice, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Hierarchy(str(slice.mount), "/", False)
    monkeypatch.setattr("agentres.kernel.delegation.hierarchy", lambda: here)
    life = start(Limits(memory=512 * MIB, pids=50))
    first, *_ = allowed = sorted(os.sched_getaffinity(0))
    (slice.path / "cpuset.cpus.effective").write_text(f"{format_list(allowed)}\n")
    (life.agent / "cpuset.cpus").write_text("\n")
    done = resized(life, cpuset=f"{first}-{first}")
    assert standing(life, "cpuset.cpus") == registry.cpus(str(life.agent)) == str(first)
    assert [(one.before, one.after, one.note) for one in done.changes] == [("max", str(first), "")]
    assert done.terms.limits.cpuset == str(first)
    life.cgroup.refused["pids.max"] = errno.EINVAL
    with pytest.raises(ControlFileError):
        resized(life, cpuset="max", pids="60")
    assert standing(life, "cpuset.cpus") == registry.cpus(str(life.agent)) == str(first)
    resized(life, cpuset="max")
    assert standing(life, "cpuset.cpus") == registry.cpus(str(life.agent)) == ""
    assert len(resized(life, cpuset="1").changes) == 1
    assert standing(life, "cpuset.cpus") in map(str, allowed)


def test_cpus_that_its_cgroup_has_not_are_refused(start: Start, slice: FakeSlice) -> None:
    life = start()
    first, *_ = sorted(os.sched_getaffinity(0))
    (slice.path / "cpuset.cpus.effective").write_text("4000\n")
    with pytest.raises(UsageError, match=rf"--cpuset: CPU {first} is not for the processes in {slice.path}, which have 4000"):  # fmt: skip
        resized(life, cpuset=f"{first}-{first}")
    with pytest.raises(UsageError, match="--cpuset: CPU 8191 is not on this host"):
        resized(life, cpuset="8191-8191")
    with pytest.raises(UsageError, match="--cpuset 2: there are 0 to be had"):
        resized(life, cpuset="2")
    assert life.cgroup.writes == []


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"memory": "9G"}, "--memory 9G: is above the host's"),
        ({"cpu": "4:1"}, "--cpu 4:1: expected least:most"),
        ({"swap": "1:2"}, "--swap 1:2: expected one value"),
        ({"cpuset": "0-"}, "--cpuset 0-: expected how many CPUs, or a list"),
        ({"cpuset": "0"}, "--cpuset 0: must be above 0"),
        ({"cpuset": "9"}, "--cpuset 9: is above the host's 8 CPUs"),
        ({"net_out": "x"}, "--net-out x"),
    ],
)
def test_what_makes_no_sense_changes_nothing(
    start: Start, texts: dict[str, str], words: str
) -> None:
    life = start()
    with pytest.raises(UsageError, match=words):
        resized(life, **{"pids": "10", **texts})
    assert life.cgroup.writes == []


def test_without_network_programs_its_rates_are_refused(start: Start) -> None:
    life = start()
    with pytest.raises(NotEnforceable, match="nothing counts or limits its network"):
        resized(life, memory="600M", net_out="1M")
    assert standing(life, "memory.max") == str(512 * MIB)


def test_swap(start: Start) -> None:
    life = start()
    assert resized(life, swap="64M").changes[0].before == 0
    assert standing(life, "memory.swap.max") == str(64 * MIB)


def test_the_terms_of_before_are_left_as_they_were(start: Start) -> None:
    life = start()
    before: Terms = life.terms
    resized(life, memory="1G")
    assert before.limits.ranges == MEMORY
