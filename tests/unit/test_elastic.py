"""Which limits are to move, by what is read: readings that are made up, time that is simulated."""

from __future__ import annotations

from typing import Any

import pytest
from fake_slice import MIB

from agentres.model.limits import LIMIT_SPECS, Limits, Range
from agentres.model.stats import Reading
from agentres.policy.elastic import Elastic, Terms, limit_of
from agentres.policy.scaling import BALANCED, FROZEN, Move, Philosophy

MB = 1_000_000
DISKS = {"": ("8:0", "8:16"), "/data": ("8:16",)}
STANDING = {"io_read": 10 * MB, "io_write": 10 * MB, "io_read=/data": 5 * MB}


def elastic(philosophy: Philosophy = BALANCED, **ranges: Range) -> Elastic:
    named = {key.replace("_of_data", "=/data"): between for key, between in ranges.items()}
    terms = Terms(Limits(ranges=named), philosophy, 100, 0.8, "/slice")
    return Elastic(terms, 0.0, DISKS, STANDING.get)


def seen(each: Elastic, *given: Any, **notified: bool) -> list[Move]:
    return list(each.observe(*given, **notified))


def disks(first: int, second: int) -> tuple[tuple[str, int, int, int, int], ...]:
    return (("8:0", first, 0, 0, 0), ("8:16", second, 0, 0, 0))


def test_only_what_moves_is_looked_at() -> None:
    each = elastic(cpu=Range(0.1, 4.0), io_read=Range(MB, 100 * MB))
    assert sorted(each.resources) == ["cpu", "disk_read"]
    assert seen(each, "memory", 500 * MIB, Reading(memory_limit=500 * MIB), 1.0) == []
    assert each.due("memory", 1.0) == float("inf")


def test_a_limit_is_asked_to_rise_where_it_is_reached_and_not_where_it_is_not() -> None:
    each = elastic(pids=Range(16, 1000))
    assert seen(each, "pids", 50, Reading(pids_limit=100), 1.0) == []
    (move,) = seen(each, "pids", 90, Reading(pids_limit=100), 2.0)
    assert (move.resource, move.before, move.after) == ("pids", 100, 150)


def test_periods_that_met_the_limit_are_felt_whatever_the_mean() -> None:
    each = elastic(cpu=Range(0.1, 4.0))
    at = Reading(cpu_limit=1.0, nr_periods=100, nr_throttled=0)
    assert seen(each, "cpu", 0.3, at, 1.0) == []
    (move,) = seen(each, "cpu", 0.3, at.but(nr_periods=200, nr_throttled=20), 2.0)
    assert move.rule == "burst"


@pytest.mark.parametrize(("way", "key"), [("rx", "net_in"), ("tx", "net_out")])
def test_packets_that_were_early_count_only_where_the_rate_is_reached(way: str, key: str) -> None:
    for value, moves in ((0.5 * MB, 0), (0.9 * MB, 1)):
        each = elastic(**{key: Range(MB, 100 * MB)})
        figures = {f"{way}_packets": 100, f"{way}_dropped_packets": 50, f"{key}_limit": MB}
        resource = LIMIT_SPECS[key].resource
        assert len(seen(each, resource, value, Reading(**figures), 1.0)) == moves
        assert each.due(resource, 1.0) <= 0.5  # the kernel tells nobody


def test_the_busiest_of_several_disks_counts_and_each_name_has_its_own() -> None:
    each = elastic(io_read=Range(MB, 100 * MB), io_read_of_data=Range(MB, 100 * MB))
    assert seen(each, "disk_read", None, Reading(disks=disks(0, 0)), 1.0) == []
    moves = seen(each, "disk_read", None, Reading(disks=disks(1 * MB, 4_800_000)), 2.0)
    assert [move.resource for move in moves] == ["io_read=/data"]
    each.moved(2.0, moves[0], moves[0].after)
    assert seen(each, "disk_read", None, Reading(disks=None), 3.0) == []


def test_what_nobody_is_billed_for_counts_as_written() -> None:
    each = elastic(io_write=Range(MB, 100 * MB))
    at = Reading(disks=disks(0, 0), unbilled_bytes=0)
    assert seen(each, "disk_write", None, at, 1.0) == []
    (move,) = seen(each, "disk_write", None, at.but(unbilled_bytes=9 * MB), 2.0)
    assert move.use == 9 * MB


def test_what_does_not_move_is_never_asked_to() -> None:
    each = elastic(FROZEN, memory=Range(64 * MIB, 4000 * MIB))
    assert (
        seen(each, "memory", 250 * MIB, Reading(memory_limit=256 * MIB), 1.0, notified=True) == []
    )


def test_where_memory_is_to_be_raised_and_how_far_it_may_go() -> None:
    each = elastic(memory=Range(64 * MIB, 4000 * MIB))
    assert each.wake_at(256 * MIB) == 192 * MIB
    assert each.wake_at(None) is None
    assert each.ceiling("memory") == 4000 * MIB
    assert each.ceiling("cpu") is None
    assert elastic(cpu=Range(0.1, 4.0)).wake_at(256 * MIB) is None


def test_each_limit_but_disk_rates_is_read() -> None:
    read = {key for key in LIMIT_SPECS if LIMIT_SPECS[key].resource and limit_of(key) is not None}
    assert read == {"memory", "cpu", "pids", "net_in", "net_out"}
    assert limit_of("io_write=/data") is None
