"""The OOM killer's report in the kernel log: the victim, whose limit, and what was in the cgroup."""

from __future__ import annotations

import pytest

from agentres.model.oom import Footprint, OomReport, Resident
from agentres.model.stats import OomKill

NOTHING = Footprint({}, ())


def kill(record: str) -> OomKill | None:
    return OomReport(4096).take(record)


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
    assert kill(record) == OomKill(4242, task, GROUP, LIMIT, NOTHING)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "constraint", ["CONSTRAINT_NONE", "CONSTRAINT_CPUSET", "CONSTRAINT_MEMORY_POLICY"]
)
def test_a_kill_because_the_host_ran_out_has_no_limit(task: str, constraint: str) -> None:
    record = GLOBAL.format(constraint=constraint, group=GROUP, task=task)
    assert kill(record) == OomKill(4242, task, GROUP, "")


def test_a_kill_is_found_before_a_records_continuation_lines() -> None:
    record = (
        MEMCG.format(limit=LIMIT, group=GROUP, task="cc1")
        + "\n SUBSYSTEM=memory\n DEVICE=,pid=7,uid=7\n"
    )
    assert kill(record) == OomKill(4242, "cc1", GROUP, LIMIT, NOTHING)


def test_the_kernels_node_sets_may_hold_commas() -> None:
    record = MEMCG.format(limit=LIMIT, group=GROUP, task="cc1").replace(
        "mems_allowed=0", "mems_allowed=0-1,3"
    )
    assert kill(record) == OomKill(4242, "cc1", GROUP, LIMIT, NOTHING)


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
    assert kill(record) is None


# Linux 6.12, shortened; 6.1 has no kinds of rss, and all of memory.stat in one record.
REPORT = """\
4,1,1,-;python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
6,2,1,-;memory: usage 65536kB, limit 65536kB, failcnt 44
6,3,1,-;Memory cgroup stats for /agentres.slice/agentres-hog.scope/agent:
6,4,1,-;anon 12582912
6,5,1,-;file 50331648
6,6,1,-;kernel 1048576
6,7,1,-;sock 0
6,8,1,-;shmem 46137344
6,9,1,-;file_dirty 0
6,10,1,-;Tasks state (memory values in pages):
6,11,1,-;[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name
6,12,1,-;[    210]     0   210     2045     1152      128     1024         0    57344        0             0 sh
6,13,1,-;[    211]     0   211     9221     3072     2560      512         0    98304        0             0 python3
6,14,1,-;[    212]     0   212     9221     2048     2560      512         0    98304        0             0 a b
6,15,1,-;[    213]     0   213     9221       10       10        0         0    98304        0             0 d
6,16,1,-;{kill}
"""
OLDER = """\
4,1,1,-;cc1 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
6,3,1,-;Memory cgroup stats for /a:
6,4,1,-;anon 12582912\\x0afile 50331648\\x0akernel 1048576\\x0asock 0\\x0ashmem 46137344
6,11,1,-;[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name
6,13,1,-;[    211]     0   211     9221     3072    98304        0             0 python3
6,16,1,-;{kill}
"""
KINDS = {"anon": 12 << 20, "file": 48 << 20, "kernel": 1 << 20, "sock": 0, "shmem": 44 << 20}


def told(text: str, kill: str) -> list[OomKill]:
    report = OomReport(4096)
    lines = text.replace("{kill}", kill.partition(";")[2]).splitlines()
    return [found for line in lines if (found := report.take(line)) is not None]


def test_a_report_tells_what_was_in_the_cgroup_and_who_had_most_of_it() -> None:
    (found,) = told(REPORT, MEMCG.format(limit=LIMIT, group=GROUP, task="python3"))
    three = (Resident(211, "python3", 12 << 20), Resident(212, "a b", 8 << 20), Resident(210, "sh", 4608 << 10))  # fmt: skip
    assert found.footprint == Footprint(KINDS, three)


def test_older_kernels_say_the_same_in_other_records() -> None:
    (found,) = told(OLDER, MEMCG.format(limit=LIMIT, group=GROUP, task="python3"))
    assert found.footprint == Footprint(KINDS, (Resident(211, "python3", 12 << 20),))


def test_the_hosts_own_says_nothing_of_one_agent() -> None:
    record = GLOBAL.format(constraint="CONSTRAINT_NONE", group=GROUP, task="python3")
    (found,) = told(REPORT, record)
    assert found.footprint is None


def test_what_one_report_had_is_not_in_the_next() -> None:
    line = MEMCG.format(limit=LIMIT, group=GROUP, task="python3")
    first, second = told(REPORT + line, line)
    assert first.footprint is not None
    assert first.footprint.kinds == KINDS
    assert second.footprint == NOTHING
