"""``benchmarks/contention``: what it replays, on recordings that can be worked out by hand, and what it tells."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import write

from agentres import config
from agentres.model.limits import Host, Range, page_align
from agentres.run import options

FOLDER = Path(__file__).parents[2] / "benchmarks"
MB = 10**6
PAGE = 4096


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The script, with its modules as attributes: ``bench.plans``, ``bench.session``, …"""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(FOLDER))
    try:
        loader = importlib.machinery.SourceFileLoader("contention", str(FOLDER / "contention"))
        spec = importlib.util.spec_from_loader("contention", loader)
        assert spec is not None
        module: Any = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        for name in ("plans", "session", "rounds", "tables", "ways"):
            setattr(module, name, importlib.import_module(f"_replay.{name}"))
        module.Recording = importlib.import_module("_fleet.recordings").Recording
        yield module
    finally:
        sys.path.remove(str(FOLDER))
        sys.dont_write_bytecode = before
        for name in [
            name for name in sys.modules if name.partition(".")[0] in ("_fleet", "_replay")
        ]:
            del sys.modules[name]


def recorded(bench: Any, *uses: float, name: str = "haiku/task/1") -> Any:
    """One sample each two seconds, in MB."""
    return bench.Recording(name, [2.0 * at for at in range(len(uses))], [use * MB for use in uses])


def row(task: str, *uses: float, model: str = "haiku", attempt: int = 1) -> dict[str, object]:
    samples = [[at, use, 0] for at, use in enumerate(uses)]
    return {"model": model, "task": task, "attempt": attempt, "samples": samples}


# What is replayed.


def test_a_plan_follows_the_samples_at_its_speed_on_top_of_the_base(bench: Any) -> None:
    made = bench.plan(recorded(bench, 10, 30, 20), 20, 100 * MB)
    assert made.held == 100 * MB
    assert made.steps == [(0.0, 110 * MB), (0.1, 130 * MB), (0.1, 120 * MB)]
    assert made.seconds == pytest.approx(0.2)
    assert made.peak == 130 * MB


def test_a_part_begins_with_what_was_in_use_before_it(bench: Any) -> None:
    recording = recorded(bench, 10, 30, 20, 50, 40)
    made = bench.plan(recording, 2, MB, 3, 6)
    assert made.held == 31 * MB
    assert made.steps == [(0.5, 21 * MB), (1.0, 51 * MB)]


@pytest.mark.parametrize(("begin", "end"), [(9, math.inf), (2.5, 3.5)])
def test_a_part_without_a_sample_is_told(bench: Any, begin: float, end: float) -> None:
    with pytest.raises(bench.Unknown, match=r"haiku/task/1 has no sample from .* it is 8 s long"):
        bench.plan(recorded(bench, 1, 2, 3, 4, 5), 20, 0, begin, end)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=30), st.floats(0.1, 100))
def test_a_plan_ends_when_its_recording_does_and_a_session_understands_it(
    bench: Any, uses: list[int], speed: float
) -> None:
    recording = bench.Recording("r", [float(at) for at in range(len(uses))], uses)
    made = bench.plan(recording, speed, 7)
    assert made.seconds == pytest.approx(recording.seconds / speed)
    assert [size - 7 for _, size in made.steps] == uses
    held, *words = made.text.split()
    assert int(held) == made.held
    assert [(float(a), int(b)) for a, b in (word.split(":") for word in words)] == made.steps


def test_demand_is_the_most_at_one_time(bench: Any) -> None:
    one = bench.plan(recorded(bench, 10, 50, 10, 10, 10), 2, 0)
    other = bench.plan(recorded(bench, 10, 10, 10, 40), 2, 0)
    assert bench.demand([one, other]) == (90 * MB, 60 * MB, 1.0)
    assert bench.demand([one, one]) == (100 * MB, 100 * MB, 1.0)


def test_who_has_ended_holds_nothing(bench: Any) -> None:
    short = bench.plan(recorded(bench, 10, 20), 2, 0)
    late = bench.plan(recorded(bench, 10, 10, 15), 2, 0)
    # The last sample of the one still counts, beside what the other has at that time.
    assert bench.demand([short, late]) == (35 * MB, 30 * MB, 1.0)


