"""Samples -> curves: rates between neighbours, and nothing invented."""

from __future__ import annotations

import pytest

from agentres.model.stats import Sample
from agentres.policy.resources import EVENT, RESOURCES
from agentres.readers.curves import CURVES, curves, pieces


def test_there_is_a_curve_for_each_resource_that_is_no_event() -> None:
    wanted = {name for name, resource in RESOURCES.items() if resource.kind != EVENT}
    assert set(CURVES) == wanted | {"memory_current"}


def test_no_samples_make_empty_curves() -> None:
    drawn = curves([])
    assert drawn.times == ()
    assert all(
        curve.empty and curve.limit is None and curve.last is None and curve.highest is None
        for curve in drawn.by_name.values()
    )


def test_a_level_is_what_the_sample_says() -> None:
    sample = Sample(working_set=3, memory_current=5, pids_current=7, fds=9, swap_current=0)
    drawn = curves([(100.0, sample)])
    values = {name: drawn[name].values for name in ("memory", "memory_current", "pids", "fds")}
    assert values == {"memory": (3,), "memory_current": (5,), "pids": (7,), "fds": (9,)}
    assert drawn["swap"].values == (0,)


@pytest.mark.parametrize(
    ("name", "counters", "expected"),
    [
        ("cpu", [{"usage_usec": 0}, {"usage_usec": 3_000_000}], 1.5),
        ("disk_read", [{"rbytes": 10}, {"rbytes": 110}], 50),
        ("disk_write", [{"wbytes": 10}, {"wbytes": 10}], 0),
        ("disk", [{"rbytes": 0, "wbytes": 0}, {"rbytes": 10, "wbytes": 30}], 20),
        ("cpu_pressure", [{"cpu_some_usec": 0}, {"cpu_some_usec": 1_000_000}], 0.5),
        ("memory_pressure", [{"memory_some_usec": 5}, {"memory_some_usec": 5}], 0),
        ("io_pressure", [{"io_some_usec": 0}, {"io_some_usec": 2_000_000}], 1),
        (
            "network",
            [{"rx_bytes": 0, "tx_bytes": 0}, {"rx_bytes": 1, "tx_bytes": 1}],
            1,
        ),
    ],
)
def test_a_rate_is_the_mean_since_the_neighbour(
    name: str, counters: list[dict[str, int]], expected: float
) -> None:
    samples = [(100.0 + 2 * n, Sample(**fields)) for n, fields in enumerate(counters)]
    assert curves(samples)[name].values == (None, pytest.approx(expected))


@pytest.mark.parametrize(
    ("second", "passed"),
    [
        (Sample(), 5),  # the file has vanished
        (Sample(usage_usec=1), 5),  # made anew
        (Sample(usage_usec=9), 0),
        (Sample(usage_usec=9), -60),  # the clock was set back
    ],
)
def test_what_is_not_known_is_absent_and_not_0(second: Sample, passed: float) -> None:
    drawn = curves([(100.0, Sample(usage_usec=5)), (100.0 + passed, second)])
    assert drawn["cpu"].values == (None, None)
    assert drawn["cpu"].empty


def test_a_rate_is_not_taken_across_a_gap() -> None:
    samples = [
        (0.0, Sample(usage_usec=0)),
        (1.0, Sample()),
        (2.0, Sample(usage_usec=10**6)),
        (3.0, Sample(usage_usec=2 * 10**6)),
    ]
    assert curves(samples)["cpu"].values == (None, None, None, pytest.approx(1.0))


def test_a_disk_of_which_only_the_reads_are_known_has_no_total() -> None:
    drawn = curves([(0.0, Sample(rbytes=0)), (1.0, Sample(rbytes=5))])
    assert drawn["disk"].empty
    assert drawn["disk_read"].values == (None, 5)


def test_the_limit_is_that_of_each_moment() -> None:
    samples = [(0.0, Sample(working_set=1, memory_limit=10)), (1.0, Sample(working_set=2))]
    drawn = curves(samples)
    assert drawn["memory"].limits == (10, None)
    assert drawn["memory_current"].limits == (10, None)
    assert drawn["memory"].limit is None
    assert drawn["fds"].limits == (None, None)


def test_a_curve_tells_its_highest_and_last_known_value() -> None:
    curve = curves([(float(n), Sample(fds=fds)) for n, fds in enumerate([3, 8, 5, None])])["fds"]
    assert (curve.highest, curve.last, curve.empty) == (8, 5, False)


def test_a_curve_breaks_where_a_value_is_absent() -> None:
    values = [None, 1.0, 2.0, None, None, 3.0]
    assert pieces(range(6), values) == [[(1, 1.0), (2, 2.0)], [(5, 3.0)]]
    assert pieces([], []) == []


def test_a_level_is_drawn_at_its_highest_since_the_sample_before() -> None:
    sample = Sample(
        working_set=5, working_set_most=9, memory_current=6, memory_most=12,
        swap_current=2, swap_most=7, pids_current=1, pids_most=4,
    )  # fmt: skip
    drawn = curves([(1.0, sample), (2.0, sample.but(working_set_most=None))])
    assert drawn["memory"].values == (9, 5)
    assert drawn["memory_current"].values == (12, 12)
    assert drawn["swap"].values == (7, 7)
    assert drawn["pids"].values == (4, 4)
