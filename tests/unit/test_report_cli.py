"""``agentres report`` over a history filled by hand: a table, JSON, CSV and a page, and errors."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from json_types import check
from reported import MIB, a_run, sample
from told import event

from agentres.model import history_schemas
from agentres.report import USED
from agentres.report.plain import COLUMNS, to_csv
from agentres.store import Store

HOSTILE = "=cmd|' /C calc'!A0<script>alert(1)</script>\x1b[31m\n&amp;"


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
    check(made, history_schemas.ReportJson)
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
        assert (row["stalled_io"], row["stalled_cpu"]) == ("0.2", "")
        assert row["memory_waste"].startswith("0.8")


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
    pytest.importorskip("matplotlib", reason="the VM's image has no matplotlib")
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
    for fit in (
        "@media print {",
        "@media (prefers-color-scheme: dark) {",
        "@media (max-width: 40em) {",
    ):
        assert fit in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert len(set(page.ids)) == len(page.ids)
    assert {*page.addresses} <= {f"#{one}" for one in page.ids}
    assert sum(title.startswith("raise memory, ") for title in page.titles) == 3
    assert sum(title.endswith(" is short") for title in page.titles) == 3
    assert "\x1b" not in text
    assert "<script>alert(1)" in page.text  # as text
    assert page.tags.count("svg") == 3
    assert re.search(r"What matters.*planner: an earlier run of [\d:]+: a process was killed for memory, by", page.text)  # fmt: skip
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
    check(made, history_schemas.ReportJson)
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
    made = json.loads(file.read_text())
    check(made, history_schemas.ReportJson)
    (run,) = made["agents"][0]["runs"]
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
    pytest.importorskip("matplotlib", reason="the VM's image has no matplotlib")
    now = time.time()
    for number in range(500):
        run = a_run(f"agent-{number % 20}", f"{number:08x}", started=now - 500 + number, ended=None)
        store.begin(run)
        store.add((run.id, run.started + at, sample(at)) for at in range(5))
        store.end(run.id, now, 0)
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = report("-o", str(tmp_path / "r.html"))
    took, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Of a processor, which others do not take from it: several times what it takes where nothing else runs.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 30
    print(f"a page of 500 runs: {took:.1f} s, {(tmp_path / 'r.html').stat().st_size >> 10} KiB")
    page = _Page()
    page.feed((tmp_path / "r.html").read_text())
    assert page.tags.count("svg") == 12
    assert "488 more runs have curves that are not drawn here" in page.text
