"""The options of `agentres run`: what each means, in ranges, with the configuration and the environment."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentres.model.errors import UsageError
from agentres.model.limits import (
    CPU_START,
    EVERY_DISK,
    MEMORY_MIN,
    MEMORY_START,
    Host,
    Range,
    defaults,
)
from agentres.model.units import MAX
from agentres.policy.scaling import BALANCED
from agentres.policy.settings import Settings
from agentres.run import options
from agentres.run.options import OPTIONS

MIB, GIB = 2**20, 2**30
HOST = Host(cpus=4, memory=8 * 2**30)
COMMAND = ["python3", "agent.py"]


def understand(**values: Any) -> options.RunOptions:
    return options.understand(values, COMMAND, HOST)


# What each option means.

LIMITS: list[tuple[str, Any, str, Any]] = [
    ("cpu", "1.5", "cpu", 1.5),
    ("cpu", "150%", "cpu", 1.5),
    ("cpu", "4", "cpu", 4.0),
    ("cpu", "0.01", "cpu", 0.01),
    ("cpu", "max", "cpu", MAX),
    ("cpuset", "2", "cpuset", 2),
    ("cpuset", "2-3,0,1", "cpuset", "0-3"),
    ("cpuset", "3-3", "cpuset", "3"),
    ("cpuset", "max", "cpuset", MAX),
    ("memory", "512M", "memory", 512 * 2**20),
    ("memory", "50%", "memory", 4 * 2**30),
    ("memory", "100%", "memory", 8 * 2**30),
    ("memory", "1M", "memory", MEMORY_MIN),
    ("memory", "max", "memory", MAX),
    ("memory", "2000001", "memory", 2000001 // 4096 * 4096),
    ("swap", "0", "swap", 0),
    ("swap", "1G", "swap", 2**30),
    ("swap", "5000", "swap", 4096),
    ("swap", "max", "swap", MAX),
    ("pids", "1", "pids", 1),
    ("pids", "10k", "pids", 10_000),
    ("pids", "max", "pids", MAX),
    ("nofile", "1", "nofile", 1),
    ("nofile", "1M", "nofile", 1_000_000),
    ("io_read", ["50MB/s"], "io_read", {EVERY_DISK: 50_000_000}),
    ("io_read", ["max"], "io_read", {EVERY_DISK: MAX}),
    ("io_read", ["1k", "2k"], "io_read", {EVERY_DISK: 2048}),
    ("io_write", ["/dev/vda=1M"], "io_write", {EVERY_DISK: 100_000_000, "/dev/vda": 2**20}),
    ("io_write", ["/a=b=1M"], "io_write", {EVERY_DISK: 100_000_000, "/a=b": 2**20}),
    ("io_write", ["5", "/a=max"], "io_write", {EVERY_DISK: 5, "/a": MAX}),
    ("io_read_iops", ["10k"], "io_read_iops", {EVERY_DISK: 10_000}),
    ("io_write_iops", ["/dev/vda=7"], "io_write_iops", {"/dev/vda": 7}),
    ("net_in", "5MB/s", "net_in", 5_000_000),
    ("net_out", "max", "net_out", MAX),
    ("net", "none", "net", "none"),
    ("net", "isolated", "net", "isolated"),
    ("net_loopback", "limited", "net_loopback", "limited"),
    ("io_strict", "off", "io_strict", "off"),
]

ELSEWHERE: list[tuple[str, Any, str, Any]] = [
    ("timeout", "1h30m", "timeout", 5400.0),
    ("name", "fixer-1.a_b", "name", "fixer-1.a_b"),
    ("name", "a" * 64, "name", "a" * 64),
    ("user", "nobody", "user", "nobody"),
    ("cwd", "/tmp", "cwd", "/tmp"),
    ("isolate", "yes", "isolate", True),
    ("keep_caps", True, "keep_caps", True),
    ("cpu_hint", "off", "cpu_hint", False),
    ("disk_space", "512M", "disk_space", ("", 512 * 2**20)),
    ("disk_space", "/a=b=1GB", "disk_space", ("/a=b", 10**9)),
    ("escaped", "move", "escaped", "move"),
    ("hangup", "pass", "hangup_passed", True),
    ("hangup", "end", "hangup_passed", False),
    ("orphan", "keep", "orphan_kept", True),
    ("orphan", "kill", "orphan_kept", False),
    ("best_effort", True, "best_effort", True),
]

TALK: list[tuple[str, Any, str, Any]] = [
    ("philosophy", "frozen", "philosophy", "frozen"),
    ("priority", "low", "priority", 25),
    ("priority", "normal", "priority", 100),
    ("priority", "high", "priority", 400),
    ("priority", "1", "priority", 1),
    ("priority", "1000", "priority", 1000),
    ("wait", "5m", "wait", 300.0),
    ("wait", "max", "wait", math.inf),
    ("summary", "run.json", "summary", "run.json"),
    ("events", "3", "events", "3"),
    ("config", "rules.toml", "config", "rules.toml"),
    ("progress", True, "progress", True),
    ("quiet", True, "quiet", True),
    ("verbose", True, "verbose", True),
    ("detach", True, "detach", True),
    ("local", True, "local", True),
]


@pytest.mark.parametrize(("key", "text", "field", "value"), LIMITS)
def test_a_limit_is_what_its_option_says(key: str, text: Any, field: str, value: Any) -> None:
    assert getattr(understand(**{key: text}).request.limits, field) == value


@pytest.mark.parametrize(("key", "text", "field", "value"), ELSEWHERE)
def test_an_option_about_the_agent_reaches_its_request(
    key: str, text: Any, field: str, value: Any
) -> None:
    assert getattr(understand(**{key: text}).request, field) == value


@pytest.mark.parametrize(("key", "text", "field", "value"), TALK)
def test_what_is_not_about_the_launch_stays_out_of_the_request(
    key: str, text: Any, field: str, value: Any
) -> None:
    assert getattr(understand(**{key: text}), field) == value


def test_memory_is_whole_pages_of_the_host() -> None:
    host = Host(cpus=4, memory=8 * 2**30, page=65536)
    values = {"memory": "2000001", "swap": "100000"}
    limits = options.understand(values, COMMAND, host).request.limits
    assert (limits.memory, limits.swap) == (30 * 65536, 65536)


def test_the_tables_above_have_every_option() -> None:
    assert {row[0] for row in LIMITS + ELSEWHERE + TALK} == {option.key for option in OPTIONS}


def test_what_the_daemon_goes_on_with_is_not_supervised_here() -> None:
    with pytest.raises(UsageError, match="--detach and --local"):
        understand(detach=True, local=True)


def test_no_quota_holds_who_keeps_capabilities() -> None:
    with pytest.raises(UsageError, match="--disk-space and --keep-caps"):
        understand(disk_space="1G", keep_caps=True)


def test_without_options_the_defaults_hold() -> None:
    found = understand()
    assert found.request.limits == defaults(HOST)
    assert found.request.command == tuple(COMMAND)
    assert (found.summary, found.quiet, found.verbose) == (None, False, False)
    assert (found.request.timeout, found.request.user, found.request.cwd) == (None, None, None)
    assert found.request.best_effort is False
    assert (found.philosophy, found.priority, found.wait) == (None, 100, None)


# Ranges.

RANGES: list[tuple[str, Any, str, Any, Range]] = [
    ("cpu", "0.5:4", "cpu", CPU_START, Range(0.5, 4)),
    ("cpu", "50%:max", "cpu", CPU_START, Range(0.5, 4)),
    ("cpu", "2:3", "cpu", 2, Range(2, 3)),
    ("cpu", "0.01:0.5", "cpu", 0.5, Range(0.01, 0.5)),
    ("memory", "256M:2G", "memory", 256 * MIB, Range(256 * MIB, 2 * GIB)),
    ("memory", "64M:2G", "memory", MEMORY_START, Range(64 * MIB, 2 * GIB)),
    ("memory", "1G:max", "memory", GIB, Range(GIB, 8 * GIB)),
    ("memory", "32M:128M", "memory", 128 * MIB, Range(32 * MIB, 128 * MIB)),
    ("memory", "25%:50%", "memory", 2 * GIB, Range(2 * GIB, 4 * GIB)),
    ("memory", "2000001:300000001", "memory", MEMORY_START, Range(1998848, 299999232)),
    ("pids", "64:512", "pids", 512, Range(64, 512)),
    ("pids", "64:2k", "pids", 512, Range(64, 2000)),
    ("pids", "600:2k", "pids", 600, Range(600, 2000)),
    ("io_read", ["10M:50M"], "io_read", {EVERY_DISK: 50 * MIB}, Range(10 * MIB, 50 * MIB)),
    ("io_write", ["10MB/s:1GB/s"], "io_write", {EVERY_DISK: 100_000_000}, Range(10_000_000, 1_000_000_000)),
    ("io_read_iops", ["100:5k"], "io_read_iops", {EVERY_DISK: 5000}, Range(100, 5000)),
]  # fmt: skip  # a table


@pytest.mark.parametrize(("key", "text", "field", "first", "between"), RANGES)
def test_a_range_is_elastic_and_starts_modestly(
    key: str, text: Any, field: str, first: Any, between: Range
) -> None:
    limits = understand(**{key: text}).request.limits
    assert getattr(limits, field) == first
    assert limits.ranges[key] == between


@pytest.mark.parametrize("text", ["1:1", "1", "max", "100%:1.0"])
def test_one_value_is_a_fixed_limit_and_so_is_a_range_of_one(text: str) -> None:
    limits = understand(cpu=text).request.limits
    assert limits.cpu == (MAX if text == MAX else 1)
    assert "cpu" not in limits.ranges
    assert limits.ranges["memory"] == defaults(HOST).ranges["memory"]


def test_a_range_of_one_page_is_a_fixed_limit() -> None:
    limits = understand(memory="1048577:1048578").request.limits
    assert limits.memory == MIB
    assert "memory" not in limits.ranges


@pytest.mark.parametrize("device", ["/dev/vda", "/a:b", "/a=b:c=d", "/"])
def test_a_disk_has_a_range_of_its_own(device: str) -> None:
    limits = understand(io_read=["5M", f"{device}=1M:2M"]).request.limits
    assert limits.io_read == {EVERY_DISK: 5 * MIB, device: 2 * MIB}
    assert limits.ranges[f"io_read={device}"] == Range(MIB, 2 * MIB)
    assert "io_read" not in limits.ranges


def test_the_last_that_is_said_of_a_disk_holds() -> None:
    limits = understand(io_read=["1M:2M", "/a=1M:2M", "3M", "/a=max"]).request.limits
    assert limits.io_read == {EVERY_DISK: 3 * MIB, "/a": MAX}
    assert set(limits.ranges) == {"cpu", "memory"}


SIZES = st.integers(MIB, HOST.memory)


@given(SIZES, SIZES)
def test_a_range_of_memory_is_whole_pages_and_has_its_start_inside(one: int, other: int) -> None:
    low, high = sorted((one, other))
    limits = understand(memory=f"{low}:{high}").request.limits
    between = limits.ranges.get("memory", Range(limits.memory, limits.memory))
    assert isinstance(limits.memory, int)
    assert low - 4096 < between.least <= limits.memory <= between.most <= high
    assert all(value % 4096 == 0 for value in (between.least, between.most, limits.memory))


# What the configuration says.


def configured(limits: dict[str, Any], **values: Any) -> options.RunOptions:
    return options.understand(values, COMMAND, HOST, Settings(limits=limits))


def test_a_configured_limit_holds_where_no_option_says_otherwise() -> None:
    limits = configured({"memory": "1G:2G", "pids": "7"}, pids="9").request.limits
    assert (limits.memory, limits.pids, limits.cpu) == (GIB, 9, defaults(HOST).cpu)
    assert limits.ranges["memory"] == Range(GIB, 2 * GIB)


def test_an_option_wins_over_a_configured_range() -> None:
    limits = configured({"memory": "1G:2G"}, memory="3G").request.limits
    assert limits.memory == 3 * GIB
    assert "memory" not in limits.ranges


def test_options_and_configuration_are_laid_together_disk_by_disk() -> None:
    limits = configured({"io_read": ["1M", "/a=2M:3M"]}, io_read=["5M", "/b=6M"]).request.limits
    assert limits.io_read == {EVERY_DISK: 5 * MIB, "/a": 3 * MIB, "/b": 6 * MIB}
    assert limits.ranges["io_read=/a"] == Range(2 * MIB, 3 * MIB)


def test_a_configured_disk_limit_is_asked_for() -> None:
    assert configured({}).request.tolerated == {"io.max", "network"}
    request = configured({"io_write": ["5M"]}).request
    assert (request.tolerated, request.every_disk_asked) == ({"network"}, True)
    assert configured({"io_write": ["/a=5M"]}).request.every_disk_asked is False


def test_a_configured_limit_that_the_host_has_no_more_is_named_as_it_was_written() -> None:
    with pytest.raises(UsageError, match=r"^limits\.memory = 9G: is above the host's 8\.0 GiB$"):
        configured({"memory": "9G"})
    with pytest.raises(UsageError, match=r"^--memory 9G: is above"):
        configured({"memory": "10G"}, memory="9G")


def test_the_share_of_the_budget_is_the_most_that_the_defaults_go_to() -> None:
    settings = Settings(budget_share=0.5)
    limits = options.understand({}, COMMAND, HOST, settings).request.limits
    assert (limits.ranges["cpu"].most, limits.ranges["memory"].most) == (2, 4 * GIB)


def test_a_philosophy_is_one_of_the_configurations() -> None:
    settings = Settings(philosophies={"mine": BALANCED.but(name="mine")})
    found = options.understand({"philosophy": "mine"}, COMMAND, HOST, settings)
    assert found.philosophy == "mine"
    with pytest.raises(UsageError, match=r"^--philosophy frozen: expected one of mine$"):
        options.understand({"philosophy": "frozen"}, COMMAND, HOST, settings)


@pytest.mark.parametrize("key", ["io_read", "io_write", "io_read_iops", "io_write_iops"])
def test_a_disk_limit_that_was_asked_for_may_not_be_missing(key: str) -> None:
    assert understand().request.tolerated == {"io.max", "network"}
    assert understand(**{key: ["5"]}).request.tolerated == {"network"}


@pytest.mark.parametrize("key", ["net_in", "net_out"])
def test_a_network_rate_that_was_asked_for_may_not_be_missing(key: str) -> None:
    assert understand(**{key: "5"}).request.tolerated == {"io.max"}
    assert understand(**{key: "max"}).request.tolerated == {"io.max", "network"}
    assert configured({key: "5M:6M"}).request.tolerated == {"io.max"}


BAD: list[tuple[str, Any, str]] = [
    ("cpu", "", "expected cores"),
    ("cpu", "abc", "expected cores"),
    ("cpu", "0", "must be above 0"),
    ("cpu", "0.009", "is below the least, 0.01 cores"),
    ("cpu", "4.1", "is above the host's 4 cores"),
    ("cpu", "401%", "is above the host's 4 cores"),
    ("cpu", "-1", "must not be negative"),
    ("cpu", "MAX", "expected cores"),
    ("cpu", "1e0", "expected cores"),
    ("cpu", "1_0", "expected cores"),
    ("cpu", "9" * 400, "expected cores"),
    ("memory", "abc", "expected a size"),
    ("memory", "0", "must be above 0"),
    ("memory", "1023k", "is below the least, 1.0 MiB"),
    ("memory", "9G", "is above the host's 8.0 GiB"),
    ("memory", "101%", "is more than the host has"),
    ("memory", "9" * 305 + "P", "expected a size"),
    ("memory", "-1", "must not be negative"),
    ("cpu", ":2", "expected least:most such as 0.5:4"),
    ("cpu", "1:", "expected least:most such as 0.5:4"),
    ("cpu", ":", "expected least:most such as 0.5:4"),
    ("cpu", "max:2", "max is no least"),
    ("cpu", "max:max", "max is no least"),
    ("cpu", "0:2", "0: must be above 0"),
    ("cpu", "0.5:5", "5: is above the host's 4 cores"),
    ("cpu", "2:1", "its least, 2 cores, is above its most, 1 cores"),
    ("cpu", "a:b", "a: expected cores"),
    ("cpu", "1:2:3", "2:3: expected cores"),
    ("memory", ":2G", "expected least:most such as 256M:2G"),
    ("memory", "256M:", "expected least:most such as 256M:2G"),
    ("memory", "2G:1G", "its least, 2.0 GiB, is above its most, 1.0 GiB"),
    ("memory", "0:1G", "0: must be above 0"),
    ("memory", "512k:1G", "512k: is below the least, 1.0 MiB"),
    ("memory", "1G:9G", "9G: is above the host's 8.0 GiB"),
    ("memory", "1G:200%", "200%: is more than the host has"),
    ("memory", "1G:b", "b: expected a size"),
    ("memory", "-1:1G", "-1: must not be negative"),
    ("pids", "1:max", "expected least:most such as 64:512: max is no most here"),
    ("pids", "9:8", "its least, 9, is above its most, 8"),
    ("pids", "0:8", "0: must be above 0"),
    ("swap", "0:1G", "expected one value: this limit does not move"),
    ("nofile", "10:100", "expected one value"),
    ("philosophy", "", "expected one of balanced, conservative, aggressive, frozen"),
    ("philosophy", "balancd", "expected one of balanced, conservative, aggressive, frozen"),
    ("priority", "", "expected low, normal, high, or a whole number, 1 to 1000"),
    ("priority", "0", "expected low, normal, high, or a whole number, 1 to 1000"),
    ("priority", "1001", "expected low, normal, high"),
    ("priority", "-1", "expected low, normal, high"),
    ("priority", "HIGH", "expected low, normal, high"),
    ("priority", "1.5", "expected low, normal, high"),
    ("wait", "", "expected a duration"),
    ("wait", "0", "must be above 0"),
    ("wait", "soon", "expected a duration"),
    ("wait", "-1s", "must not be negative"),
    ("swap", "50%", "expected a size"),
    ("swap", "-1", "must not be negative"),
    ("pids", "0", "must be above 0"),
    ("pids", "1.5", "expected a whole number"),
    ("pids", "9" * 5000, "expected a whole number"),
    ("pids", "-3", "expected a whole number"),
    ("nofile", "0", "must be above 0"),
    ("disk_space", "0", "must be above 0"),
    ("disk_space", "/a=max", "expected a size such as 512M or 2GiB"),
    ("disk_space", "/a", "expected a size such as 512M or 2GiB"),
    ("disk_space", "=5M", "expected a directory before ="),
    ("nofile", "max", "expected a whole number"),
    ("timeout", "0", "must be above 0"),
    ("timeout", "0s", "must be above 0"),
    ("timeout", "0h0m", "must be above 0"),
    ("timeout", "9" * 400, "expected a duration"),
    ("timeout", "soon", "expected a duration"),
    ("timeout", "-5s", "expected a duration"),
    ("timeout", "max", "expected a duration"),
    ("name", "", "a letter or digit first"),
    ("name", "-x", "a letter or digit first"),
    ("name", ".", "a letter or digit first"),
    ("name", "a/b", "letters, digits and _.-"),
    ("name", "a b", "letters, digits and _.-"),
    ("name", "é", "letters, digits and _.-"),
    ("name", "a" * 65, "at most 64"),
    ("io_read", ["fast"], "expected bytes a second"),
    ("io_read", ["0"], "must be above 0"),
    ("io_read", ["vda=5M"], "a device is a path"),
    ("io_read", ["=5M"], "a device is a path"),
    ("io_write", ["5M", "-1"], "expected bytes a second"),
    ("io_write", ["/dev/vda=0"], "must be above 0"),
    ("io_write", ["/dev/vda=abc"], "expected bytes a second"),
    ("io_write", ["/dev/vda="], "expected bytes a second"),
    ("io_read", ["10M:max"], "max is no most here"),
    ("io_read", ["/dev/vda=2M:1M"], "its least, 2.1 MB/s, is above its most, 1.05 MB/s"),
    ("io_read", ["/dev/vda=:1M"], "expected least:most such as 10M:100M"),
    ("io_read", ["/a:1M=0:2M"], "0: must be above 0"),
    ("io_read", ["vda:1M=1M:2M"], "a device is a path"),
    ("io_read_iops", ["1:2:3"], "2:3: expected a whole number"),
    ("io_read_iops", ["/dev/vda=1.5"], "expected a whole number"),
    ("io_read_iops", ["1.5"], "expected a whole number"),
    ("io_read_iops", ["0"], "must be above 0"),
    ("io_write_iops", ["10MB"], "expected a whole number"),
    ("io_write_iops", ["sda=1"], "a device is a path"),
]


@pytest.mark.parametrize(("key", "text", "expectation"), BAD)
def test_a_bad_value_is_one_line_with_option_value_and_expectation(
    key: str, text: Any, expectation: str
) -> None:
    with pytest.raises(UsageError) as caught:
        understand(**{key: text})
    line = str(caught.value)
    shown = text if isinstance(text, str) else text[-1]
    assert line.startswith(f"--{key.replace('_', '-')} {shown}: ")
    assert expectation in line
    assert "\n" not in line


@pytest.mark.parametrize("other", ["quiet", "detach"])
def test_progress_wants_somebody_who_looks(other: str) -> None:
    with pytest.raises(UsageError, match=f"^--progress and --{other}: there is nobody"):
        understand(progress=True, **{other: True})


@pytest.mark.parametrize(
    ("command", "start"),
    [
        ("python3", "python3"),
        ("/usr/bin/python3", "python3"),
        ("./my agent", "my_agent"),
        ("-x", "x"),
        ("...", "agent"),
        ("/", "agent"),
        ("", "agent"),
        ("ü", "agent"),
        ("a" * 300, "a" * 48),
    ],
)
def test_the_default_name_is_the_commands_with_a_random_end(command: str, start: str) -> None:
    assert re.fullmatch(re.escape(start) + "-[0-9a-f]{6}", options.default_name(command))


def test_two_default_names_of_one_command_differ() -> None:
    assert len({options.default_name("sh") for _ in range(8)}) > 1


@given(st.text(st.characters(exclude_characters="\0")))
def test_every_default_name_is_a_name_that_may_be_given(command: str) -> None:
    name = options.default_name(command)
    assert understand(name=name).request.name == name


# The environment's layer.


def test_the_environment_stands_between_the_line_and_the_configuration() -> None:
    settings = Settings(limits={"memory": "1G", "pids": "7", "io_read": ["1M"]}, origins={"limits.pids": "/a.toml"})  # fmt: skip
    around = {"AGENTRES_MEMORY": "2G", "AGENTRES_IO_READ": "2M  /=3M", "AGENTRES_PRIORITY": "high", "AGENTRES_CPU": ""}  # fmt: skip
    found = options.understand({"memory": "3G"}, COMMAND, HOST, settings, around)
    assert (found.request.limits.memory, found.request.limits.pids, found.priority) == (
        3 * GIB,
        7,
        400,
    )
    assert found.request.origins == {
        "memory": "--memory",
        "pids": "/a.toml",
        "io_read": "AGENTRES_IO_READ",
    }
    laid, beside = options.with_environment(settings, HOST, around)
    assert laid.limits == {"memory": "2G", "pids": "7", "io_read": ["1M", "2M", "/=3M"]}
    assert (laid.origins["limits.memory"], laid.origins["limits.pids"]) == (
        "AGENTRES_MEMORY",
        "/a.toml",
    )
    assert beside == {"priority": "high"}


@pytest.mark.parametrize(
    ("name", "text"),
    [("AGENTRES_MEMORY", "9G"), ("AGENTRES_WAIT", "soon"), ("AGENTRES_PHILOSOPHY", "none"), ("AGENTRES_IO_WRITE", "x")],
)  # fmt: skip
def test_the_environments_mistakes_are_told_by_its_names(name: str, text: str) -> None:
    for line in ({}, {"pids": "7"}):
        with pytest.raises(UsageError, match=f"^{name}={text}: "):
            options.understand(line, COMMAND, HOST, None, {name: text})
    with pytest.raises(UsageError, match=f"^{name}={text}: "):
        options.with_environment(Settings(), HOST, {name: text})


def test_the_environment_says_nothing_of_what_is_no_limit() -> None:
    around = {"AGENTRES_USER": "root", "AGENTRES_NAME": "x", "AGENTRES_QUIET": "1"}
    assert options.from_environment(around) == {}


@pytest.mark.parametrize(
    "values",
    [{"memory": True}, {"io_write": [1]}, {"memory": ["1G"]}, {"io_write": "1MB/s"}, {"quiet": "yes"}, {"wait": True}, {"nothing": "x"}],
)  # fmt: skip
def test_what_a_client_submits_is_of_the_kind_that_its_line_gives(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        options.check_kinds(values)
    options.check_kinds({"memory": "1G", "io_write": ["1MB/s"], "quiet": True, "wait": "max"})
