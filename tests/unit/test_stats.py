"""Readers of the kernel's formats, and the kernel's words on OOM kills."""

from __future__ import annotations

import pytest

from agentres.model import stats
from agentres.model.stats import OomKill, StatError, Usage
from agentres.model.units import MAX

CPU_STAT = """usage_usec 12
user_usec 8
system_usec 4
nr_periods 3
nr_throttled 2
throttled_usec 700
"""


@pytest.mark.parametrize(
    ("text", "value"),
    {"0\n": 0, "4096\n": 4096, "max\n": MAX, "max": MAX, " 7 ": 7, "-1": -1}.items(),
)
def test_a_single_value_is_a_number_or_max(text: str, value: int | str) -> None:
    assert stats.parse_value(text) == value


@pytest.mark.parametrize("text", ["", "\n", "maximum", "1.5", "1 2", "0x1", "\0", "9" * 5000])
def test_garbage_is_no_single_value(text: str) -> None:
    with pytest.raises(StatError, match="expected a number or max"):
        stats.parse_value(text)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", {}),
        ("populated 1\nfrozen 0\n", {"populated": 1, "frozen": 0}),
        ("low 0\nhigh max", {"low": 0, "high": MAX}),
        ("a 1\na 2\n", {"a": 2}),
    ],
)
def test_flat_keyed_text_is_a_key_and_a_value_a_line(text: str, pairs: dict[str, int]) -> None:
    assert stats.parse_flat_keyed(text) == pairs


@pytest.mark.parametrize("text", ["populated", "populated \n", "a 1\n\nb 2", "a b", "a 1 2", "a=1"])
def test_garbage_is_not_flat_keyed(text: str) -> None:
    with pytest.raises(StatError):
        stats.parse_flat_keyed(text)


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("", {}),
        (
            "8:0 rbytes=1 wbytes=2\n8:16 rbytes=3\n",
            {"8:0": {"rbytes": 1, "wbytes": 2}, "8:16": {"rbytes": 3}},
        ),
        ("8:0 rbps=max wiops=5\n", {"8:0": {"rbps": MAX, "wiops": 5}}),
        ("8:0\n8:16 rios=1", {"8:0": {}, "8:16": {"rios": 1}}),
    ],
)
def test_nested_keyed_text_is_a_device_and_its_pairs_a_line(
    text: str, table: dict[str, dict[str, int]]
) -> None:
    assert stats.parse_nested_keyed(text) == table


@pytest.mark.parametrize(
    "text",
    [
        "8:0 rbytes",
        "8:0 rbytes=",
        "8:0 rbytes=x",
        "8:0 8:16 rbytes=1",
        "\n",
        " \n",
        "8:0 rbytes=1\n\n8:16 rbytes=1\n",
    ],
)
def test_garbage_is_not_nested_keyed(text: str) -> None:
    with pytest.raises(StatError):
        stats.parse_nested_keyed(text)


def test_a_counter_that_the_kernel_lacks_is_none() -> None:
    assert stats.count({"oom": 1}, "oom_kill") is None


def test_a_counter_is_never_max() -> None:
    with pytest.raises(StatError, match="oom is a counter"):
        stats.count({"oom": MAX}, "oom")


def test_usage_takes_each_figure_from_its_file() -> None:
    found, garbage = stats.usage(
        {
            "cpu.stat": CPU_STAT,
            "memory.peak": "1048576\n",
            "memory.events": "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\noom_group_kill 0\n",
            "pids.peak": "17\n",
            "pids.events": "max 3\n",
            "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n8:16 rbytes=10 wbytes=20 rios=30 wios=40\n",
        }
    )
    assert garbage == {}
    assert found == Usage(
        usage_usec=12,
        user_usec=8,
        system_usec=4,
        nr_throttled=2,
        throttled_usec=700,
        memory_peak=1048576,
        memory_max_events=5,
        memory_oom=2,
        memory_oom_kill=1,
        pids_peak=17,
        pids_max_events=3,
        rbytes=11,
        wbytes=22,
        rios=33,
        wios=44,
    )


def test_figures_of_missing_files_are_none() -> None:
    assert stats.usage({}) == (Usage(), {})


