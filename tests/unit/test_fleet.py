"""The simulator's own arithmetic: ``benchmarks/fleet`` over recordings that can be worked out by hand."""

from __future__ import annotations

import gzip
import importlib.machinery
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from recordings import write

from agentres.policy.scaling import AGGRESSIVE, BALANCED, FROZEN

FOLDER = Path(__file__).parents[2] / "benchmarks"
MB = 10**6


@pytest.fixture(scope="module")
def fleet() -> Any:
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(FOLDER))
    try:
        loader = importlib.machinery.SourceFileLoader("fleet", str(FOLDER / "fleet"))
        spec = importlib.util.spec_from_loader("fleet", loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))
        sys.dont_write_bytecode = before
        for name in [name for name in sys.modules if name.partition(".")[0] == "_fleet"]:
            del sys.modules[name]


def recorded(fleet: ModuleType, *uses: float) -> Any:
    """One sample a second, in MB."""
    times = [float(at) for at in range(len(uses))]
    return fleet.Recording("recorded", times, [use * MB for use in uses])


def world(fleet: ModuleType, start: float = 256, **changed: Any) -> Any:
    made = fleet.World(int(start * MB), 64 * MB, 50_000 * MB, 0.005, 3e9)
    return made._replace(**changed)


def fixed(fleet: ModuleType, limit: float) -> Any:
    return sys.modules["_fleet.others"].fixed(limit * MB)


def test_what_is_used_is_each_sample_until_the_next_one(fleet: ModuleType) -> None:
    recording = recorded(fleet, 100, 300, 200)
    assert recording.used == 400 * MB
    assert fleet.used(recording, 1.5) == 250 * MB
    assert fleet.used(recording, 0.0) == 0


def test_what_is_reserved_is_each_limit_for_its_time(fleet: ModuleType) -> None:
    outcome = fleet.Outcome([(0.0, 10.0), (2.0, 30.0), (5.0, 20.0)])
    assert fleet.reserved(outcome, 7.0) == 20 + 90 + 40
    assert fleet.reserved(outcome, 3.0) == 20 + 30
    assert fleet.by_second(outcome, 6.5) == [10, 10, 30, 30, 30, 20, 20]


def test_a_limit_kills_where_the_peak_comes_first(fleet: ModuleType) -> None:
    recording = recorded(fleet, 100, 100, 201, 100)
    assert fixed(fleet, 201)(recording, world(fleet)).killed is None
    assert fixed(fleet, 200)(recording, world(fleet)).killed == 1.0


