"""``agentres report``: figures from a history filled by hand, advice, and each of its forms."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from told import event

from agentres.model.stats import Sample
from agentres.policy.alerts import Severity
from agentres.policy.observer import Observed
from agentres.policy.prediction import Profile, learn
from agentres.report import USED, RunReport, run_report
from agentres.report.advice import advise
from agentres.report.kills import Kill
from agentres.report.plain import COLUMNS, to_csv
from agentres.store import ActionRow, AlertRow, Run, Store

MIB = 1 << 20
HOSTILE = "=cmd|' /C calc'!A0<script>alert(1)</script>\x1b[31m\n&amp;"


def a_run(name: str = "planner", run: str = "aaaa0001", **more: Any) -> Run:
    given_ = {
        "id": run, "name": name, "of": "agent", "command": ("python", "agent.py"), "uid": 1000,
        "cgroup": "/x", "supervisor": 42, "supervisor_start": 99, "boot_id": "boot",
        "started": 1000.0, "ended": 1100.0, "exit_code": 0,
    }  # fmt: skip
    return Run(**{**given_, **more})


def sample(at: int, **more: Any) -> Sample:
    """At second 10 * at: half a core of two, 100 MiB and 10 more each time of 1 GiB."""
    used = {
        "usage_usec": at * 5_000_000, "cpu_limit": 2.0, "working_set": (100 + 10 * at) * MIB,
        "memory_current": 500 * MIB, "memory_peak": 600 * MIB, "memory_limit": 1024 * MIB,
        "nr_periods": 100 * at, "nr_throttled": 25 * at, "pids_current": 4, "pids_limit": 64,
        "memory_oom_kill": 0, "pids_max_events": 0, "io_some_usec": at * 2_000_000,
    }  # fmt: skip
    return Sample(**{**used, **more})


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
    """The last sample of a run is taken when its cgroup may have gone."""
    rows = [*samples(5), (1050.0, Sample())]
    one = run_report(a_run(), rows, [], [])
    assert (one.throttled, one.peak, one.killed) == (0.25, 600 * MIB, 0)


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
        observed = Observed(
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


# The command.


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTRES_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def store(state: Path) -> Iterator[Store]:
    made = Store.open(str(state / "history.db"))
    yield made
    made.close()


@pytest.fixture
def filled(store: Store) -> Store:
    now = time.time()
    for number, (name, code) in enumerate([("planner", 137), ("planner", 0), (HOSTILE, 0)]):
        started = now - 600 + 200 * number
        run = a_run(
            name, f"aaaa000{number}", started=started, ended=started + 100, exit_code=code,
            command=("python", HOSTILE),
        )  # fmt: skip
        store.begin(run.but(ended=None, exit_code=None))
        more = {"memory_oom_kill": int(code == 137)}
        store.add((run.id, started + 10 * at, sample(at, **more)) for at in range(11))
        store.act(
            {
                "run": run.id, "agent": name, "time": started + 20, "resource": "memory",
                "kind": "raise", "before": 512.0 * MIB, "after": 1024.0 * MIB, "rule": "up",
                "why": f"because {HOSTILE}", "took": 0.001, "values": "",
            }
        )  # fmt: skip
        message = f"memory of {name} is short"
        store.record(
            event("raised", f"0{number}", started + 30, run=run.id, agent=name, message=message)
        )
        store.end(run.id, started + 100, code)
    return store


def report(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "agentres", "report", *words],
        capture_output=True, text=True, check=False,
        env={**os.environ, "COLUMNS": "200", **environment},
    )  # fmt: skip


@pytest.mark.usefixtures("filled")
def test_a_table_and_advice() -> None:
    done = report()
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["agent", "runs", "memory", "cpu", "unused", "killed", "alerts"]
    planner = next(line for line in lines if line.startswith("planner "))
    assert "200 MiB of 1.0 GiB" in planner
    assert planner.split()[-3:] == ["84%", "1", "2"]
    assert any(line.startswith("planner, next time: --memory ") for line in lines)


@pytest.mark.usefixtures("filled")
def test_json_has_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    done = report("planner", "-o", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {file}\n", "")
    made = json.loads(file.read_text())
    assert made["schema"] == 1
    (agent,) = made["agents"]
    assert [run["id"] for run in agent["runs"]] == ["aaaa0001", "aaaa0000"]
    last, first = agent["runs"]
    assert (first["killed"], last["killed"], first["exit_code"]) == (1, 0, 137)
    assert last["use"]["memory"]["most"] == 200 * MIB
    assert "network_in" not in last["use"]
    assert [action["kind"] for action in last["actions"]] == ["raise"]
    assert [alert["severity"] for alert in last["alerts"]] == ["WARNING"]
    assert {one["option"] for one in agent["recommended"]} == {"--memory", "--cpu", "--pids"}
    assert agent["not_recommended"] is None


@pytest.mark.usefixtures("filled")
def test_a_row_a_run_and_no_formula(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    assert report("-o", str(file)).returncode == 0
    text = file.read_bytes().decode()
    assert text.count("\r\n") == 4
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 3
    assert set(rows[0]) == set(COLUMNS)
    assert {row["name"][:5] for row in rows} == {"plann", "'=cmd"}
    for row in rows:
        assert not any(value.startswith(("=", "+", "-", "@", "\t", "\r")) for value in row.values())
        assert (row["memory_most"], row["network_in_most"]) == (str(200.0 * MIB), "")


def test_a_csv_of_nothing_has_its_columns() -> None:
    from agentres.report import Report

    assert to_csv(Report(0.0, None, "h", ())) == ",".join(COLUMNS) + "\r\n"
    assert {column.partition("_m")[0] for column in COLUMNS} >= {"memory", "cpu", "pids"}
    assert all(f"{name}_most" in COLUMNS for name in USED)


class _Page(HTMLParser):
    """What a page has: tags, addresses, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self.titles: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags[-1:] == ["title"]:
            self.titles.append(data)


