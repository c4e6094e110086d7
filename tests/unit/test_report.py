"""Reports of runs: figures from a history filled by hand, kills for memory, and advice."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reported import MIB, a_run, sample
from told import event

from agentres.model.stats import Sample
from agentres.policy.alerts import Severity
from agentres.policy.observer import Observation
from agentres.policy.prediction import Profile, learn
from agentres.report import AgentReport, Report, RunReport, run_report
from agentres.report.advice import advise
from agentres.report.kills import Kill
from agentres.report.page import to_html
from agentres.store import ActionRow, AlertRow


def samples(count: int, **more: Any) -> list[tuple[float, Sample]]:
    return [(1000.0 + 10 * at, sample(at, **more)) for at in range(count)]


def reported(count: int = 11, **more: Any) -> RunReport:
    return run_report(a_run(), samples(count, **more), [], [])


def told(one: RunReport) -> list[str]:
    return [finding.text for finding in one.findings]


def action(at: float, kind: str, after: float | None, **more: Any) -> ActionRow:
    row = {
        "seq": 1, "run": "aaaa0001", "agent": "planner", "time": at, "resource": "memory", "kind": kind,
        "before": None, "after": after, "rule": "up", "why": "why not", "took": None, "values": "",
    }  # fmt: skip
    return ActionRow(**{**row, **more})


def alert(at: float, resource: str = "oom_kill", value: float = 1.0) -> AlertRow:
    given_ = event("raised", "01", at, resource=resource, unit="count", value=value, limit=None)
    given_["severity"] = given_["last_severity"] = Severity.EMERGENCY
    unset = dict.fromkeys(("handled", "acknowledged", "acknowledged_by", "acknowledged_why"))
    return AlertRow(**{**{key: given_.get(key) for key in AlertRow.__match_args__}, **unset})


# Figures.


def test_what_was_used_of_what_it_had() -> None:
    one = reported()
    memory = one.uses["memory"]
    assert (memory.median, memory.high, memory.most) == (150 * MIB, 200 * MIB, 200 * MIB)
    assert memory.limit == 1024 * MIB
    assert memory.reserved == 100 * 1024 * MIB
    # 1024 less 110, 120 … 200, each for ten seconds.
    assert memory.idle == (10 * 1024 - 1550) * 10 * MIB
    assert memory.waste == pytest.approx(1 - 1550 / 10240)
    cpu = one.uses["cpu"]
    assert (cpu.median, cpu.most, cpu.limit, cpu.waste) == (0.5, 0.5, 2.0, 0.75)
    assert one.throttled == 0.25
    assert one.stalled == {"io": 0.2}
    assert (one.peak, one.killed, one.refused) == (600 * MIB, 0, 0)


def test_what_is_not_known_is_none_and_not_nothing() -> None:
    one = run_report(a_run(), [], [], [])
    assert (one.uses, one.throttled, one.stalled) == ({}, None, {})
    assert (one.peak, one.killed, one.refused) == (None, None, None)
    assert told(one) == ["no samples of it are left"]
    bare = run_report(a_run(), [(1.0, Sample(working_set=5)), (2.0, Sample(working_set=5))], [], [])
    assert list(bare.uses) == ["memory"]
    assert (bare.uses["memory"].limit, bare.uses["memory"].waste) == (None, None)


def test_findings_in_words() -> None:
    words = " | ".join(told(reported(memory_oom_kill=2, pids_max_events=7)))
    assert words.startswith("2 processes were killed for memory, by ")
    assert "7 forks were refused" in words
    assert "CPU was at its limit in 25% of its periods" in words
    assert "waited for io in 20% of the time" in words
    assert "84% of its memory was reserved and not used: at most 200 MiB of 1.0 GiB" in words


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.integers(0, 1 << 40), st.one_of(st.none(), st.integers(1, 1 << 40))),
        max_size=30,
    )
)  # fmt: skip
def test_any_samples_make_figures_that_agree(rows: list[tuple[float, int, int | None]]) -> None:
    at, taken = 0.0, []
    for passed, used, limit in rows:
        at += passed
        taken.append((at, Sample(working_set=used, memory_limit=limit)))
    one = run_report(a_run(), taken, [], [])
    if not rows:
        assert one.uses == {}
        return
    use = one.uses["memory"]
    assert use.median <= use.high <= use.most == max(used for _, used, _ in rows)
    if use.waste is not None:
        assert 0 <= use.waste <= 1


def test_what_it_used_is_told_of_what_it_had_then() -> None:
    """Its limit went down after the peak."""
    rows = [
        (10.0 * at, sample(at, working_set=used * MIB, memory_limit=limit * MIB))
        for at, (used, limit) in enumerate([(100, 512), (500, 512), (90, 256)])
    ]
    memory = run_report(a_run(), rows, [], []).uses["memory"]
    assert (memory.most, memory.had, memory.limit) == (500 * MIB, 512 * MIB, 256 * MIB)
    assert memory.words == "500 MiB of 512 MiB"


def test_the_last_figure_that_is_known_counts() -> None:
    """The first sample of a run may lack what is not counted yet, the last is taken when its cgroup may have gone."""
    rows = [(990.0, Sample()), *samples(5), (1050.0, Sample())]
    one = run_report(a_run(), rows, [], [])
    assert (one.throttled, one.peak, one.killed) == (0.25, 600 * MIB, 0)
    assert one.stalled == {"io": 0.2}
    assert one.uses["memory"].limit == 1024 * MIB


def test_a_limit_that_was_lifted_is_none_at_the_end() -> None:
    rows = [*samples(5), (1050.0, sample(5, memory_limit=None))]
    memory = run_report(a_run(), rows, [], []).uses["memory"]
    assert memory.limit is None


def test_an_alert_is_drawn_as_grave_as_it_was() -> None:
    drawn = {}
    for severity in Severity:
        one = run_report(a_run(), [], [], [alert(1010.0).but(severity=severity)])
        agents = (AgentReport("planner", (one,), (), "nothing is known"),)
        page = to_html(Report(1100.0, None, "builder", agents))
        drawn[severity.name] = re.findall(rf'<td class="(\w+)">{severity.name}</td>', page)
    assert drawn == {
        "INFO": ["dim"], "WARNING": ["warn"], "CRITICAL": ["bad"], "EMERGENCY": ["bad"],
    }  # fmt: skip


# Kills for memory.


def killed_at(*counts: int | None) -> list[tuple[float, Sample]]:
    return [
        (1000.0 + 10 * at, sample(at, memory_oom_kill=count, memory_limit=(1024 - 100 * at) * MIB))
        for at, count in enumerate(counts)
    ]


def test_a_kill_lies_between_two_samples_and_met_the_limit_of_the_first() -> None:
    (kill,) = run_report(a_run(), killed_at(0, 0, 2, 2), [], []).kills
    assert kill == Kill(1020.0, 2, 924 * MIB, 110 * MIB, "")


def test_a_limit_that_was_moved_since_the_sample_is_the_one_that_was_met() -> None:
    moves = [action(1012.0, "raise", 2048.0 * MIB), action(1021.0, "lower", 64.0 * MIB)]
    (kill,) = run_report(a_run(), killed_at(0, 0, 1), moves, []).kills
    assert kill.limit == 2048 * MIB


@pytest.mark.parametrize("kind", ["throttle", "refuse", "release"])
def test_why_a_limit_was_not_raised_before_a_kill(kind: str) -> None:
    moves = [action(1011.0, kind, None, why="the budget has no more")]
    one = run_report(a_run(), killed_at(0, 0, 1), moves, [])
    assert one.kills[0].why == "the budget has no more"
    assert told(one)[0].endswith("; the limit was not raised: the budget has no more")
    moves.append(action(1015.0, "raise", 2048.0 * MIB))
    assert run_report(a_run(), killed_at(0, 0, 1), moves, []).kills[0].why == ""
    of_cpu = [action(1011.0, kind, None, resource="cpu")]
    assert run_report(a_run(), killed_at(0, 0, 1), of_cpu, []).kills[0].why == ""


def test_of_a_kill_before_the_samples_no_limit_is_made_up() -> None:
    (kill,) = run_report(a_run(), killed_at(3, 3), [], []).kills
    assert kill == Kill(1000.0, 3, None, None, "")
    assert "limit" not in told(run_report(a_run(), killed_at(3, 3), [], []))[0]


def test_without_samples_alerts_and_actions_tell_of_kills() -> None:
    moves = [action(900.0, "raise", 300.0 * MIB), action(1200.0, "raise", 500.0 * MIB)]
    one = run_report(a_run(), [], moves, [alert(1100.0, value=2.0)])
    assert one.kills == (Kill(1100.0, 2, 300 * MIB, None, ""),)
    assert one.killed == 2


def test_an_alert_knows_of_a_kill_after_the_last_sample_and_none_counts_twice() -> None:
    late = run_report(a_run(), killed_at(0, 0), [], [alert(1011.0)])
    assert late.kills == (Kill(1011.0, 1, 924 * MIB, 110 * MIB, ""),)
    both = run_report(a_run(), killed_at(0, 0, 1), [], [alert(1011.0)])
    assert both.killed == 1
    assert sum("killed for memory" in words for words in told(both)) == 1


def test_sigkill_without_a_known_kill_is_told_as_that() -> None:
    one = run_report(a_run(exit_code=137), samples(3), [], [])
    assert told(one)[0] == "it exited 137, as after SIGKILL; no kill for memory is known"


@given(st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=20))
def test_kills_add_up_to_the_counter(steps: list[int | None]) -> None:
    total, rows = 0, []
    for at, step in enumerate(steps):
        total += step or 0
        rows.append((float(at), sample(at, memory_oom_kill=None if step is None else total)))
    known = [row.memory_oom_kill for _, row in rows if row.memory_oom_kill is not None]
    one = run_report(a_run(), rows, [], [])
    assert sum(kill.count for kill in one.kills) == (known[-1] if known else 0)
    assert one.killed == (known[-1] if known else None)


# Advice.


def known(*peaks: int, cpu: float = 0.5, oom: int | None = None) -> Profile:
    profile = Profile.empty("name:planner")
    for peak in peaks:
        observed = Observation(
            runs=1, memory=peak * MIB, memory_held=None, oom=oom, cpu=((cpu, 1.0),), cpu_held=(),
            pids=9, pids_held=None,
        )  # fmt: skip
        profile = learn(profile, observed, 1000.0)
    return profile


def test_advice_is_from_all_runs_and_the_half_from_samples() -> None:
    advice, why = advise(known(200, 300, 400), [reported()])
    assert why == ""
    by_option = {one.option: one for one in advice}
    # 150 MiB and 15 %, and above 400 MiB by a quarter; buckets are up to 5 % and 10 MiB wide.
    least, most = by_option["--memory"].value.split(":")
    assert least == "176M"
    assert 500 <= int(most.rstrip("M")) <= 560
    assert "11 samples" in by_option["--memory"].reason
    assert "3 runs" in by_option["--memory"].reason
    assert by_option["--pids"].value == "32"
    assert by_option["--cpu"].value.startswith("0.6:")


def test_without_what_was_learnt_samples_do() -> None:
    advice, _ = advise(None, [reported()])
    by_option = {one.option: one for one in advice}
    assert by_option["--memory"].value == "176M:256M"
    # It was throttled in a quarter of its periods: half as much again.
    assert by_option["--cpu"].value == "0.6:0.8"
    assert "a limit held it" in by_option["--cpu"].reason
    assert by_option["--pids"].value == "32"


def test_who_was_killed_gets_more_room() -> None:
    calm, _ = advise(None, [reported()])
    killed, _ = advise(None, [reported(memory_oom_kill=1)])
    assert calm[0].value == "176M:256M"
    assert killed[0].value == "176M:304M"


def test_a_kill_says_nothing_of_cpu() -> None:
    one = {
        advice.option: advice
        for advice in advise(None, [reported(memory_oom_kill=1, nr_throttled=0)])[0]
    }
    assert one["--memory"].value == "176M:304M"
    assert one["--cpu"].value == "0.6:0.7"


def test_a_run_that_goes_on_counts_beside_what_was_learnt_of_smaller_ones() -> None:
    now_large = run_report(a_run(ended=None), samples(9, working_set=500 * MIB), [], [])
    advice, _ = advise(known(100), [now_large])
    assert advice[0].value == "576M:640M"


@given(
    st.lists(st.integers(1, 1 << 44), max_size=3),
    st.lists(st.integers(1, 1 << 44), max_size=8),
    st.booleans(),
)
def test_any_advice_is_one_value_or_a_range_above_what_was_used(
    learnt: list[int], used: list[int], was_killed: bool
) -> None:
    rows = [
        (1000.0 + 10 * at, sample(at, working_set=each, memory_oom_kill=int(was_killed)))
        for at, each in enumerate(used)
    ]
    profile = known(*(max(1, each // MIB) for each in learnt)) if learnt else None
    advice, why = advise(profile, [run_report(a_run(), rows, [], [])])
    assert bool(advice) != bool(why)
    for one in advice:
        ends = [float(end.rstrip("M")) for end in one.value.split(":")]
        assert ends == sorted(set(ends))
        if one.option == "--memory" and len(used) >= 3:
            assert ends[-1] * MIB >= max(used)


def test_too_little_is_no_ground_for_advice() -> None:
    advice, why = advise(None, [reported(2)])
    assert advice == ()
    assert "too little is known" in why


def test_what_is_advised_is_what_run_takes() -> None:
    from agentres.model.limits import Host
    from agentres.run.options import parse, understand

    advice, _ = advise(known(200, 300, 400), [reported()])
    line = [word for one in advice for word in (one.option, one.value)]
    limits = understand(*parse([*line, "--", "true"]), Host(8, 16 << 30)).request.limits
    assert limits.ranges["memory"].least == 176 * MIB
    assert limits.pids == 32