def test_waste_of_a_fixed_limit_and_of_the_oracle(fleet: ModuleType) -> None:
    recordings = [recorded(fleet, 100, 100, 100), recorded(fleet, 200, 200, 200)]
    row = fleet.judge("fixed", fixed(fleet, 300), recordings, world(fleet), 1e10)
    assert row.waste == pytest.approx(1.0)
    assert (row.killed, row.rewrites, row.throttled, row.fit) == (0, 0, 0, 10**10 // (300 * MB))
    oracle = sys.modules["_fleet.others"].oracle
    assert fleet.judge("oracle", oracle, recordings, world(fleet), 1e10).waste == 0


def test_a_burst_is_met_if_the_reaction_is_short_enough(fleet: ModuleType) -> None:
    recording = recorded(fleet, 100, 1000, 100)
    # The tripwire stands at 192 MB: 64 MB are left, at 3 GB/s for 21.3 ms.
    for reaction, survives in ((0.021, True), (0.022, False)):
        outcome = fleet.ours(BALANCED)(recording, world(fleet, reaction=reaction))
        assert (outcome.killed is None) is survives
    killed = fleet.ours(BALANCED)(recording, world(fleet, reaction=0.022)).killed
    assert killed == pytest.approx((256 - 100) * MB / 3e9)


def test_a_burst_that_was_faster_than_the_growth_takes_all_of_its_second(fleet: ModuleType) -> None:
    recording = recorded(fleet, 100, 8000, 8000)
    slow = fleet.ours(BALANCED)(recording, world(fleet))
    assert slow.killed is None
    assert slow.limits == fleet.ours(BALANCED)(recording, world(fleet, growth=7.9e9)).limits


def test_time_above_the_tripwire_is_the_reaction(fleet: ModuleType) -> None:
    outcome = fleet.ours(BALANCED)(recorded(fleet, 100, 250, 250), world(fleet))
    assert outcome.limits[1] == (
        pytest.approx((192 - 100) * MB / 3e9 + 0.005),
        pytest.approx(384 * MB, abs=4096),
    )
    assert outcome.throttled == pytest.approx(0.005)


def test_no_growth_means_no_move(fleet: ModuleType) -> None:
    outcome = fleet.ours(BALANCED)(recorded(fleet, *[150] * 600), world(fleet))
    assert outcome.limits == [(0.0, 256 * MB)]
    assert 599 / 5 <= outcome.looks <= 599 / 5 + 2


def test_a_frozen_limit_is_a_fixed_one(fleet: ModuleType) -> None:
    recording = recorded(fleet, 100, 250, 257, 100)
    outcome = fleet.ours(FROZEN)(recording, world(fleet))
    assert outcome.limits == [(0.0, 256 * MB)]
    assert outcome.killed == pytest.approx(1 + 6 * MB / 3e9)


def test_the_first_sample_may_already_be_too_much(fleet: ModuleType) -> None:
    assert fleet.ours(BALANCED)(recorded(fleet, 300, 300), world(fleet)).killed == 0.0


def test_giving_back_saves(fleet: ModuleType) -> None:
    recording = recorded(fleet, *[150] * 60, 2000, *[150] * 600)
    plain = BALANCED.but(give_back=math.inf, down=0.0)
    kept, given_back = (
        fleet.reserved(fleet.ours(each)(recording, world(fleet)), 660) for each in (plain, BALANCED)
    )
    assert given_back < kept / 3
    assert fleet.ours(AGGRESSIVE)(recording, world(fleet)).killed is None


def test_vpa_learns_from_one_recording_for_the_next(fleet: ModuleType) -> None:
    vpa = sys.modules["_fleet.others"].Vpa()
    first = vpa(recorded(fleet, *[400] * 10), world(fleet))
    assert first.killed == 0.0  # nothing was known
    start = vpa(recorded(fleet, *[400] * 200), world(fleet)).limits[0][1]
    learnt = (256 + 104.8576) * MB * 1.15  # the limit and 100 MiB on top, with the margin
    assert learnt <= start <= learnt * 1.08  # up to the end of its bucket, 28 MB wide


def test_autopilot_takes_the_highest_of_its_window(fleet: ModuleType) -> None:
    autopilot = sys.modules["_fleet.others"].Autopilot()
    assert autopilot(recorded(fleet, *[200] * 700), world(fleet)).limits[-1][1] == pytest.approx(
        230 * MB
    )
    assert autopilot(recorded(fleet, *[100] * 700), world(fleet)).limits[0][1] == pytest.approx(
        230 * MB
    )


def test_recordings_are_read_and_chosen_by_name(fleet: ModuleType, tmp_path: Path) -> None:
    rows = [
        {"model": m, "task": "t", "attempt": 1, "samples": [[5, 1, 0], [7, 2.5, 0]]} for m in "ab"
    ]
    path = write(tmp_path / "traces", *rows)
    assert [each.name for each in fleet.load(path)] == ["a/t/1", "b/t/1"]
    (chosen,) = fleet.load(path, "b/")
    assert (chosen.times, chosen.uses) == ([0.0, 2.0], [1 * MB, 2.5 * MB])


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (None, "is no recording"),
        ([], "fewer than two samples"),
        ([[0, 1]], "fewer than two samples"),
        ([[0, 1], [0, 2]], "not in order of time"),
        ([[0, 1], [1, -2]], "not a number, 0 or more"),
        ([[0, 1], [1, math.nan]], "not a number, 0 or more"),
        ([[0, 0], [1, 0]], "nothing is in use"),
        ([[0], [1]], "is no recording"),
        ([[0, "x"], [1, 2]], "is no recording"),
    ],
)
def test_what_is_no_recording_is_told_by_its_line(
    fleet: ModuleType, tmp_path: Path, samples: object, told: str
) -> None:
    path = write(tmp_path / "traces", {"samples": [[0, 1], [1, 2]]}, {"samples": samples})
    with pytest.raises(SystemExit, match=f"traces, line 2: .*{told}|{told}.*"):
        fleet.load(path)


def test_a_file_that_is_missing_or_empty_is_told(fleet: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"cannot read the recordings: .*: No such file"):
        fleet.load(str(tmp_path / "none"))
    with pytest.raises(SystemExit, match="holds no recording"):
        fleet.load(write(tmp_path / "empty"))
    (tmp_path / "cut").write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(SystemExit, match="cannot read the recordings"):
        fleet.load(str(tmp_path / "cut"))


def test_the_table_is_the_same_each_time(
    fleet: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uses = [[at, 150 + (at % 7 == 3) * 400] for at in range(400)]
    path = write(tmp_path / "traces", {"samples": uses}, {"samples": uses[:50]})
    told = []
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["fleet", path, "--json", "--host", "2G"])
        fleet.main()
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    rows = {row["rule"]: row for row in json.loads(told[0])["rules"]}
    assert rows["agentres, balanced"]["killed"] == 0
    assert rows["static, peak of the set"]["fit"] == 2**31 * 8 // 10 // (550 * MB)