@pytest.mark.usefixtures("filled")
def test_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "r.html"
    done = report("-o", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    text = file.read_text()
    page = _Page()
    page.feed(text)
    assert not {"script", "iframe", "link", "img", "object", "embed", "form", "base"} & set(
        page.tags
    )
    assert page.handlers == []
    assert page.addresses
    assert all(address.startswith("#") for address in page.addresses)
    assert "//" not in text  # no address, not even a namespace's
    assert "@import" not in text
    assert len(set(page.ids)) == len(page.ids)
    assert {*page.addresses} <= {f"#{one}" for one in page.ids}
    assert sum(title.startswith("raise memory, ") for title in page.titles) == 3
    assert sum(title.endswith(" is short") for title in page.titles) == 3
    assert "\x1b" not in text
    assert "<script>alert(1)" in page.text  # as text
    assert page.tags.count("svg") == 3
    for words in (
        "Next time:",
        "a process was killed for memory, by",
        "84%",
        "because =cmd",
        "is short",
    ):
        assert words in page.text, words
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["planer"], "no run of 'planer' in the history; did you mean planner?"),
        (["planner", "--since", "1s"], "no run of 'planner' in that time"),
        (["--run", "nope"], "no run 'nope' in the history; agentres history lists the runs"),
        (["--run", ""], "no run '' in the history; agentres history lists the runs"),
        (
            ["planner", "--run", "aaaa0002"],
            "no run 'aaaa0002' of 'planner' in the history; agentres history lists the runs",
        ),
        (
            ["--run", "aaaa"],
            "several runs begin with 'aaaa': aaaa0002, aaaa0001, aaaa0000; write more of the id",
        ),
        (["-o", "/nowhere/r.json"], "cannot write /nowhere/r.json: no such file or directory"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], said: str) -> None:
    done = report(*words)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"agentres: {said}\n")


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "r.pdf"], "--output: r.pdf ends in none of .html, .json and .csv"),
        (["-o", "html"], "--output: html ends in none of .html, .json and .csv"),
        (["-o", "\x1b.html\n"], "--output: \\x1b.html\\n ends in none of .html, .json and .csv"),
        (["a", "b", "--run", "aaaa0001"], "--run: is one run: at most one NAME, no --since"),
        (["--since", "1h", "--run", "a"], "--run: is one run: at most one NAME, no --since"),
        (["--since", "soon"], "--since: "),
    ],
)
def test_a_line_that_makes_no_sense_is_one_line_and_2(words: list[str], said: str) -> None:
    done = report(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"agentres: Invalid value for {said}")
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("filled")
def test_one_run_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    for words in (["--run", "aaaa0000"], ["planner", "--run", "aaaa0000"]):
        assert report(*words, "-o", str(file)).returncode == 0
        (agent,) = json.loads(file.read_text())["agents"]
        assert (agent["name"], [run["id"] for run in agent["runs"]]) == ("planner", ["aaaa0000"])


