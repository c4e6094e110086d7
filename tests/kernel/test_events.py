"""Events for programs (docs/events.md), and what an agent can make us write."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    AGENTRES,
    DEADLINE,
    FAST,
    RunAgent,
    Watched,
    alike,
    not_by_daemon,
    once,
    python,
    runs,
    wait_until,
)

sys.path.append(str(Path(__file__).parents[1] / "unit"))
import events_table

SLEEPS = ["sleep", "1000"]


def written(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def of(events: list[dict[str, Any]], *kinds: str) -> list[str]:
    return [event["event"] for event in events if event["event"] in kinds]


def command(*words: object) -> None:
    subprocess.run([*AGENTRES, *map(str, words)], check=True, capture_output=True, timeout=DEADLINE)


@pytest.fixture
def events(tmp_path: Path) -> Path:
    return tmp_path / "events"


def test_the_shortest_run_has_its_start_and_its_end(agentres_run: RunAgent, events: Path) -> None:
    for _ in range(2):
        run = agentres_run("--events", str(events), "--name", "short", command=["sh", "-c", "exit 3"])  # fmt: skip
        assert run.status == 3
    found = written(events)
    first = [each for each in found if each["run"] == found[0]["run"]]
    second = found[len(first) :]
    for each in (first, second):
        events_table.check_story(each)
    assert second[-1]["exit_code"] == second[-1]["summary"]["exit_code"] == 3
    assert run.summary is not None
    assert second[-1]["summary"] == run.summary
    assert second[0]["command"] == ["sh", "-c", "exit 3"]


@once
def test_a_command_that_is_not_there_has_none(agentres_run: RunAgent, events: Path) -> None:
    assert agentres_run("--events", str(events), command=["/nonexistent"]).status == 127
    assert events.read_text() == ""


def test_what_was_met_who_was_killed_and_what_was_left_is_told(
    agentres_run: RunAgent, events: Path
) -> None:
    # The pipe is closed by execve(2): who is left has its name by then.
    code = "import os\nout, into = os.pipe()\nif os.fork() == 0:\n    os.execvp('sleep', ['sleep', '1000'])\nos.close(into); os.read(out, 1); x = bytearray(200 << 20)"
    run = agentres_run(
        "--events", str(events), "--memory", "48M", "--swap", "0", command=python(code)
    )
    found = written(events)
    events_table.check_story(found)
    kills = {each["by"]: each for each in found if each["event"] == "kill"}
    assert kills["memory"]["count"] == run.usage["memory_oom_kill"] == 1
    assert "memory.max" in [each["limit"] for each in found if each["event"] == "limit"]
    assert [each["name"] for each in kills["end"]["processes"]] == ["sleep"]
    alerts = [each["alert"]["rule"] for each in found if each["event"] == "alert"]
    assert alerts.count("oom_kill") == 2  # raised, resolved
    assert found[-1]["exit_code"] == run.status == 137


@once
def test_commands_are_told(start: Any, events: Path) -> None:
    process = start("--events", str(events), "--name", "commanded", "--memory", "64M:256M", command=SLEEPS)  # fmt: skip
    wait_until(lambda: events.exists() and bool(events.read_text()), "it has begun")
    for words in (("freeze", "commanded"), ("thaw", "commanded"), ("set", "commanded", "--pids", "77"), ("kill", "commanded")):  # fmt: skip
        command(*words)
    process.wait(DEADLINE)
    found = written(events)
    events_table.check_story(found)
    assert of(found, "freeze", "thaw", "set", "kill", "end") == ["freeze", "thaw", "set", "kill", "end"]  # fmt: skip
    (kill,) = (each for each in found if each["event"] == "kill")
    assert kill["by"] == "stop"
    assert [each["name"] for each in kill["processes"]] == ["sleep"]


@once
def test_a_limit_that_moves_and_one_that_may_not_are_told(watched: Watched, events: Path) -> None:
    """It is raised as far as the budget goes, waits for more, and is let go to its limit."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    share = f'[budget]\nshare = "{100 * (400 << 20) / host:.6f}%"\n'
    code = """
import mmap, time
time.sleep(1)
piece = mmap.mmap(-1, 900 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, 900 << 20, 1 << 16): piece.madvise(23, at, 1 << 16)
"""
    run = watched.run(share, "--memory", "64M:2G", "--events", str(events), command=python(code))
    assert run.status == 137, run.err
    found = written(events)
    events_table.check_story(found)
    moves = [each for each in found if each.get("resource") == "memory"]
    raises = [each for each in moves if each["event"] == "raise"]
    assert raises
    assert all(each["before"] < each["after"] <= 400 << 20 for each in raises)
    assert raises[0]["unit"] == "bytes"
    throttle = next(each for each in moves if each["event"] == "throttle")
    assert throttle["number"] > raises[0]["number"]
    assert throttle["why"]
    starved = [each["alert"] for each in found if each["event"] == "alert" and each["alert"]["rule"] == "starved"]  # fmt: skip
    assert starved[0]["event"] == "raised"