def test_a_figure_that_an_old_kernel_lacks_is_none_beside_the_others() -> None:
    found, garbage = stats.usage({"cpu.stat": "usage_usec 9\nuser_usec 5\nsystem_usec 4\n"})
    assert (found, garbage) == (Usage(usage_usec=9, user_usec=5, system_usec=4), {})


def test_no_disk_traffic_yet_is_zero() -> None:
    found, _ = stats.usage({"io.stat": ""})
    assert (found.rbytes, found.wbytes, found.rios, found.wios) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("cpu.stat", "usage_usec\n"),
        ("cpu.stat", "usage_usec max\n"),
        ("memory.peak", "lots\n"),
        ("memory.peak", "max\n"),
        ("memory.events", "max 1\noom x\n"),
        ("pids.peak", ""),
        ("pids.events", "max max\n"),
        ("io.stat", "8:0 rbytes=max\n"),
        ("io.stat", "8:0 rbytes=1\n\n"),
    ],
)
def test_garbage_is_told_by_its_file_and_spoils_no_other(file: str, text: str) -> None:
    files = {"cpu.stat": "usage_usec 1\n", "pids.events": "max 1\n", file: text}
    found, garbage = stats.usage(files)
    assert list(garbage) == [file]
    other = found.pids_max_events if file != "pids.events" else found.usage_usec
    assert other == 1


def test_usage_reads_no_file_that_it_does_not_list() -> None:
    asked: list[str] = []

    class Files(dict[str, str]):
        def __contains__(self, name: object) -> bool:
            asked.append(str(name))
            return False

    stats.usage(Files())
    assert sorted(asked) == sorted(stats.USAGE_FILES)


MEMCG = (
    "6,339,5140900,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=main,mems_allowed=0,"
    "oom_memcg={limit},task_memcg={group},task={task},pid=4242,uid=1000"
)
GLOBAL = (
    "6,512,99,-;oom-kill:constraint={constraint},nodemask=(null),cpuset=/,mems_allowed=0,global_oom,"
    "task_memcg={group},task={task},pid=4242,uid=0"
)
GROUP = "/agentres.slice/agentres-fixer.scope/agent/main"
LIMIT = "/agentres.slice/agentres-fixer.scope/agent"
TASKS = ["python3", "a b", "a,b", "x,pid=1,uid=0", ",", "", "(sd-pam)", "task=y", "é"]


@pytest.mark.parametrize("task", TASKS)
def test_a_kill_for_a_cgroups_limit_names_victim_and_limit(task: str) -> None:
    record = MEMCG.format(limit=LIMIT, group=GROUP, task=task)
    assert stats.parse_oom_kill(record) == OomKill(4242, task, GROUP, LIMIT)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "constraint", ["CONSTRAINT_NONE", "CONSTRAINT_CPUSET", "CONSTRAINT_MEMORY_POLICY"]
)
def test_a_kill_because_the_host_ran_out_has_no_limit(task: str, constraint: str) -> None:
    record = GLOBAL.format(constraint=constraint, group=GROUP, task=task)
    assert stats.parse_oom_kill(record) == OomKill(4242, task, GROUP, "")


def test_a_kill_is_found_before_a_records_continuation_lines() -> None:
    record = (
        MEMCG.format(limit=LIMIT, group=GROUP, task="cc1")
        + "\n SUBSYSTEM=memory\n DEVICE=,pid=7,uid=7\n"
    )
    assert stats.parse_oom_kill(record) == OomKill(4242, "cc1", GROUP, LIMIT)


def test_the_kernels_node_sets_may_hold_commas() -> None:
    record = MEMCG.format(limit=LIMIT, group=GROUP, task="cc1").replace(
        "mems_allowed=0", "mems_allowed=0-1,3"
    )
    assert stats.parse_oom_kill(record) == OomKill(4242, "cc1", GROUP, LIMIT)


@pytest.mark.parametrize(
    "record",
    [
        "",
        "6,1,2,-;eth0: link up",
        "3,340,5140901,-;Memory cgroup out of memory: Killed process 4242 (python3) total-vm:1kB",
        "6,339,5,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null)",
        "6,339,5,-;oom-kill:constraint=CONSTRAINT_NONE,task_memcg=/a,task=b,pid=x,uid=0",
        "6,339,5,-;task_memcg=/a,task=b,pid=1,uid=0",
    ],
)
def test_other_records_tell_of_no_kill(record: str) -> None:
    assert stats.parse_oom_kill(record) is None
