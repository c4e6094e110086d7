"""What users may have at the most: whose ceiling holds, and what is done to the limits that are asked for."""

from __future__ import annotations

import pytest

from agentres.model.errors import UsageError
from agentres.model.limits import EVERY_DISK, Host, Limits, Range, defaults, read_limits
from agentres.model.units import MAX
from agentres.policy.ceilings import (
    AGENTS,
    Allowance,
    Ceiling,
    allowance,
    no_ceilings,
    priority_within,
    within,
)

GIB = 2**30
HOST = Host(cpus=8, memory=16 * GIB)
STANDARD = defaults(HOST)

GENERAL = Ceiling("general", agents=2, limits={"memory": "1G", "cpu": "1", "net_out": "10MB/s"})
STUDENTS = Ceiling("students", groups=("students",), agents=4, limits={"memory": "2G"})
STAFF = Ceiling("staff", groups=("staff", "50"), limits={"memory": "4G"})
ANN = Ceiling("ann", users=("ann", "1001"), agents=9, limits={"memory": "512M"})
ALL = (ANN, GENERAL, STAFF, STUDENTS)


def top(user: str, uid: int = 1000, *groups: str) -> Allowance:
    return allowance(ALL, user, uid, groups, HOST)


def asked(**texts: str) -> Limits:
    return read_limits(texts, HOST, STANDARD)


def test_without_ceilings_there_is_a_count_and_no_other_limit() -> None:
    assert allowance((), "bob", 1000, (), HOST) == Allowance("bob", AGENTS, 100, Limits())


def test_a_ceiling_of_nobody_is_everybodys() -> None:
    found = top("bob")
    assert (found.agents, found.top.memory, found.top.cpu) == (2, GIB, 1.0)


def test_a_groups_goes_before_it_key_by_key() -> None:
    found = top("bob", 1000, "users", "students")
    assert (found.agents, found.top.memory, found.top.cpu) == (4, 2 * GIB, 1.0)


def test_of_two_groups_what_is_more_holds() -> None:
    found = top("bob", 1000, "students", "staff")
    assert (found.agents, found.top.memory) == (4, 4 * GIB)


@pytest.mark.parametrize("group", ["staff", "50"])
def test_a_group_is_known_by_name_and_number(group: str) -> None:
    assert top("bob", 1000, group).top.memory == 4 * GIB


def test_how_many_cpus_an_agent_is_bound_to_has_a_ceiling() -> None:
    four = allowance([Ceiling("all", limits={"cpuset": "4"})], "bob", 1000, (), HOST)
    assert within(STANDARD, four, STANDARD).cpuset == 4
    for text, cpuset in (("2", 2), ("1,3-5", "1,3-5")):
        assert within(asked(cpuset=text), four, STANDARD).cpuset == cpuset
    for text, figure in (("5", "5 CPUs"), ("0-7", "8 CPUs"), (MAX, "no limit")):
        with pytest.raises(UsageError, match=f"--cpuset: {figure} is above the ceiling of 4 CPUs"):
            within(asked(cpuset=text), four, STANDARD)
    assert no_ceilings({"cpuset": "4"}, HOST) == []
    assert no_ceilings({"cpuset": "0-3"}, HOST) == ["cpuset"]


@pytest.mark.parametrize(("user", "uid"), [("ann", 7), ("zoe", 1001)])
def test_a_users_own_goes_before_all_though_it_is_less(user: str, uid: int) -> None:
    found = top(user, uid, "students", "staff")
    assert (found.agents, found.top.memory) == (9, GIB // 2)


def test_what_was_asked_for_within_the_ceiling_stays() -> None:
    assert within(asked(memory="700M"), top("bob"), STANDARD).memory == 700 * 2**20


def test_what_nobody_asked_for_is_lowered() -> None:
    small = allowance((Ceiling("x", limits={"pids": "10", "io_read": "1MB/s"}),), "b", 1, (), HOST)
    found = within(STANDARD, small, STANDARD)
    assert found.pids == 10
    assert found.io_read == {EVERY_DISK: 1_000_000}


def test_a_range_ends_at_the_ceiling() -> None:
    found = within(asked(memory="256M:8G"), top("bob"), STANDARD)
    assert found.ranges["memory"] == Range(256 * 2**20, GIB)
    assert found.memory <= GIB


def test_a_range_without_end_ends_there_too() -> None:
    found = within(asked(memory="256M:max"), top("bob"), STANDARD)
    assert found.ranges["memory"] == Range(256 * 2**20, GIB)


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("memory", "2G", "--memory: 2.0 GiB is above the ceiling of 1.0 GiB for bob"),
        ("memory", "max", "--memory: no limit is above the ceiling of 1.0 GiB for bob"),
        ("memory", "2G:4G", "--memory: 2.0 GiB is above the ceiling of 1.0 GiB for bob"),
        ("cpu", "1.5", "--cpu: 1.5 cores is above the ceiling of 1 cores for bob"),
        ("net_out", "20MB/s", "--net-out: 20 MB/s is above the ceiling of 10 MB/s for bob"),
    ],
)
def test_what_was_asked_for_above_it_is_refused(key: str, text: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        within(asked(**{key: text}), top("bob"), STANDARD)
    assert str(refused.value) == words


def test_no_disk_goes_faster_than_a_ceiling_of_all() -> None:
    small = allowance((Ceiling("x", limits={"io_write": "5MB/s"}),), "bob", 1, (), HOST)
    one = STANDARD.but(io_write={"/dev/vda": 50_000_000})
    with pytest.raises(UsageError, match=r"--io-write: 50 MB/s is above the ceiling of 5 MB/s"):
        within(one, small, STANDARD)
    found = within(STANDARD.but(io_write={"/dev/vda": 1_000_000}), small, STANDARD)
    assert found.io_write == {EVERY_DISK: 5_000_000, "/dev/vda": 1_000_000}


def test_no_limit_is_what_nobody_capped() -> None:
    found = within(asked(pids="max"), top("bob"), STANDARD)
    assert found.pids == MAX


def test_under_a_ceiling_on_disk_rates_pauses_are_not_turned_off() -> None:
    disks = allowance((Ceiling("d", limits={"io_write": "50MB/s"}),), "bob", 1000, (), HOST)
    assert within(asked(io_strict="on"), disks, STANDARD).io_strict == "on"
    with pytest.raises(UsageError, match="--io-strict off: bob has a ceiling on disk rates"):
        within(asked(io_strict="off"), disks, STANDARD)
    assert within(asked(io_strict="off"), top("bob"), STANDARD).io_strict == "off"


def test_a_priority_above_the_normal_one_is_the_administrators_to_give() -> None:
    nobody_said = allowance((), "bob", 1000, (), HOST)
    assert priority_within(100, nobody_said, asked=True) == 100
    with pytest.raises(UsageError, match="--priority: 101 is above the ceiling of 100 for bob"):
        priority_within(101, nobody_said, asked=True)
    staff = (Ceiling("all", priority=50), Ceiling("staff", groups=("staff",), priority=400))
    assert priority_within(400, allowance(staff, "bob", 1000, ("staff",), HOST), asked=True) == 400
    with pytest.raises(UsageError, match="ceiling of 50 for bob"):
        priority_within(100, allowance(staff, "bob", 1000, (), HOST), asked=True)
    # What nobody asked for is lowered.
    assert priority_within(100, allowance(staff, "bob", 1000, (), HOST), asked=False) == 50
