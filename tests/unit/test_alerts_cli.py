"""``agentres alerts`` over a history filled by hand: list, show, ack, stats, and as it happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from command_line import agentres
from json_types import check
from told import event

from agentres.model import history_schemas
from agentres.store import Run, Store

pytestmark = pytest.mark.usefixtures("noon")

# It tells whenever it waits: then it has read what it begins after.
SCRIPT = """
import os, select, sys
from types import SimpleNamespace
from agentres.cli import line
told, poll = int(sys.argv.pop(1)), select.poll
def telling():
    real = poll()
    return SimpleNamespace(register=real.register, poll=lambda wait: os.write(told, b".") and real.poll(wait))
select.poll = telling
sys.exit(line.main(["alerts", *sys.argv[1:]]))
"""
NAME = "we[bold]ird[/bold]\x1b[31m"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AGENTRES_STATE_DIR", str(tmp_path))
    for variable in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "SUDO_USER"):
        monkeypatch.delenv(variable, raising=False)
    return str(tmp_path / "history.db")


@pytest.fixture
def now(path: str) -> float:
    now = time.time()
    store = Store.open(path)
    store.begin(Run("aaaa0001", "planner", "agent", ("x",), 0, "/x", 42, 9, "boot", now - 900))
    store.record(event("raised", "3f9a0c12", now - 240))
    store.record(event("updated", "3f9a0c12", now - 240, updated=now - 200, severity="CRITICAL"))
    store.record(event("resolved", "3f9a0c12", now - 240, updated=now - 60, resolved=now - 60))
    store.handled("3f9a0c12", "terminal", now - 239.9, None)
    store.handled("3f9a0c12", "hook", now - 239.5, "timed out")
    odd: dict[str, Any] = {
        "agent": NAME, "resource": "oom_kill", "rule": "oom_kill", "severity": "EMERGENCY",
        "unit": "count", "value": 1.0, "limit": None, "threshold": 1.0,
        "message": f"a process was killed for memory in {NAME}",
    }  # fmt: skip
    store.record(event("raised", "3f0b0001", now - 30, **odd))
    store.record(event("raised", "5c000001", now - 7200, resource="cpu", rule="cpu", unit="cores",
                       value=1.8, limit=2.0, threshold=1.5, severity="INFO"))  # fmt: skip
    store.close()
    return now


def run(*line: str, terminal: bool = False) -> tuple[int, str, str]:
    return agentres("alerts", *line, terminal=terminal)


def ok(*line: str, terminal: bool = False) -> str:
    code, out, err = run(*line, terminal=terminal)
    assert (code, err) == (0, "")
    return out


def ids(*line: str) -> list[str]:
    told = json.loads(ok(*line, "--json"))
    check(told, history_schemas.AlertList)
    return [alert["id"] for alert in told["alerts"]]


@pytest.mark.usefixtures("now")
def test_alerts_are_listed_the_newest_first_within_80_columns() -> None:
    out = ok("list", terminal=True)
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["id", "raised", "severity", "agent", "resource", "value", "state"]
    firsts = [line.split()[0] for line in lines[1:]]
    assert [first for first in firsts if len(first) == 8] == ["3f0b0001", "3f9a0c12", "5c000001"]
    assert "CRITICAL" in out  # the highest that it reached
    assert "WARNING" not in out
    assert "\x1b" not in out
    assert "[bold]" in out


@pytest.mark.usefixtures("now")
def test_list_is_what_is_meant_without_a_verb() -> None:
    assert ok() == ok("list")
    assert ok("--open") == ok("list", "--open")
    assert "list" in ok("--help")
    assert run("lsit")[0] == 2


@pytest.mark.usefixtures("now")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["3f0b0001", "3f9a0c12", "5c000001"]),
        (["--agent", "planner"], ["3f9a0c12", "5c000001"]),
        (["--agent", NAME], ["3f0b0001"]),
        (["--severity", "critical"], ["3f0b0001", "3f9a0c12"]),
        (["--resource", "cpu"], ["5c000001"]),
        (["--since", "1h"], ["3f0b0001", "3f9a0c12"]),
        (["--open"], ["3f0b0001", "5c000001"]),
        (["--limit", "1"], ["3f0b0001"]),
        (["--open", "--severity", "WARNING", "--agent", "planner"], []),
    ],
)
def test_filters(options: list[str], expected: list[str]) -> None:
    assert ids("list", *options) == expected


@pytest.mark.usefixtures("now")
def test_nothing_found_is_said() -> None:
    assert ok("--agent", "nobody") == "no alerts\n"


def test_an_alert_as_json_has_every_field(now: float) -> None:
    told = json.loads(ok("show", "3f9", "--json"))
    check(told, history_schemas.AlertDetail)
    assert told["schema"] == 1
    assert told["alert"]["severity"] == "CRITICAL"
    assert told["alert"]["last_severity"] == "WARNING"
    assert told["alert"]["handled"] == pytest.approx(now - 239.9)
    kinds = [step["kind"] for step in told["timeline"]]
    assert kinds == ["raised", "updated", "resolved", "handled", "failed"]
    assert told["timeline"][1]["severity"] == "CRITICAL"
    assert told["timeline"][3] == {
        "time": pytest.approx(now - 239.9), "kind": "handled", "severity": None, "value": None,
        "detail": "terminal",
    }  # fmt: skip


@pytest.mark.usefixtures("now")
def test_show_tells_the_fields_and_the_timeline() -> None:
    out = ok("show", "3f9a")
    for words in ("3f9a0c12", "CRITICAL (last WARNING)", "800 MiB of 1.0 GiB", "768 MiB", "resolved",
                  "hook: timed out", "planner, run aaaa0001, on builder"):  # fmt: skip
        assert words in out
    odd = ok("show", "3f0b")
    assert "we[bold]ird[/bold]\\x1b[31m" in "".join(line.strip() for line in odd.splitlines())
    assert "\x1b" not in odd


@pytest.mark.usefixtures("now")
def test_an_alert_is_acknowledged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ids("--unacked") == ["3f0b0001", "3f9a0c12", "5c000001"]
    assert ok("ack", "3f9a", "--who", "kim", "--why", "looking") == "acknowledged 3f9a0c12 as kim\n"
    assert ids("--unacked") == ["3f0b0001", "5c000001"]
    code, out, err = run("ack", "3f9a", "--why", "again")
    assert (code, out) == (1, "")
    assert err.startswith("agentres: alert 3f9a0c12 is already acknowledged by kim at ")
    assert "by kim: looking" in ok("show", "3f9a")
    assert "acked" in ok("list")
    monkeypatch.setenv("SUDO_USER", "someone")
    told = json.loads(ok("ack", "5c", "--why", "x", "--json"))
    check(told, history_schemas.Acknowledgement)
    check(json.loads(ok("show", "5c", "--json")), history_schemas.AlertDetail)
    assert told["alert"]["acknowledged_by"].startswith("someone as ")
    assert told["alert"]["acknowledged_why"] == "x"


@pytest.mark.usefixtures("now")
def test_statistics() -> None:
    check(json.loads(ok("stats", "--json")), history_schemas.AlertStatistics)
    ok("ack", "3f9a", "--why", "x")
    out = ok("stats")
    assert "3 alerts, 2 open, 1 acknowledged" in out
    assert "time to acknowledge: mean 4 min 0 s" in out
    assert "\x1b" not in out
    told = json.loads(ok("stats", "--json", "--since", "1h"))
    check(told, history_schemas.AlertStatistics)
    assert (told["schema"], told["total"], told["open"], told["acknowledged"]) == (1, 2, 1, 1)
    assert told["by_severity"] == {"INFO": 0, "WARNING": 0, "CRITICAL": 1, "EMERGENCY": 1}
    assert told["time_to_acknowledge"]["max"] == pytest.approx(240, abs=60)


@pytest.mark.usefixtures("now")
@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (["show", "ffff"], 1, "no alert 'ffff' in the history"),
        (["show", "3f"], 1, "several alerts begin with '3f'"),
        (["ack", "ffff", "--why", "x"], 1, "no alert 'ffff'"),
        (["ack", "3f9a"], 2, "--why"),
        (["ack", "3f9a", "--why", " "], 2, "--why"),
        (["list", "--severity", "grave"], 2, "INFO, WARNING, CRITICAL"),
        (["list", "--resource", "memry"], 2, "did you mean memory"),
        (["list", "--limit", "0"], 2, "--limit"),
        (["list", "--since", "soon"], 2, "--since"),
        (["list", "--follow", "--since", "1h"], 2, "--since"),
        (["list", "--follow", "--unacked"], 2, "--unacked"),
    ],
)
def test_what_goes_wrong(line: list[str], code: int, words: str) -> None:
    got, out, err = run(*line)
    assert (got, out) == (code, "")
    assert words in " ".join(err.replace("│", " ").split())
    if code == 1:
        assert err.startswith("agentres: ")
        assert err.count("\n") == 1


def test_no_history_yet(path: str) -> None:
    for line in ([], ["show", "x"], ["ack", "x", "--why", "y"], ["stats"]):
        assert run(*line) == (1, "", f"agentres: no history yet at {path}\n")
    assert not Path(path).exists()  # not made by looking, nor by acknowledging


class Follower:
    """``agentres alerts`` in a process of its own, which is waiting for what happens."""

    def __init__(self, *line: str) -> None:
        self._told, told = os.pipe()
        self.child = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(told), *line], pass_fds=[told],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        )  # fmt: skip
        os.close(told)

    def begun(self) -> None:
        """Return when it waits for what happens next."""
        assert os.read(self._told, 1) == b"."

    def lines(self, count: int) -> list[str]:
        assert self.child.stdout is not None
        return [self.child.stdout.readline() for _ in range(count)]

    def end(self) -> tuple[int, str]:
        """Its exit status, by itself, and what it said on stderr."""
        _, err = self.child.communicate(timeout=60)
        return self.child.returncode, err

    def close(self) -> None:
        self.child.kill()
        with self.child:
            os.close(self._told)


Follow = Callable[..., Follower]


@pytest.fixture
def follow() -> Iterator[Follow]:
    with ExitStack() as stack:
        yield lambda *line: stack.enter_context(closing(Follower(*line)))


def test_follow_tells_what_happens_and_ends_by_ctrl_c(
    follow: Follow, path: str, now: float
) -> None:
    follower = follow("--follow", "--json", "--severity", "CRITICAL", "--agent", "planner")
    follower.begun()
    store = Store.open(path)
    store.record(event("raised", "7a000001", now, severity="WARNING"))  # not grave enough
    store.record(event("updated", "7a000001", now, severity="CRITICAL"))
    store.record(event("raised", "7a000002", now, severity="CRITICAL", agent="other"))
    store.record(event("resolved", "7a000001", now, severity="WARNING", resolved=now + 1))
    store.close()
    told = [json.loads(line) for line in follower.lines(2)]
    assert [(one["event"], one["id"]) for one in told] == [
        ("updated", "7a000001"), ("resolved", "7a000001"),
    ]  # fmt: skip
    for each in told:
        check(each, history_schemas.AlertChange)
    follower.child.send_signal(signal.SIGINT)
    assert follower.end() == (130, "")


def test_follow_ends_after_so_many_and_shows_no_control_characters(
    follow: Follow, path: str, now: float
) -> None:
    follower = follow("list", "--follow", "--limit", "1", "--open")
    follower.begun()
    store = Store.open(path)
    store.record(event("resolved", "3f0b0001", now, resolved=now))
    store.record(event("raised", "7a000003", now, agent=NAME, message=f"memory of {NAME}"))
    store.close()
    (line,) = follower.lines(1)
    assert line.split()[1:4] == ["7a000003", "raised", "WARNING"]
    assert line.endswith("memory of we[bold]ird[/bold]\\x1b[31m\n")
    assert follower.end() == (0, "")


@pytest.mark.usefixtures("now")
def test_follow_ends_when_its_reader_has_gone(follow: Follow) -> None:
    follower = follow("--follow")
    follower.begun()
    assert follower.child.stdout is not None
    follower.child.stdout.close()
    follower.child.stdout = None
    assert follower.end() == (141, "")


def test_follow_waits_for_a_history_and_shows_all_of_it(follow: Follow, path: str) -> None:
    follower = follow("--follow", "--limit", "1")
    assert follower.child.stderr is not None
    assert follower.child.stderr.readline() == f"agentres: no history yet at {path}; waiting\n"
    store = Store.open(path)
    store.record(event("raised", "7a000004", time.time()))
    store.close()
    assert "7a000004" in follower.lines(1)[0]
    assert follower.end() == (0, "")