def test_since_leaves_out_what_had_ended_and_keeps_what_runs(store: Store, tmp_path: Path) -> None:
    now = time.time()
    for run, began in (("old", now - 7200), ("new", now - 7300)):
        store.begin(a_run(run=run, started=began, ended=None, exit_code=None))
    store.end("old", now - 7000, 0)
    file = tmp_path / "r.json"
    assert report("--since", "1h", "-o", str(file)).returncode == 0
    made = json.loads(file.read_text())
    assert [run["id"] for agent in made["agents"] for run in agent["runs"]] == ["new"]
    assert made["agents"][0]["runs"][0]["ended"] is None
    assert made["since"] == pytest.approx(now - 3600, abs=60)


def test_kills_that_are_not_known_are_not_told_as_none(store: Store, tmp_path: Path) -> None:
    """What has no samples any more, and no alert."""
    store.begin(a_run(exit_code=None, ended=None))
    store.end("aaaa0001", 1100.0, 0)
    assert report().stdout.splitlines()[1].split() == ["planner", "1", "-", "-", "-", "-", "0"]
    file = tmp_path / "r.json"
    assert report("-o", str(file)).returncode == 0
    (run,) = json.loads(file.read_text())["agents"][0]["runs"]
    assert (run["killed"], run["kills"], run["use"]) == (None, [], {})
    assert "too little is known" in report().stdout


@pytest.mark.usefixtures("state")
def test_no_history_is_one_line() -> None:
    done = report()
    assert done.returncode == 1
    assert "no history yet" in done.stderr


@pytest.mark.usefixtures("store")
def test_an_empty_history(tmp_path: Path) -> None:
    assert report().stdout == "no runs\n"
    assert report("--since", "1h").stdout == "no runs in that time\n"
    for kind in ("json", "csv", "html"):
        assert report("-o", str(tmp_path / f"r.{kind}")).returncode == 0


@pytest.mark.usefixtures("filled")
def test_what_was_there_stays_where_the_new_one_fails(tmp_path: Path) -> None:
    file = tmp_path / "r.html"
    file.write_text("before")
    (tmp_path / "matplotlib.py").write_text("raise ImportError('none')")
    done = subprocess.run(
        [sys.executable, "-m", "agentres", "report", "-o", str(file)], capture_output=True,
        text=True, check=False, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "agentres: pictures need matplotlib; pip install 'agentres[report]'\n"
    assert file.read_text() == "before"


def test_five_hundred_runs_in_time(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    now = time.time()
    for number in range(500):
        run = a_run(f"agent-{number % 20}", f"{number:08x}", started=now - 500 + number, ended=None)
        store.begin(run)
        store.add((run.id, run.started + at, sample(at)) for at in range(5))
        store.end(run.id, now, 0)
    begin = time.monotonic()
    done = report("-o", str(tmp_path / "r.html"))
    took = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    print(f"a page of 500 runs: {took:.1f} s, {(tmp_path / 'r.html').stat().st_size >> 10} KiB")
    page = _Page()
    page.feed((tmp_path / "r.html").read_text())
    assert page.tags.count("svg") == 12
    assert "488 more runs have curves that are not drawn here" in page.text