def test_a_task_is_chosen_by_its_name(bench: Any) -> None:
    names = ("glm/a/1", "haiku/a/2", "haiku/a/1", "glm/b/1", "glm/c/1", "glm/c/2", "haiku/ab/1")
    recordings = [recorded(bench, 1, 2, name=name) for name in names]
    for word, name in (
        ("a", "haiku/a/1"),  # as in the study
        ("b", "glm/b/1"),  # the only one
        ("glm/a", "glm/a/1"),
        ("haiku/a/2", "haiku/a/2"),
    ):
        assert bench.choose(recordings, word).name == name
    with pytest.raises(bench.Unknown, match=r"c: there are several: glm/c/1, glm/c/2"):
        bench.choose(recordings, "c")
    with pytest.raises(
        bench.Unknown, match=r"z: no recording of that task; there are glm/a/1, .* and 2 more"
    ):
        bench.choose(recordings, "z")


# One session.


def resident() -> int:
    """Bytes of anonymous memory of this process."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) << 10


def test_memory_is_really_touched_and_really_freed(bench: Any) -> None:
    before = resident()
    memory = bench.session.Memory(64 << 20)
    assert resident() - before < 8 << 20
    assert memory.follow(50 << 20) == 50 << 20
    assert resident() - before > 48 << 20
    assert memory.follow(10 << 20) == 0
    assert resident() - before < 18 << 20
    memory.follow(0)
    assert resident() - before < 8 << 20


@given(st.lists(st.integers(0, 32 << 20), max_size=12))
def test_what_is_held_is_what_was_asked_for_and_at_most_a_grain_more(
    bench: Any, sizes: list[int]
) -> None:
    memory = bench.session.Memory(32 << 20)
    for size in sizes:
        before = memory.held
        allocated = memory.follow(size)
        assert size <= memory.held < size + bench.session.GRAIN
        assert allocated == max(0, size - before)


def test_allocations_are_timed_and_freeing_is_not(bench: Any) -> None:
    memory = bench.session.Memory(32 << 20)
    sizes = [8 << 20, 4 << 20, 16 << 20]
    start = time.monotonic()
    seconds, taken = bench.session.replay(memory, [(0.0, size) for size in sizes], start)
    assert [size for size, _ in taken] == [8 << 20, 12 << 20]
    assert 0 < sum(took for _, took in taken) <= seconds


# Several at once, and what becomes of them.


def play(bench: Any, line: Any, *uses: float) -> Any:
    made = bench.plan(recorded(bench, *uses), 1000, MB)
    return bench.rounds.play(line, [made, made], settle=0.0)


def test_sessions_are_replayed_together(bench: Any) -> None:
    ended = play(bench, lambda number, command: command, 4, 12, 8)
    assert [one.lived for one in ended] == [True, True]
    assert all(len(one.taken) == 2 and one.seconds >= 0.004 for one in ended)


def test_who_is_killed_did_not_live_and_the_others_do(bench: Any) -> None:
    def line(number: int, command: list[str]) -> list[str]:
        return ["sh", "-c", "echo ready; read plan; read start; kill -9 $$"] if number else command

    high, low = play(bench, line, 4, 8)
    assert high.lived
    assert (low.why, low.taken) == ("was killed", ())
    early = ["sh", "-c", "kill -9 $$"]
    high, low = play(bench, lambda number, command: early if number else command, 4, 8)
    assert high.lived
    assert low.why == "was killed before the start"


def test_who_fails_is_told_with_its_words(bench: Any) -> None:
    late = ["sh", "-c", "echo ready; read plan; read start; echo oh >&2; exit 3"]
    ended = play(bench, lambda number, command: late, 4, 8)
    assert [one.why for one in ended] == ["exited 3: oh"] * 2
    with pytest.raises(
        bench.rounds.Failed, match=r"session 1, haiku/task/1, exited 125 .*: no room"
    ):
        play(bench, lambda number, command: ["sh", "-c", "echo no room >&2; exit 125"], 4, 8)


def test_the_check_is_made_when_all_are_ready(bench: Any) -> None:
    def check() -> None:
        raise bench.Unheld("memory.max is max")

    made = bench.plan(recorded(bench, 1, 2), 1000, MB)
    with pytest.raises(bench.Unheld):
        bench.rounds.play(lambda number, command: command, [made], check, settle=0.0)


# What agentres is told.


@given(st.integers(1 << 20, 1 << 40), st.floats(0.011, 0.99))
def test_the_share_comes_to_the_total(bench: Any, host: int, part: float) -> None:
    host, total = page_align(host, PAGE), page_align(int(host * part), PAGE)
    share = float(bench.ways.share(total, host).rstrip("%")) / 100
    # Nine decimals of a percent of a terabyte are 11 bytes.
    assert page_align(int(host * share), PAGE) == total


@pytest.mark.parametrize("total", [1100 * MB, 1300 * MB])
def test_agentres_understands_what_it_is_told(bench: Any, tmp_path: Path, total: int) -> None:
    host, total = Host(2, 4_104_716_288), page_align(total, PAGE)
    file = tmp_path / "agentres.toml"
    file.write_text(bench.ways.configuration(total, host.memory))
    settings = config.load([str(file)], lambda: host)
    assert page_align(int(host.memory * settings.budget_share), PAGE) == total
    assert not settings.predict
    for number, priority in ((0, 400), (1, 25), (2, 25)):
        line = bench.ways.run(total, file, "aggressive", number, ["true", "--name"])
        assert line[:2] == ["agentres", "run"]
        parsed = options.parse(line[2:])
        assert parsed is not None
        found = options.understand(*parsed, host, settings)
        assert found.request.command == ("true", "--name")
        assert found.request.limits.ranges == {"memory": Range(64 << 20, total)}
        assert (found.priority, found.philosophy) == (priority, "aggressive")
        assert found.request.limits.cpu == "max"


# Figures.


def ended(bench: Any, seconds: float, *taken: float) -> Any:
    return bench.SessionOutcome("", seconds, taken)


def test_a_percentile_is_a_value_that_was_measured(bench: Any) -> None:
    percentile = bench.tables.percentile
    values = [float(value) for value in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.95)) == (50, 95)
    assert (percentile([3.0], 0.95), percentile([], 0.5)) == (3.0, None)


def test_figures_are_of_high_beside_the_base_in_the_same_round(bench: Any) -> None:
    killed = bench.SessionOutcome("was killed")
    base = [
        [ended(bench, 4, 0.1, 0.3), ended(bench, 5), killed],
        [ended(bench, 8, 0.2), ended(bench, 5), killed],
        [killed, killed, killed],
    ]
    ours = [
        [ended(bench, 5, 0.1), ended(bench, 6), ended(bench, 9)],
        [ended(bench, 8, 0.1), ended(bench, 7), ended(bench, 8)],
        [ended(bench, 1, 0.4), killed, ended(bench, 8)],
    ]
    found = bench.tables.figures(ours, base)
    assert dict(found.survived) == {3: 2, 2: 1}
    assert (found.all_survived, found.sessions) == (2, 3)
    assert (found.ratio, found.worst) == (1.125, 1.25)  # of the rounds in which both lived
    assert (found.high, found.p50, found.p95) == (5, 0.1, 0.4)
    assert (found.low, found.low_worst) == (8, 9)
    assert dict(found.lost) == {"LOW 1 was killed": 1}
    without = bench.tables.figures(base, base)
    assert (without.ratio, without.worst) == (1, 1)
    assert dict(without.lost) == {
        "HIGH was killed": 1,
        "LOW 1 was killed": 1,
        "LOW 2 was killed": 3,
    }
    table = bench.tables.table({"base": without, "ours": found}, "base")
    assert "| base | 2 of 3 in 2 of 3, 0 of 3 in 1 of 3 | 6.00 s | 1.000 |" in table
    assert (
        "| ours | 3 of 3 in 2 of 3, 2 of 3 in 1 of 3 | 5.00 s | 1.125 | 1.250 | 100.00 ms |"
        in table
    )
    assert bench.tables.losses({"ours": found}) == ["ours: LOW 1 was killed in 1"]


def test_where_nobody_lives_there_are_no_figures(bench: Any) -> None:
    killed = [[bench.SessionOutcome("was killed")] * 3]
    found = bench.tables.figures(killed, killed)
    assert (found.high, found.ratio, found.p95, found.low) == (None,) * 4
    assert "| base | 0 of 3 in 1 of 1 | - | - |" in bench.tables.table({"base": found}, "base")
    assert not any(aim.met for aim in bench.tables.tight(found))
    assert not any(aim.met for aim in bench.tables.moderate(found, found))


def test_the_aims(bench: Any) -> None:
    base = bench.tables.figures([[ended(bench, 4, 1.0)] * 3], [[ended(bench, 4, 1.0)] * 3])
    for seconds, took, met in ((4.2, 0.71, True), (4.3, 0.72, False)):
        rounds = [[ended(bench, seconds, took)] * 3]
        ours = bench.tables.figures(rounds, [[ended(bench, 4, 1.0)] * 3])
        assert [aim.met for aim in bench.tables.tight(ours)] == [True, met]
        assert [aim.met for aim in bench.tables.moderate(ours, base)] == [met]


# The program.


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--runs=0"], "--runs: expected 1 or more"),
        (["--speed=0"], "--speed: expected a number above 0"),
        (["--speed=-1"], "'-1': expected a number, 0 or more"),
        (["--from=nan"], "'nan': expected a number, 0 or more"),
        (["--from=5", "--to=5"], "expected --from before --to"),
        (["--sessions=a"], "expected two tasks or more"),
        (["--sessions=a,,b"], "expected two tasks or more"),
        (["--only=other"], "invalid choice: 'other'"),
        (["--philosophy=none"], "invalid choice: 'none'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    bench: Any, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench.arguments(["traces", *words])
    assert told in capsys.readouterr().err


def test_what_is_wrong_with_the_file_is_told(bench: Any, tmp_path: Path) -> None:
    def planned(path: str, *words: str) -> Any:
        return bench.planned(bench.arguments([path, *words]))

    with pytest.raises(SystemExit, match=r"cannot read the recordings: .*none: No such file"):
        planned(str(tmp_path / "none"))
    bad = write(tmp_path / "bad", {"samples": "x"})
    with pytest.raises(SystemExit, match=r"bad, line 1: is no recording"):
        planned(bad)
    there = write(tmp_path / "there", row("a", 1, 2), row("b", 1, 2))
    with pytest.raises(
        SystemExit, match=r"^contention: .*there: dask__dask-11628: no recording of that task"
    ):
        planned(there)
    with pytest.raises(SystemExit, match=r"haiku/a/1 has no sample from 7 s"):
        planned(there, "--sessions=a,b,b", "--from=7")
    assert [one.name for one in planned(there, "--sessions=a, b,b")] == [
        "haiku/a/1",
        *["haiku/b/1"] * 2,
    ]


def test_it_runs_dry(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "traces", row("a", 3, 5, 4), row("b", 3, 4, 9))
    monkeypatch.setattr(bench, "BASE", MB)
    words = ["--dry", "--runs=1", "--only=tight", "--sessions=a,b", "--speed=100"]
    monkeypatch.setattr(sys, "argv", ["contention", path, *words])
    monkeypatch.setenv("AGENTRES_STATE_DIR", str(tmp_path))
    bench.main()
    out = capsys.readouterr().out
    assert "the figures say nothing" in out
    assert "### tight: 1100 MB" in out
    assert "moderate" not in out
    assert out.count("| 2 of 2 in 1 of 1 |") == 3
    assert "aim" not in out
    monkeypatch.setattr(sys, "argv", ["contention", path, *words, "--json"])
    bench.main()
    rounds = json.loads(capsys.readouterr().out)["rounds"]["tight"]
    assert list(rounds) == ["no isolation", "agentres", "no limit"]
    assert all(one["seconds"] > 0 for way in rounds.values() for one in way[0])