@not_by_daemon("walls keep it from any manager")
def test_who_leaves_is_told_at_once(start: Any, watched: Watched, events: Path) -> None:
    manager = [] if os.geteuid() == 0 else ["--user"]
    leaves = ["systemd-run", *manager, "--quiet", "--scope", "sleep", "1000"]
    shell = ["sh", "-c", f"{' '.join(leaves)} >/dev/null 2>&1 & exec cat"]
    process = start(*watched.configure(FAST), "--events", str(events), command=shell, env=watched.environment)  # fmt: skip

    def escapes() -> list[dict[str, Any]]:
        lines = events.read_text().splitlines() if events.exists() else []
        return [each for each in map(json.loads, lines) if each["event"] == "escape"]

    wait_until(lambda: bool(escapes()), "the event, while it runs")
    assert process.poll() is None
    process.communicate(timeout=DEADLINE)
    found = written(events)
    events_table.check_story(found)
    (one,) = escapes()[0]["processes"]
    assert one["cgroup"].endswith(".scope")
    assert "/agentres.slice/" not in one["cgroup"]
    (fate,) = found[-1]["summary"]["escaped"]
    assert (fate["pid"], fate["name"], fate["fate"]) == (one["pid"], "sleep", "ended")
    assert not runs(one["pid"])


@once
def test_the_time_limit_is_told(agentres_run: RunAgent, events: Path) -> None:
    ignores = ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]
    run = agentres_run("--events", str(events), "--timeout", "3", command=ignores)
    assert run.status == 124
    found = written(events)
    events_table.check_story(found)
    assert "timeout" in [each["limit"] for each in found if each["event"] == "limit"]
    assert [each["by"] for each in found if each["event"] == "kill"] == ["timeout"]


OPEN = "import os; print(*[os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if int(fd) > 2 and os.path.exists(f'/proc/self/fd/{fd}')], flush=True)"


def test_a_descriptor_is_the_companions_alone(watched: Watched, start: Any) -> None:
    """Not the agent's, not a handler's: its reader sees the end when the run ends."""
    out, given = os.pipe()
    read: list[bytes] = []

    def reads() -> None:
        with open(out, "rb") as file:
            read.extend(file)

    reader = threading.Thread(target=reads, daemon=True)
    reader.start()
    line = [*watched.configure(""), "--events", str(given)]
    process = start(*line, command=python(f"{OPEN}\nimport sys; sys.stdin.read()"), env=watched.environment, pass_fds=[given])  # fmt: skip
    pipe = os.fstat(given).st_ino
    os.close(given)
    assert f"pipe:[{pipe}]" not in process.stdout.readline()
    told, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, told
    reader.join(DEADLINE)
    assert not reader.is_alive()
    events_table.check_story([json.loads(each) for each in read])


@pytest.mark.parametrize("gone", alike(False, True, always=1))
def test_who_does_not_read_holds_nothing_up(start: Any, gone: bool) -> None:
    out, given = os.pipe()
    if gone:
        os.close(out)
    else:
        os.set_blocking(given, False)
        while True:
            try:
                os.write(given, b"x" * 65536)
            except BlockingIOError:
                break
        os.set_blocking(given, True)
    process = start("--events", str(given), command=["sh", "-c", "exit 5"], pass_fds=[given])
    os.close(given)
    _, told = process.communicate(timeout=DEADLINE)
    if not gone:
        os.close(out)
    assert process.returncode == 5
    why = "broken pipe" if gone else "nobody took them"
    assert re.search(rf"^agentres: --events: not written: \d+ events \({why}\)$", told, re.MULTILINE), told  # fmt: skip


