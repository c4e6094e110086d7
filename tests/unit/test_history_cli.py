"""``agentres history`` over a history filled by hand: tables, curves, JSON, pictures, errors."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import agentres
from json_types import check

from agentres.model.history_schemas import ActionList, RunHistory, RunList
from agentres.model.stats import Sample
from agentres.policy.alerts import Severity
from agentres.readers import plot
from agentres.readers.curves import CURVES
from agentres.store import Run, Store

pytestmark = pytest.mark.usefixtures("noon")

HISTORY = [sys.executable, "-m", "agentres", "history"]
NAME = "we[bold]ird[/bold]\x1b[31m"


def sample(at: int, **more: Any) -> Sample:
    used = {
        "usage_usec": at * 500_000,
        "memory_current": 700 << 20,
        "working_set": 512 << 20,
        "memory_peak": (600 + at) << 20,
        "rbytes": at * 10_000_000,
        "wbytes": 0,
        "disks": (("254:0", at * 10_000_000, 0, 1, 1),),
        "pids_current": 12,
        "fds": 80,
        "cpu_some_usec": at * 100_000,
        "cpu_limit": 2.0,
        "memory_limit": 1 << 30,
        "pids_limit": 50,
    }
    return Sample(**{**used, **more})


def event(alert: str, run: str, name: str, at: float) -> dict[str, Any]:
    return {
        "schema": 1, "event": "raised", "id": alert, "run": run, "agent": name, "of": "agent",
        "rule": "memory", "resource": "memory", "unit": "bytes", "severity": "CRITICAL",
        "value": 850.0 * 2**20, "limit": float(2**30), "threshold": 819.2 * 2**20, "breached": at,
        "raised": at, "updated": at, "resolved": None, "repeats": 0, "host": "builder",
        "message": f"memory of {name} is at <b>83%</b> of its limit",
    }  # fmt: skip


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTRES_STATE_DIR", str(tmp_path / "state"))
    for variable in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "state"


@pytest.fixture
def filled(state: Path) -> float:
    """Two runs of planner, one of a strange name, and the host; gives the present."""
    now = time.time()
    store = Store.open(str(state / "history.db"))
    runs = [
        ("aaaa0001", "planner", "agent", now - 900, now - 800, 137),
        ("aaaa0002", "planner", "agent", now - 100, None, None),
        ("bbbb0001", NAME, "agent", now - 300, now - 290, 0),
        ("cccc0001", "host", "host", now - 600, None, None),
        ("dddd0001", "host", "agent", now - 50, None, None),
    ]
    for run, name, of, started, ended, code in runs:
        store.begin(
            Run(
                run,
                name,
                of,
                ("python", "a b.py"),
                1000,
                "/x",
                42,
                99,
                "boot",
                started,
                ended,
                code,
            )
        )
    store.add(("aaaa0002", now - 100 + 5 * n, sample(n)) for n in range(20))
    store.add([("bbbb0001", now - 295, sample(1))])
    store.add(
        (
            "cccc0001",
            now - 50 + 5 * n,
            Sample(working_set=8 << 30, rx_bytes=n, tx_bytes=n, load1=1.0),
        )
        for n in range(3)
    )
    store.record(event("3f9a0c12", "aaaa0002", "planner", now - 40))
    store.record(event("3f9a0c13", "bbbb0001", NAME, now - 294))
    store.close()
    return now


def run(*line: str, terminal: bool = False) -> tuple[int, str, str]:
    return agentres("history", *line, terminal=terminal)


def ok(*line: str, terminal: bool = False) -> str:
    code, out, err = run(*line, terminal=terminal)
    assert (code, err) == (0, "")
    return out


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.mark.usefixtures("filled")
def test_without_a_name_the_runs_are_listed() -> None:
    lines = ok().splitlines()
    assert lines[0].split() == ["name", "run", "started", "ended", "exit", "peak", "memory"]
    assert len(lines) == 6
    newest = next(line for line in lines if "aaaa0002" in line)
    assert "running" in newest
    assert newest.rstrip().endswith("619 MiB")
    older = next(line for line in lines if "aaaa0001" in line)
    assert older.split()[-2:] == ["137", "-"]  # its samples are no more: absent, not 0


def test_the_runs_as_json(filled: float) -> None:
    told = json.loads(ok("--json"))
    check(told, RunList)
    assert told["schema"] == 1
    runs = {listed["id"]: listed for listed in told["runs"]}
    assert told["runs"][0]["id"] == "dddd0001"
    assert runs["aaaa0002"] == {
        "id": "aaaa0002", "name": "planner", "of": "agent", "command": ["python", "a b.py"],
        "uid": 1000, "cgroup": "/x", "started": filled - 100, "ended": None, "exit_code": None,
        "memory_peak": 619 << 20, "samples": 20,
    }  # fmt: skip
    assert runs["aaaa0001"]["exit_code"] == 137
    assert runs["aaaa0001"]["memory_peak"] is None


@pytest.mark.usefixtures("filled")
def test_since_leaves_out_what_ended_before() -> None:
    listed = json.loads(ok("--json", "--since", "4m"))["runs"]
    assert {row["id"] for row in listed} == {"aaaa0002", "cccc0001", "dddd0001"}


@pytest.mark.usefixtures("filled")
def test_a_run_is_a_table_and_curves_within_80_columns() -> None:
    out = ok("planner", terminal=True)
    assert max(map(len, out.splitlines())) <= 80
    assert "planner, run aaaa0002" in out
    assert "still running" in out
    assert "1 more of that name: aaaa0001" in out
    assert "limit 2.00 cores" in out
    assert "limit 1.0 GiB" in out
    figures = [row for row in rows(out) if re.fullmatch(r"\d\d:\d\d:\d\d", (row or [""])[0])]
    table = [row for row in figures if len(row) > 2]
    assert len(table) == 20
    assert table[0][1:] == ["-", "512", "MiB", "700", "MiB", "-", "-", "-", "-", "12", "80", "-"]
    assert table[1][1:] == [
        "0.10", "512", "MiB", "700", "MiB", "2", "MB/s", "0", "B/s", "-", "-", "12", "80", "2", "-", "-",
    ]  # fmt: skip
    assert re.search("[\u2801-\u28ff]", out)
    assert "\x1b" not in out
    assert "alerts: 1, 1 of them open" in out


def test_a_run_as_json(filled: float) -> None:
    told = json.loads(ok("planner", "--json"))
    check(told, RunHistory)
    assert told["schema"] == 1
    assert told["run"]["id"] == "aaaa0002"
    assert told["other_runs"] == ["aaaa0001"]
    assert told["alerts"] == ["3f9a0c12"]
    assert told["units"]["cpu"] == "cores"
    assert len(told["samples"]) == 20
    first, second = told["samples"][:2]
    assert first["time"] == pytest.approx(filled - 100)
    assert first["values"]["cpu"] is None
    assert second["values"]["cpu"] == pytest.approx(0.1)
    assert second["values"]["memory"] == 512 << 20
    assert second["values"]["swap"] is None
    assert second["limits"] == {
        "cpu": 2.0, "memory": 1 << 30, "pids": 50, "network_in": None, "network_out": None,
    }  # fmt: skip
    assert second["raw"]["usage_usec"] == 500_000
    assert second["raw"]["disks"] == [["254:0", 10_000_000, 0, 1, 1]]
    assert set(second["values"]) == set(CURVES) == set(told["units"])
    assert set(second["raw"]) == set(Sample.__match_args__)


@pytest.mark.usefixtures("filled")
def test_since_takes_the_last_samples() -> None:
    assert len(json.loads(ok("planner", "--json", "--since", "33s"))["samples"]) in (5, 6)


@pytest.mark.usefixtures("filled")
def test_another_run_is_picked_by_its_id() -> None:
    assert json.loads(ok("planner", "--run", "aaaa0001", "--json"))["other_runs"] == ["aaaa0002"]
    assert "no samples of planner in the last hour" in ok("--run", "aaaa0001")


@pytest.mark.usefixtures("filled")
def test_the_host_goes_before_an_agent_of_that_name() -> None:
    told = json.loads(ok("host", "--json"))
    check(told, RunHistory)
    assert (told["run"]["id"], told["run"]["of"]) == ("cccc0001", "host")
    assert told["other_runs"] == []
    out = ok("host")
    assert "Network" in out
    assert "Disk" not in out  # of which nothing is known


@pytest.mark.usefixtures("filled")
def test_a_name_neither_styles_nor_commands_the_terminal() -> None:
    for out in (ok(), ok(NAME)):
        assert "we[bold]ird[/bold]\\x1b[31m" in "".join(out.splitlines())
        assert "\x1b" not in out


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (["plannr"], 1, "no run of 'plannr' in the history; did you mean planner?"),
        (["zzz"], 1, "agentres history lists the runs"),
        (["zzz\x1b[31m"], 1, "no run of 'zzz\\x1b[31m'"),
        (["planner", "--run", "ffff"], 1, "no run 'ffff' of 'planner'"),
        (["planner", "--run", "bbbb"], 1, "no run 'bbbb' of 'planner'"),
        (["--run", "aaaa"], 1, "several runs begin with 'aaaa'"),
        (["planner", "--plot", "/nonexistent/x.png"], 1, "cannot write /nonexistent/x.png"),
        (["--run", "aaaa0001", "--plot", "/tmp/x.png"], 1, "no samples of planner"),
        (["planner", "--plot", "x.gif"], 2, "--plot"),
        (["planner", "--plot", "png"], 2, "--plot"),
        (["--plot", "x.png"], 2, "--plot"),
        (["planner", "--since", "5y"], 2, "--since"),
        (["planner", "--since", "-5s"], 2, "--since"),
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
    for line in ([], ["planner"], ["--json"]):
        code, out, err = run(*line)
        assert (code, out) == (1, "")
        assert err == f"agentres: no history yet at {state}/history.db\n"
    assert not state.exists()


def test_a_history_without_runs(state: Path) -> None:
    Store.open(str(state / "history.db")).close()
    assert ok() == "no runs\n"
    assert json.loads(ok("--json")) == {"schema": 1, "runs": []}


# What was done with limits.


@pytest.fixture
def acted(filled: float, state: Path) -> float:
    """Three actions of planner in two runs, of which one is no more; one of the strange name."""
    store = Store.open(str(state / "history.db"))
    burst = {
        "run": "aaaa0002", "agent": "planner", "time": filled - 60, "resource": "memory",
        "kind": "raise", "before": 256.0 * 2**20, "after": 384.0 * 2**20, "rule": "burst",
        "why": "use of 193 MiB reached 75% of 256 MiB", "took": 0.0021,
    }  # fmt: skip
    store.act({**burst, "run": "aaaa0000", "time": filled - 7200, "resource": "cpu",
               "before": 1.0, "after": 1.5})  # fmt: skip
    store.act(burst)
    store.act({**burst, "time": filled - 5, "kind": "freeze", "rule": "contention", "before": None,
               "after": None, "took": None, "why": "solver waits", "values": "free=0"})  # fmt: skip
    store.act({**burst, "run": "bbbb0001", "agent": NAME, "time": filled - 295, "why": NAME,
               "resource": "io_write=/dev/vda", "before": 1e8, "after": 5e7})  # fmt: skip
    store.close()
    return filled


@pytest.mark.usefixtures("acted")
def test_actions_are_a_table_within_80_columns() -> None:
    out = ok("planner", "--actions", terminal=True)
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    found = [row[1:] for row in rows(out) if re.fullmatch(r"\d\d:\d\d:\d\d", (row or [""])[0])]
    assert [row[:3] for row in found] == [
        ["aaaa0000", "raise", "cpu"],
        ["aaaa0002", "raise", "memory"],
        ["aaaa0002", "freeze", "memory"],
    ]
    assert found[0][3:9] == ["1.00", "cores", "1.50", "cores", "2.1", "ms"]
    assert found[1][3:9] == ["256", "MiB", "384", "MiB", "2.1", "ms"]
    assert found[2][3:6] == ["-", "-", "-"]
    told = " ".join(out.split())
    assert "burst:" in told
    assert "contention:" in told
    assert "(free=0)" in told


def test_actions_as_json(acted: float) -> None:
    told = json.loads(ok("planner", "--actions", "--json", "--since", "10m"))
    check(told, ActionList)
    assert told["schema"] == 1
    first, second = told["actions"]
    assert first == {
        "run": "aaaa0002", "agent": "planner", "time": acted - 60, "resource": "memory",
        "kind": "raise", "before": 256 << 20, "after": 384 << 20, "rule": "burst",
        "why": "use of 193 MiB reached 75% of 256 MiB", "took": 0.0021, "values": "",
        "unit": "bytes",
    }  # fmt: skip
    assert (second["before"], second["took"], second["values"]) == (None, None, "free=0")
    (strange,) = json.loads(ok(NAME, "--actions", "--json"))["actions"]
    assert (strange["resource"], strange["unit"]) == ("io_write=/dev/vda", "bytes/s")


@pytest.mark.usefixtures("acted")
def test_actions_by_run_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(*line: str) -> list[str]:
        return [row["run"] for row in json.loads(ok("--actions", "--json", *line))["actions"]]

    assert runs() == ["aaaa0000", "aaaa0002", "aaaa0002", "bbbb0001"]
    assert runs("--run", "aaaa0000") == ["aaaa0000"]  # which is in no list of runs any more
    assert runs("planner", "--run", "aaaa0002") == ["aaaa0002"] * 2
    assert runs("--run", "dddd0001") == []
    monkeypatch.setenv("COLUMNS", "200")
    out = ok("--actions")
    assert "we[bold]ird[/bold]\\x1b[31m bbbb0001" in out
    assert "\x1b" not in out


@pytest.mark.usefixtures("acted")
def test_no_actions_and_no_such_name() -> None:
    assert ok("host", "--actions") == "no actions\n"
    assert ok("planner", "--actions", "--since", "1s") == "no actions in that time\n"
    for line, code, words in [
        (["plannr", "--actions"], 1, "no run of 'plannr' in the history; did you mean planner?"),
        (["--actions", "--run", "ffff"], 1, "no run 'ffff'"),
        (["--actions", "--run", "aaaa"], 1, "several runs begin with 'aaaa'"),
        (["planner", "--actions", "--plot", "x.png"], 2, "--plot"),
    ]:
        got, out, err = run(*line)
        assert (got, out) == (code, "")
        assert words in err


@pytest.mark.usefixtures("filled")
class TestPictures:
    def test_a_png_beside_the_json(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="the VM's image has no matplotlib")
        file = tmp_path / "x.PNG"
        assert json.loads(ok("host", "--json", "--plot", str(file)))["run"]["name"] == "host"
        assert file.read_bytes().startswith(b"\x89PNG")

    def test_a_page_holds_all_it_needs_and_nothing_of_a_name_is_markup(
        self, tmp_path: Path
    ) -> None:
        pytest.importorskip("matplotlib", reason="the VM's image has no matplotlib")
        file = tmp_path / "x.html"
        assert ok(NAME, "--plot", str(file)) == f"wrote {file}\n"
        page = file.read_text()
        assert page.startswith("<!DOCTYPE html>")
        assert page.count("<svg") == 1
        assert "is at &lt;b&gt;83%" in page
        assert "\x1b" not in page
        assert not re.search(r'(src|href)="(?!#)', page.replace("xlink:href", "href"))
        assert "//" not in page  # no address, not even a namespace's
        assert re.search(r"<g><title>[A-Z]+, [0-9:]+: [^<]* is at &lt;b&gt;83%", page)

    def test_without_matplotlib_the_remedy_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        code, out, err = run("planner", "--plot", str(tmp_path / "x.png"))
        assert (code, out) == (1, "")
        assert err == "agentres: pictures need matplotlib; pip install 'agentres[report]'\n"
        assert not list(tmp_path.glob("*.png"))


def test_an_alert_is_marked_where_its_resource_is() -> None:
    drawn = {panel.title: panel.resources for panel in plot.PANELS}
    assert "oom_kill" in drawn["Memory"]
    every = frozenset().union(*drawn.values())
    for alike in ("memory", "cpu", "disk", "fds", "fork_refused"):
        assert alike in every
    assert set(plot._SEVERITIES) == set(Severity)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("count", [1, 2, 100])
def test_curves_of_any_width_and_length_are_drawn(width: int, count: int) -> None:
    from agentres.readers.curves import curves

    samples = [
        (1e9 + n, sample(n, working_set=int(2**29 * (1 + math.sin(n))), fds=None))
        for n in range(count)
    ]
    lines = plot.terminal(curves(samples), width)
    assert max(map(len, lines)) <= max(width, 40)
    assert any("Memory" in line for line in lines)


def test_a_far_limit_is_told_and_not_drawn() -> None:
    from agentres.readers.curves import curves

    samples = [(float(n), sample(n, memory_limit=1 << 40)) for n in range(3)]
    text = "\n".join(plot.terminal(curves(samples), 80))
    assert "limit 1.0 TiB (above)" in text


def subprocess_run(*line: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HISTORY, *line],
        capture_output=True,
        text=True,
        env={**os.environ, **more},
    )


@pytest.mark.usefixtures("filled")
def test_a_terminal_that_is_not_utf_8_gets_ascii() -> None:
    done = subprocess_run("planner", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "*" in done.stdout
    assert done.stdout.isascii()


@pytest.mark.usefixtures("filled")
def test_a_reader_that_goes_and_a_full_disk() -> None:
    command = f"set -o pipefail; {' '.join(HISTORY)} planner | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # 0: all was in the pipe already
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*HISTORY, "planner"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "agentres: cannot write: no space left on device\n"


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_colour_is_for_terminals_that_want_it(no_color: str) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "NO_COLOR": no_color}
    child = subprocess.Popen([*HISTORY, "planner"], stdout=theirs, env=env)
    os.close(theirs)
    out = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the child has ended
            break
        if not part:
            break
        out += part
    os.close(ours)
    assert child.wait() == 0
    assert (b"\x1b[36m" in out) is not bool(no_color)
