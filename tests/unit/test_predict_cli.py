"""``agentres predict`` over a history filled by hand: what the next run starts with, why, and errors."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command_line import agentres
from json_types import check

from agentres.cli import predict as module
from agentres.model.history_schemas import PredictionJson, ProfileList
from agentres.model.limits import Host
from agentres.policy.observer import Observation
from agentres.store import Run, Store

pytestmark = pytest.mark.usefixtures("noon")

MIB = 1 << 20


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTRES_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("AGENTRES_CONFIG", str(tmp_path / "agentres.toml"))
    (tmp_path / "agentres.toml").touch()
    monkeypatch.setattr(module.host, "read", lambda: Host(8, 16 << 30))
    for variable in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "state"


@pytest.fixture
def filled(state: Path) -> float:
    """Four runs of fixer, one of them killed; one of a command, under a name that was made up."""
    now = time.time()
    store = Store.open(str(state / "history.db"))
    for n in range(4):
        calm = Observation(memory=200e6, cpu=((0.5, 60.0),), pids=12)
        killed = calm.but(memory=255e6, oom=float(256 * MIB), memory_held=float(256 * MIB))
        store.learn("name:fixer", killed if n == 0 else calm, now - 3600)
    store.learn("command:python agent.py", Observation(memory=900e6), now - 60)
    store.begin(
        Run(
            "aaaa0001",
            "python-a1b2c3",
            "agent",
            ("/usr/bin/python", "-u", "src/agent.py"),
            1000,
            "/x",
            42,
            99,
            "boot",
            now - 120,
        )
    )
    store.close()
    return now


def configure(tmp_path: Path, text: str) -> None:
    (tmp_path / "agentres.toml").write_text(text)


def run(*line: str) -> tuple[int, str, str]:
    return agentres("predict", *line)


def ok(*line: str) -> str:
    code, out, err = run(*line)
    assert (code, err) == (0, "")
    return out


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.mark.usefixtures("filled")
def test_what_the_next_run_starts_with() -> None:
    out = ok("fixer")
    assert max(map(len, out.splitlines())) <= 80
    assert "fixer: 4 runs, the last one learnt at " in out
    table = {row[0]: row[1:] for row in rows(out)[1:]}
    assert table["memory"] == [
        "423",
        "MiB",
        "32.0",
        "MiB",
        "12.8",
        "GiB",
        "367",
        "MiB",
        "422",
        "MiB",
    ]
    assert table["cpu"][:6] == ["0.59", "cores", "0.10", "cores", "6.40", "cores"]
    assert table["pids"] == ["512", "fixed", "fixed", "-", "-"]


@pytest.mark.usefixtures("filled")
def test_why(tmp_path: Path) -> None:
    out = " ".join(ok("fixer", "--explain").split())
    assert (
        "memory 423 MiB: 90% of the peaks of 4 runs took at most 367 MiB, and a margin of 15%"
        in out
    )
    assert "25% of that was held by a limit and counts as more than the limit" in out
    assert "held by a limit 1 time, of them 1 with a process killed for memory" in out
    assert "counts half after 24h; all of it weighs as much as 3.9 runs of now" in out
    assert "206 MiB 75.0%" in out
    assert "367 MiB 25.0% 100%" in out
    configure(tmp_path, "[prediction]\npercentile = '50%'\nmargin = '0%'\n")
    assert "memory 206 MiB: 50% of the peaks" in " ".join(ok("fixer", "--explain").split())


@pytest.mark.parametrize(
    ("runs", "days", "words"),
    [(200, 0.0, "200 runs of now"), (1, 2.0, "0.25 runs of now"), (1, 30.0, "less than 0.01 runs")],
)
def test_what_all_of_it_weighs(state: Path, runs: int, days: float, words: str) -> None:
    store = Store.open(str(state / "history.db"))
    for _ in range(runs):
        store.learn("name:old", Observation(memory=200e6), time.time() - days * 86400)
    store.close()
    assert f"weighs as much as {words}" in " ".join(ok("old", "--explain").split())


@pytest.mark.usefixtures("filled")
def test_the_configurations_ranges_bound_it(tmp_path: Path) -> None:
    configure(tmp_path, "[limits]\nmemory = '64M:300M'\ncpu = '2'\npids = '4:100'\n")
    table = {row[0]: row[1:] for row in rows(ok("fixer"))[1:]}
    assert table["memory"] == [
        "300",
        "MiB",
        "64.0",
        "MiB",
        "300",
        "MiB",
        "367",
        "MiB",
        "422",
        "MiB",
    ]
    assert table["cpu"] == ["2.00", "cores", "fixed", "fixed", "-", "-"]
    assert table["pids"] == ["14", "4", "100", "12", "13.8"]
    assert "422 MiB is beyond the most that it may have" in " ".join(
        ok("fixer", "--explain").split()
    )


def test_as_json(filled: float) -> None:
    told = json.loads(ok("fixer", "--json"))
    check(told, PredictionJson)
    assert set(told["limits"]) == {"memory", "cpu"}
    memory = told["limits"]["memory"]
    assert (memory["first"], memory["least"]) == (423 * MIB, 32 * MIB)
    assert memory["held"] == pytest.approx(0.25)
    history = told.pop("history")
    assert (history["runs"], history["ooms"], history["capped"]) == (4, 1, 1)
    assert history["last"] == pytest.approx(filled - 3600)
    assert [weight for _, _, weight in history["use"]["memory"]] == pytest.approx([3.0])
    assert [weight for _, _, weight in history["held"]["memory"]] == pytest.approx([1.0])
    assert told["weight"] == pytest.approx(4 * 2 ** (-1 / 24), rel=0.01)
    del told["limits"], told["weight"]
    assert told == {
        "schema": 1, "key": "name:fixer", "predict": True, "predictor": None,
        "settings": {"half_life": 86400.0, "percentile": 0.9, "margin": 0.15},
        "units": {"memory": "bytes", "cpu": "cores", "pids": "count"},
    }  # fmt: skip


@pytest.mark.usefixtures("filled")
def test_a_command_and_a_name_that_was_made_up_for_one() -> None:
    for line in (["--command", "python -u /x/agent.py"], ["python-a1b2c3"]):
        assert json.loads(ok(*line, "--json"))["key"] == "command:python agent.py"
    assert "command python agent.py: 1 run, " in ok("python-a1b2c3")
    named = json.loads(ok("new", "--command", "python agent.py", "--json"))
    check(named, PredictionJson)
    assert named["key"] == "command:python agent.py"


@pytest.mark.usefixtures("filled")
def test_all_that_is_known() -> None:
    assert [row[:3] for row in rows(ok())[1:]] == [
        ["command", "python", "agent.py"],
        ["name", "fixer", "4"],
    ]
    told = json.loads(ok("--json"))
    check(told, ProfileList)
    assert [(one["key"], one["runs"]) for one in told["profiles"]] == [
        ("command:python agent.py", 1),
        ("name:fixer", 4),
    ]


def test_nothing_is_known_yet(state: Path) -> None:
    Store.open(str(state / "history.db")).close()
    assert ok() == "nothing is known yet: it is learnt when a run ends\n"
    assert json.loads(ok("--json")) == {"schema": 1, "profiles": []}


@pytest.mark.usefixtures("filled")
def test_where_no_limit_moves_nothing_is_predicted(tmp_path: Path) -> None:
    configure(tmp_path, "[limits]\nmemory = '1G'\ncpu = '2'\npids = '100'\n")
    told = json.loads(ok("fixer", "--json"))
    check(told, PredictionJson)
    assert (told["limits"], told["weight"]) == ({}, None)


@pytest.mark.usefixtures("filled")
def test_that_it_is_not_used_is_told(tmp_path: Path) -> None:
    configure(tmp_path, "[scaling]\npredict = false\n")
    assert "not used: the configuration has scaling.predict = false" in ok("fixer")


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (["fixr"], 1, "nothing is known of 'fixr'; did you mean fixer?"),
        (["zzz\x1b[31m"], 1, "nothing is known of 'zzz\\x1b[31m'; agentres predict lists what is"),
        (["--command", "ruby x"], 1, "nothing is known of 'ruby x'"),
        (["--command", "a 'b"], 2, "--command"),
        (["--command", " "], 2, "--command"),
    ],
)
def test_what_goes_wrong_is_one_line(line: list[str], code: int, words: str) -> None:
    got, out, err = run(*line)
    assert (got, out) == (code, "")
    assert words in err
    if code == 1:
        assert err.startswith("agentres: ")
        assert err.count("\n") == 1


def test_no_history_yet(state: Path) -> None:
    code, out, err = run("fixer")
    assert (code, out) == (1, "")
    assert err == f"agentres: no history yet at {state}/history.db\n"
    assert not state.exists()


@pytest.mark.usefixtures("filled")
def test_a_profile_that_cannot_be_read(state: Path) -> None:
    with closing(sqlite3.connect(state / "history.db")) as db, db:
        db.execute("UPDATE profiles SET data = 'x' WHERE key = 'name:fixer'")
    code, out, err = run("fixer")
    assert (code, out) == (1, "")
    assert "what is known of 'name:fixer'" in err
    code, out, err = run()
    assert (code, err.count("\n")) == (0, 1)
    assert rows(out)[2][:3] == ["name", "fixer", "-"]
    told = json.loads(run("--json")[1])
    check(told, ProfileList)
    assert [one["runs"] for one in told["profiles"]] == [1, None]


@pytest.mark.usefixtures("filled")
def test_a_configuration_that_makes_no_sense_is_one_line(tmp_path: Path) -> None:
    configure(tmp_path, "[prediction]\npercentile = 'most'\n")
    code, out, err = run("fixer")
    assert (code, out) == (1, "")
    assert "prediction.percentile" in err


@pytest.mark.usefixtures("filled")
def test_a_bad_predictor_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentres.policy.settings import Settings

    def loaded(paths: Any) -> Settings:
        return Settings(predictor="nobody")

    monkeypatch.setattr(module, "loaded", loaded)
    code, out, err = run("fixer", "--json")
    assert (code, err.count("\n")) == (0, 1)
    assert "predictor nobody: no entry point" in err
    assert json.loads(out)["limits"]["memory"]["first"] == 423 * MIB


@pytest.mark.usefixtures("state")
def test_a_histogram_of_many_buckets_is_told_in_few_rows(state: Path) -> None:
    store = Store.open(str(state / "history.db"))
    spread = tuple((0.02 * n, 1.0) for n in range(100))
    store.learn("name:fixer", Observation(cpu=spread), time.time())
    store.close()
    out = ok("fixer", "--explain")
    table = out[out.index("cpu up to") :].splitlines()[1:]
    assert 10 <= len(table) <= 20
    assert sum(float(row.split()[2].rstrip("%")) for row in table) == pytest.approx(100, abs=1)