@not_by_daemon("the supervisor is root's to kill")
def test_a_supervisor_that_was_killed_leaves_an_end(start: Any, events: Path) -> None:
    process = start("--events", str(events), command=SLEEPS)
    wait_until(lambda: events.exists() and bool(events.read_text()), "it has begun")
    process.kill()
    process.wait(DEADLINE)
    wait_until(lambda: '"event": "end"' in events.read_text(), "the end is written")
    found = written(events)
    events_table.check_story(found)
    assert (found[-1]["exit_code"], found[-1]["summary"]) == (None, None)


@once
def test_a_companion_that_was_killed_is_replaced(start: Any, events: Path) -> None:
    import psutil

    process = start("--events", str(events), "--name", "replaced", command=SLEEPS)
    wait_until(lambda: events.exists() and bool(events.read_text()), "it has begun")
    (companion,) = (
        each
        for each in psutil.Process(process.pid).children()
        if "agentres.companion.main" in each.cmdline()
    )
    companion.kill()
    wait_until(lambda: not runs(companion.pid), "it has gone")
    time.sleep(1.1)  # another one is started a second after the first was, at the earliest
    command("freeze", "replaced")
    command("thaw", "replaced")
    process.send_signal(signal.SIGTERM)
    process.wait(DEADLINE)
    found = written(events)
    for event in found:
        events_table.check(event)
    assert of(found, "start", "freeze", "thaw", "end")[-2:] == ["thaw", "end"]
    # Whatever was not written was counted.
    lost = sum(each["count"] for each in found if each["event"] == "lost")
    assert len([each for each in found if each["event"] != "lost"]) + lost == found[-1]["number"]


FLAPS = """
import ctypes, mmap, os, time
ctypes.CDLL(None).prctl(15, b"\\x1b[2J\\nagentres:")
for _ in range(8):
    held = mmap.mmap(-1, 60 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # MADV_POPULATE_WRITE: page faults, one by one, are dear in User Mode Linux.
    for at in range(0, 60 << 20, 1 << 20): held.madvise(23, at, 1 << 20)
    time.sleep(0.06)
    held.close()
    time.sleep(1.1)
    try:
        os.fork()
    except OSError:
        pass
"""
"""Crosses both thresholds up, of which the kernel tells, and down for longer than it takes to the next sample; its forks are refused."""

FLAPPING = """
[sampling]
interval = "1s"
fastest = "50ms"
[alerts.memory]
warning = "40%"
critical = "50%"
cooldown = "0s"
[handlers.journal]
type = "journal"
severity = "INFO"
"""


@once
@pytest.mark.beside_one
def test_an_agent_that_provokes_alerts_fills_nothing(watched: Watched, events: Path) -> None:
    """Its memory crosses both thresholds again and again, its forks are refused, its names command the terminal."""
    run = watched.run(
        FLAPPING, "--memory", "100M", "--pids", "1", "--events", str(events), command=python(FLAPS)
    )
    assert run.summary is not None, run.err
    left_out = run.summary["alerts_left_out"]
    assert left_out.get("memory", 0) > 0, (run.summary, run.err)
    assert f"memory {left_out['memory']}" in run.err
    told = watched.events("memory")
    most = 10 + 1 + run.summary["wall_seconds"] / 30 + 1
    assert 10 <= len(told) <= most
    assert told[-1]["event"] == "resolved"
    found = written(events)
    assert len([each for each in found if each["event"] == "alert" and each["alert"]["rule"] == "memory"]) == len(told)  # fmt: skip
    assert len(found) < 100
    events_table.check_story(found)
    assert len(run.err.splitlines()) < 60
    assert "\x1b" not in run.err
    subprocess.run(["journalctl", "--sync"], check=True)
    line = ["journalctl", "--quiet", "--output=json", f"AGENTRES_RUN={told[0]['run']}"]
    entries = subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(entries) == len(watched.events())
    kept = watched.verb("alerts", "list", "--limit", "1000")["alerts"]
    assert len([each for each in kept if each["rule"] == "memory"]) <= len(told)
