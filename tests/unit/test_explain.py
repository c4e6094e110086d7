"""What a run is reported as: its exit status, lines for people, keys for programs."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from agentres.kernel.project import QuotaUsage
from agentres.model.limits import EVERY_DISK, ControlLine, IoMax, Limits, Range, UnenforcedLimit
from agentres.model.oom import Footprint, Resident
from agentres.model.stats import EscapedProcess, OomKill, RunningProcess, Usage
from agentres.model.units import MAX
from agentres.run.explain import (
    Hit,
    Outcome,
    as_json,
    escaped,
    hits,
    limits_line,
    not_enforced,
    summary,
)

MIB = 2**20
LIMITS = Limits(cpu=1.5, memory=512 * MIB, swap=0, pids=64, nofile=1000)
KILL = OomKill(77, "cc1plus", "/a/agent/main", "/a/agent")
OWN = ("/a/agent",)
AGENT = "/sys/fs/cgroup/user.slice/agentres.slice/agentres-a.scope/agent"


def ended(returncode: int = 0, **other: Any) -> Outcome:
    return Outcome(
        "fixer",
        ("make", "test"),
        **{
            "limits": LIMITS,
            "returncode": returncode,
            "wall": 2.0,
            "oom_limits": OWN,
            **other,
        },
    )


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (ended(0), 0),
        (ended(1), 1),
        (ended(255), 255),
        (ended(-signal.SIGTERM), 143),
        (ended(-signal.SIGKILL), 137),
        (ended(-64), 192),
        (ended(0, timed_out=True), 124),
        (ended(-signal.SIGKILL, timed_out=True, killed_after_grace=True), 124),
    ],
)
def test_the_exit_status_is_the_agents_unless_time_was_up(outcome: Outcome, status: int) -> None:
    assert outcome.exit_code == status


# The limits that were met.


def test_no_event_is_no_hit() -> None:
    zero = Usage(
        nr_throttled=0, memory_max_events=0, memory_oom=0, memory_oom_kill=0, pids_max_events=0
    )
    assert hits(ended(usage=zero)) == []


def test_a_limit_that_is_not_counted_is_no_hit() -> None:
    assert hits(ended()) == []


ABOVE = Usage(memory_oom=0, memory_oom_kill=1, memory_peak=MIB)
HELD = Footprint(
    {"anon": 400 * MIB, "file": 100 * MIB, "shmem": 80 * MIB, "kernel": MIB, "sock": 0},
    (Resident(7, "cc1 plus", 390 * MIB),),
)
OOM = Usage(memory_oom=1, memory_oom_kill=1, memory_peak=512 * MIB, memory_max_events=9)


# What is called so, how the run ended, and the limit that it met.
HITS = [
    ("victim named by the kernel log", ended(usage=OOM, oom_kills=[KILL]), Hit("memory.max", 1, "memory limit: 1 process was killed for memory: cc1plus (pid 77); limit 512 MiB, peak 512 MiB; raise --memory or have it hold less at once")),
    ("two victims, no peak, no limit of its own", ended(usage=Usage(memory_oom=2, memory_oom_kill=2), oom_kills=[KILL, OomKill(78, "ld", "/a", "/a")], limits=Limits(memory=MAX)), Hit("memory.max", 2, "memory limit: 2 processes were killed for memory: cc1plus (pid 77), ld (pid 78); limit no limit; raise --memory or have it hold less at once")),
    ("no kernel log, main process killed", ended(-signal.SIGKILL, usage=OOM), Hit("memory.max", 1, "memory limit: 1 process was killed for memory: very likely the main process, which SIGKILL ended; limit 512 MiB, peak 512 MiB; raise --memory or have it hold less at once")),
    ("no kernel log, another process killed", ended(1, usage=OOM), Hit("memory.max", 1, "memory limit: 1 process was killed for memory (the kernel log names it: journalctl -k); limit 512 MiB, peak 512 MiB; raise --memory or have it hold less at once")),
    ("the host ran out", ended(usage=ABOVE, oom_kills=[KILL], cgroup=AGENT, oom_limits=()), Hit("memory.max", 1, "1 process was killed for memory: cc1plus (pid 77); not by this agent's limit: the host ran out of memory, peak 1.0 MiB")),
    ("the budget", ended(usage=ABOVE, oom_kills=[KILL], cgroup=AGENT, oom_limits=["/user.slice/agentres.slice"]), Hit("memory.max", 1, "1 process was killed for memory: cc1plus (pid 77); not by this agent's limit but by that of the budget of all agents (agentres.slice), peak 1.0 MiB")),
    ("a parent's", ended(usage=ABOVE, oom_kills=[KILL], cgroup=AGENT, oom_limits=["/user.slice"]), Hit("memory.max", 1, "1 process was killed for memory: cc1plus (pid 77); not by this agent's limit but by that of /user.slice, peak 1.0 MiB")),
    ("nobody says whose", ended(1, usage=ABOVE, oom_limits=None), Hit("memory.max", 1, "1 process was killed for memory (the kernel log names it: journalctl -k); not by this agent's limit but by one above it, or the host ran out, peak 1.0 MiB")),
    ("what was in memory", ended(usage=OOM, oom_kills=[KILL], footprint=HELD), Hit("memory.max", 1, "memory limit: 1 process was killed for memory: cc1plus (pid 77); limit 512 MiB, peak 512 MiB; it held 400 MiB anonymous, 80.0 MiB files in tmpfs and shared memory, 20.0 MiB page cache; most of it in cc1 plus (pid 7) 390 MiB; raise --memory or have it hold less at once")),
    ("counters that are old", ended(usage=OOM, oom_kills=[KILL], footprint=Footprint({"anon": 9 * MIB}, (Resident(7, "cc1plus", 69 * MIB),))), Hit("memory.max", 1, "memory limit: 1 process was killed for memory: cc1plus (pid 77); limit 512 MiB, peak 512 MiB; most of it in cc1plus (pid 7) 69.0 MiB; raise --memory or have it hold less at once")),
    ("files in tmpfs", ended(usage=OOM, oom_kills=[KILL], grown={"/run": 1, "/dev/shm": 300 * MIB}, footprint=Footprint({"anon": 9 * MIB, "file": 303 * MIB, "shmem": 303 * MIB}, ())), Hit("memory.max", 1, "memory limit: 1 process was killed for memory: cc1plus (pid 77); limit 512 MiB, peak 512 MiB; it held 303 MiB files in tmpfs and shared memory, 9.0 MiB anonymous; files in tmpfs are memory until they are removed (grown: /dev/shm by 300 MiB, /run by 1 B): have it write them to a disk, or raise --memory")),
    ("time limit", ended(-15, timed_out=True, timeout=90.0), Hit("timeout", 1, "time limit: 1 min 30 s had passed, ended by SIGTERM; a larger --timeout gives it longer")),
    ("time limit and grace", ended(-9, timed_out=True, timeout=0.5, killed_after_grace=True), Hit("timeout", 1, "time limit: 0.50 s had passed, ended by SIGTERM, then SIGKILL; a larger --timeout gives it longer")),
    ("one fork", ended(usage=Usage(pids_max_events=1)), Hit("pids.max", 1, "process limit: 1 fork was refused at --pids 64; threads count as well")),
    ("many forks", ended(usage=Usage(pids_max_events=12)), Hit("pids.max", 12, "process limit: 12 forks were refused at --pids 64; threads count as well")),
    ("reclaim", ended(usage=Usage(memory_max_events=5, memory_oom_kill=0)), Hit("memory.max", 5, "memory limit: held at 512 MiB by reclaiming, which costs time")),
    ("throttled", ended(usage=Usage(nr_throttled=3, throttled_usec=1500000)), Hit("cpu.max", 3, "CPU limit: throttled for 1.50 s at 1.5 cores")),
    ("throttled by a limit above", ended(usage=Usage(nr_throttled=3), limits=Limits(cpu=MAX)), Hit("cpu.max", 3, "CPU limit: throttled for 0.00 s at no limit")),
]  # fmt: skip  # texts as they are printed


@pytest.mark.parametrize(
    ("outcome", "hit"), [row[1:] for row in HITS], ids=[row[0] for row in HITS]
)
def test_a_hit_says_what_was_met_and_what_to_do(outcome: Outcome, hit: Hit) -> None:
    assert hits(outcome) == [hit]


def test_the_gravest_hit_is_first() -> None:
    usage = Usage(
        nr_throttled=1, pids_max_events=1, memory_max_events=1, memory_oom=1, memory_oom_kill=1
    )
    found = hits(ended(-9, usage=usage, timed_out=True, timeout=1.0))
    assert [hit.limit for hit in found] == ["memory.max", "timeout", "pids.max", "cpu.max"]


# Lines for people.

FULL = Usage(
    usage_usec=1_000_000,
    throttled_usec=250_000,
    memory_peak=100 * MIB,
    pids_peak=7,
    rbytes=MIB,
    wbytes=0,
    rx_bytes=2 * MIB,
    tx_bytes=0,
)


def test_the_summary_tells_the_end_the_figures_and_that_nothing_was_hit() -> None:
    assert summary(ended(3, usage=FULL)) == [
        "fixer exited 3 after 2.00 s",
        "  cpu        1.00 s, on average 0.50 of 1.5 cores, throttled 0.25 s",
        "  memory     peak 100 MiB of 512 MiB",
        "  disk       read 1.0 MiB, wrote 0 B",
        "  network    received 2.0 MiB, sent 0 B",
        "  processes  at most 7 of 64",
        "  no limit on CPU, memory, processes or time was hit",
    ]


def test_the_summary_says_what_was_not_counted() -> None:
    assert summary(ended()) == [
        "fixer exited 0 after 2.00 s",
        "  cpu        not counted here",
        "  memory     not counted here",
        "  disk       not counted here",
        "  network    not counted here",
        "  processes  not counted here",
        "  no limit on CPU, memory, processes or time was hit",
    ]


def test_the_summary_says_which_file_could_not_be_read_and_why() -> None:
    assert "  io.stat: expected SUB=VALUE" in summary(
        ended(unreadable={"io.stat": "expected SUB=VALUE"})
    )


def test_the_summary_ends_with_the_hits() -> None:
    lines = summary(ended(usage=Usage(pids_max_events=1, nr_throttled=1)))
    assert [line.split()[0] for line in lines[-2:]] == ["process", "CPU"]
    assert "  no limit on CPU, memory, processes or time was hit" not in lines


def test_what_still_ran_is_named() -> None:
    one = summary(ended(left=(RunningProcess(7, "sl\x1beep"),)))
    assert "  1 process was still running and was ended: sl\\x1beep (pid 7)" in one
    many = summary(ended(left=[RunningProcess(pid, "sleep") for pid in range(10, 17)]))
    told = (
        "sleep (pid 10), sleep (pid 11), sleep (pid 12), sleep (pid 13), sleep (pid 14), and 2 more"
    )
    assert f"  7 processes were still running and were ended: {told}" in many
    assert not [line for line in summary(ended()) if "still running" in line]
    assert as_json(ended(left=(RunningProcess(7, "sleep"),)), "1")["left_running"] == [{"pid": 7, "name": "sleep"}]  # fmt: skip


def test_who_had_left_the_cgroup_is_told_with_what_became_of_them() -> None:
    one = EscapedProcess(7, "sleep", "/system.slice/run-u1.scope", "ended")
    words = "sleep (pid 7) in /system.slice/run-u1.scope, ended"
    assert f"  1 process was outside of its cgroup and limits: {words}" in summary(
        ended(escaped=(one,))
    )
    many = summary(ended(escaped=tuple(one.but(pid=n, fate="") for n in range(7))))
    line = next(line for line in many if "7 processes were outside" in line)
    assert line.endswith("left running; and 2 more")
    assert as_json(ended(escaped=(one,)), "1")["escaped"] == [
        {"pid": 7, "name": "sleep", "cgroup": "/system.slice/run-u1.scope", "fate": "ended"}
    ]


def test_names_from_outside_cannot_draw() -> None:
    one = EscapedProcess(7, "a\x1b[2Jb", "/x\n.slice", "ended")
    text = escaped([one])
    assert text.isprintable()
    assert text.endswith(", ended")
    assert escaped([one] * 9).endswith("; and 4 more")


def test_what_was_added_to_a_directory_is_told() -> None:
    usage = QuotaUsage("/wo\x1brk", 2**30, 512 * MIB)
    assert "  space      512 MiB of 1.0 GiB added to /wo\\x1brk" in summary(ended(space=usage))
    assert "  space      not counted here" in summary(ended(space=usage.but(used=None)))
    assert as_json(ended(space=usage), "1")["disk_space"] == {
        "directory": "/wo\x1brk",
        "limit": 2**30,
        "used": 512 * MIB,
    }


def test_what_is_not_on_the_disk_yet_is_told() -> None:
    usage = Usage(rbytes=0, wbytes=0, file_dirty=29 * MIB, file_writeback=MIB)
    assert "  disk       read 0 B, wrote 0 B; 30.0 MiB not yet written to the disk" in summary(
        ended(usage=usage)
    )
    alone = ended(usage=Usage(file_dirty=MIB, file_writeback=0))
    assert "  disk       1.0 MiB not yet written to the disk" in summary(alone)


def test_a_figure_of_zero_is_counted() -> None:
    zero = Usage(
        usage_usec=0, memory_peak=0, pids_peak=0, rbytes=0, wbytes=0, rx_bytes=0, tx_bytes=0
    )
    assert not any("not counted" in line for line in summary(ended(usage=zero)))


def test_a_run_of_no_length_has_a_mean_of_zero() -> None:
    assert "on average 0.00" in summary(ended(wall=0.0, usage=FULL))[1]


@pytest.mark.parametrize(
    ("number", "name"),
    [(9, "SIGKILL"), (15, "SIGTERM"), (11, "SIGSEGV"), (signal.SIGRTMIN + 3, "a real-time signal")],
)
def test_a_signal_is_told_by_number_and_name(number: int, name: str) -> None:
    assert (
        summary(ended(-number))[0]
        == f"fixer was ended by signal {int(number)} ({name}) after 2.00 s"
    )


def test_limits_that_do_not_hold_are_a_line_for_each_file() -> None:
    refused = [
        UnenforcedLimit(IoMax("8:0").line(), "no such device"),
        UnenforcedLimit(ControlLine("cpu.max", "max 100000"), "there is no cpu.max"),
        UnenforcedLimit(IoMax("8:16").line(), "no such device"),
        UnenforcedLimit(IoMax("8:32").line(), "device 8:32 takes no io.max"),
    ]
    assert not_enforced(refused) == [
        "NOT enforced: io.max (no such device; device 8:32 takes no io.max)",
        "NOT enforced: cpu.max (there is no cpu.max)",
    ]


def test_nothing_that_does_not_hold_is_no_line() -> None:
    assert not_enforced([]) == []


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        (LIMITS, "cpu 1.5 cores, memory 512 MiB, swap 0 B, pids 64, nofile 1000"),
        (Limits(net="none", net_in=5), "cpu no limit, memory no limit, swap no limit, pids None, nofile None, net none"),
        (
            Limits(net_in=MAX, net_out=5_000_000, ranges={"net_out": Range(1e6, 1e7)}),
            "cpu no limit, memory no limit, swap no limit, pids None, nofile None, net_in no limit, net_out 5 MB/s (1 MB/s to 10 MB/s)",
        ),
        (
            Limits(
                cpu=MAX, cpuset="0,2", memory=MAX, swap=MAX, pids=MAX, nofile=5,
                io_read={EVERY_DISK: 50_000_000, "/dev/vda": MAX}, io_write_iops={"/dev/vda": 100},
            ),
            "cpu no limit, cpuset 0,2, memory no limit, swap no limit, pids max, rbps 50 MB/s, wiops 100 on /dev/vda, nofile 5",
        ),
    ],
)  # fmt: skip
def test_the_limits_are_one_line(limits: Limits, line: str) -> None:
    assert limits_line(limits) == line


# Keys for programs.


def test_the_json_summary_is_this() -> None:
    outcome = Outcome(
        name="fixer",
        command=("make", "test"),
        limits=Limits(
            cpu=1.5, cpuset="0-1", memory=512 * MIB, swap=MAX, pids=64,
            io_read={EVERY_DISK: 5}, io_write={"/dev/vda": MAX}, nofile=1000,
            net_in=6, net_loopback="limited", io_strict="off",
            ranges={"cpu": Range(0.5, 4)},
        ),
        returncode=-9,
        wall=1.23456789,
        timeout=90.0,
        usage=Usage(*range(1, 10), pids_peak=10, pids_max_events=0, rbytes=12, wbytes=13, rios=14,
                    rx_bytes=15, tx_dropped_packets=0),
        unreadable={"io.stat": "garbage"},
        paced=("io_write",),
        enforced=[ControlLine("pids.max", "64"), IoMax("8:0", rbps=5).line()],
        not_enforced=[UnenforcedLimit(ControlLine("cpu.max", "150000 100000"), "there is no cpu.max")],
        oom_kills=[KILL],
        oom_limits=OWN,
        footprint=HELD,
        grown={"/tmp": 5},
        cgroup="/sys/fs/cgroup/a/agent",
        memory_limit=512 * MIB,
        alerts_left_out={"memory": 31},
        moves_left_out=2,
    )  # fmt: skip
    assert json.loads(json.dumps(as_json(outcome, "1.2.3"))) == {
        "schema": 1,
        "agentres": "1.2.3",
        "name": "fixer",
        "command": ["make", "test"],
        "cgroup": "/sys/fs/cgroup/a/agent",
        "exit_code": 137,
        "signal": 9,
        "timed_out": False,
        "stopped": None,
        "wall_seconds": 1.234568,
        "usage": {
            "usage_usec": 1,
            "user_usec": 2,
            "system_usec": 3,
            "nr_throttled": 4,
            "throttled_usec": 5,
            "memory_peak": 6,
            "memory_max_events": 7,
            "memory_oom": 8,
            "memory_oom_kill": 9,
            "pids_peak": 10,
            "pids_max_events": 0,
            "rbytes": 12,
            "wbytes": 13,
            "rios": 14,
            "wios": None,
            "rx_bytes": 15,
            "rx_dropped_bytes": None,
            "rx_dropped_packets": None,
            "rx_loopback_bytes": None,
            "rx_delayed_bytes": None,
            "tx_bytes": None,
            "tx_dropped_bytes": None,
            "tx_dropped_packets": 0,
            "tx_loopback_bytes": None,
            "tx_delayed_bytes": None,
            "read_bytes": None,
            "dirtied_bytes": None,
            "unbilled_bytes": None,
            "paused_usec": None,
            "file_dirty": None,
            "file_writeback": None,
        },
        "unreadable": {"io.stat": "garbage"},
        "limits": {
            "cpu": 1.5,
            "cpuset": "0-1",
            "memory": 536870912,
            "swap": "max",
            "pids": 64,
            "rbps": {"": 5},
            "wbps": {"/dev/vda": "max"},
            "riops": {},
            "wiops": {},
            "nofile": 1000,
            "net_in": 6,
            "net_out": None,
            "net": "host",
            "net_loopback": "limited",
            "io_strict": "off",
            "timeout": 90.0,
            "ranges": {"cpu": [0.5, 4]},
        },
        "memory_max": 536870912,
        "paced": ["io_write"],
        "enforced": [
            {"file": "pids.max", "text": "64"},
            {"file": "io.max", "text": "8:0 rbps=5 wbps=max riops=max wiops=max"},
        ],
        "not_enforced": [
            {"file": "cpu.max", "text": "150000 100000", "why": "there is no cpu.max"},
        ],
        "limits_hit": [
            {
                "limit": "memory.max",
                "events": 9,
                "text": "memory limit: 9 processes were killed for memory: cc1plus (pid 77); limit 512 MiB,"
                " peak 6 B; it held 400 MiB anonymous, 80.0 MiB files in tmpfs and shared memory, 20.0 MiB page cache;"
                " most of it in cc1 plus (pid 7) 390 MiB; raise --memory or have it hold less at once",
            },
            {
                "limit": "cpu.max",
                "events": 4,
                "text": "CPU limit: throttled for 0.00 s at up to 4 cores",
            },
        ],
        "disk_space": None,
        "left_running": [],
        "footprint": {
            "anon": 400 * MIB,
            "file": 100 * MIB,
            "shmem": 80 * MIB,
            "kernel": MIB,
            "sock": 0,
            "biggest": [{"pid": 7, "name": "cc1 plus", "size": 390 * MIB}],
            "tmpfs_grown": {"/tmp": 5},
        },
        "escaped": [],
        "oom_kills": [
            {"pid": 77, "task": "cc1plus", "cgroup": "/a/agent/main", "limit_cgroup": "/a/agent"},
        ],
        "oom_limits": ["/a/agent"],
        "alerts_left_out": {"memory": 31},
        "moves_left_out": 2,
    }


def test_the_json_of_an_agent_that_exited_has_no_signal() -> None:
    found = as_json(ended(3), "1")
    assert (found["exit_code"], found["signal"]) == (3, None)


# Limits that move.


def test_an_elastic_limit_is_told_by_how_far_it_may_go() -> None:
    limits = Limits(
        memory=256 * MIB, cpu=1.0, pids=64,
        ranges={"memory": Range(64 * MIB, 2048 * MIB), "cpu": Range(0.5, 4)},
    )  # fmt: skip
    assert "memory 256 MiB (64.0 MiB to 2.0 GiB)" in limits_line(limits)
    outcome = Outcome("a", ("true",), limits, 0, 1.0, usage=Usage(memory_peak=100 * MIB))
    assert any("peak 100 MiB of up to 2.0 GiB" in line for line in summary(outcome))


def test_a_kill_at_an_elastic_limit_tells_why_it_was_not_raised() -> None:
    limits = Limits(memory=256 * MIB, ranges={"memory": Range(64 * MIB, 2048 * MIB)})
    outcome = Outcome(
        "a", ("true",), limits, -9, 1.0,
        usage=Usage(memory_oom=1, memory_oom_kill=1),
        memory_limit=512 * MIB, short="others have it", oom_limits=OWN,
    )  # fmt: skip
    (hit,) = hits(outcome)
    assert "limit 512 MiB (of up to 2.0 GiB), not raised: others have it" in hit.text


def test_what_was_left_out_is_counted() -> None:
    told = summary(ended(alerts_left_out={"memory": 30, "frozen": 1}, moves_left_out=1))
    assert told[-2:] == [
        "  31 changes were left out of what was told of alerts, as there were too many: memory 30, frozen 1",
        "  1 move of a limit was left out of the history, as there were too many",
    ]


def test_of_many_that_were_killed_a_few_are_named() -> None:
    kills = [KILL.but(pid=n) for n in range(100)]
    (hit,) = hits(ended(usage=OOM.but(memory_oom_kill=3000), oom_kills=kills))
    assert "3000 processes were killed for memory: cc1plus (pid 0), " in hit.text
    assert "cc1plus (pid 4), and 2995 more; " in hit.text
