"""From facts about a host to what can be enforced there, what is missing, and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from agentres.kernel.delegation import UNIFIED
from agentres.kernel.mounts import parse_mounts
from agentres.readers.doctor import IO_DROP_IN, Finding, examine, refused
from agentres.readers.probe import Disk, Facts, where_controllers_are

LIMIT_FILES = ["cpu.max", "memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "io.max"]
FEATURE_FILES = [
    "cgroup.kill", "cgroup.freeze", "memory.peak", "pids.peak", "memory.high", "memory.reclaim",
    "cpu.max.burst", "cgroup.pressure",
]  # fmt: skip


def trial(*not_enforced: tuple[str, str]) -> dict[str, Any]:
    """The summary of a trial run in which these (file, why) did not hold."""
    missing = {file for file, _ in not_enforced}
    return {
        "enforced": [{"file": file, "text": "x"} for file in LIMIT_FILES if file not in missing],
        "not_enforced": [{"file": file, "text": "x", "why": why} for file, why in not_enforced],
        "paced": ["io_write"],
    }


def test_a_disk_rate_that_is_held_by_pausing_is_told_as_that() -> None:
    held = trial(("io.max", "there is no io.max"))
    held |= {"not_enforced": [], "paced": ["io_write", "io_read"]}
    facts = host(
        trial=held,
        place_kind="user",
        user_controllers=frozenset({"cpu", "memory", "pids"}),
        control_files=frozenset({*LIMIT_FILES, *FEATURE_FILES} - {"io.max"}),
    )
    finding = only("io.max", facts)
    assert finding.status == "missing"
    assert "on average by pausing" in finding.detail
    assert "Delegate" in finding.remedy
    assert not refused(examine(facts, frozenset()))


def test_a_disk_rate_that_the_configuration_asks_for_is_missed_by_a_run() -> None:
    facts = host(trial=trial(("io.max", "there is no io.max")))
    assert not refused(examine(facts))
    assert refused(examine(facts, frozenset()))


def host(**other: Any) -> Facts:
    """A host where everything works, but for ``other``."""
    facts: dict[str, Any] = {
        "kernel": "6.12.0",
        "libc": "glibc 2.41",
        "uid": 0,
        "cpus": 4,
        "memory": 8 * 2**30,
        "swap": 2**30,
        "place": "/run/dbus/system_bus_socket",
        "place_kind": "system",
        "trial": trial(),
        "control_files": frozenset(LIMIT_FILES + FEATURE_FILES),
        "disks": (Disk("vda", "254:0", 2**34),),
        "nofile_hard": 524288,
        "spawn_into_cgroup": True,
        "pressure": True,
        "kernel_log": True,
    }
    return Facts(**{**facts, **other})


def about(check: str, facts: Facts) -> list[Finding]:
    return [finding for finding in examine(facts) if finding.check == check]


def only(check: str, facts: Facts) -> Finding:
    (finding,) = about(check, facts)
    return finding


def test_where_everything_works_nothing_is_missing() -> None:
    findings = examine(host())
    assert {finding.status for finding in findings} == {"ok", "note"}
    assert not any(finding.remedy for finding in findings)
    assert not refused(findings)


@pytest.mark.parametrize("file", LIMIT_FILES)
def test_a_limit_that_held_in_the_trial_is_ok(file: str) -> None:
    assert only(file, host()).status == "ok"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("system", "from the system manager"),
        ("user", "from your user manager"),
        ("direct", "below /sys/fs/cgroup/a, which is delegated to us"),
    ],
)
def test_the_place_of_agents_is_told(kind: str, words: str) -> None:
    finding = only("cgroup", host(place="/sys/fs/cgroup/a", place_kind=kind))
    assert (finding.status, finding.detail.endswith(words)) == ("ok", True)


# Refused.


def test_a_host_with_v1_controllers_is_refused_with_its_remedy_first() -> None:
    why = "cgroup v1 holds the controllers; the v2 hierarchy at /sys/fs/cgroup/unified has none"
    findings = examine(
        host(
            place="",
            place_kind="",
            place_error=why,
            place_remedy=UNIFIED,
            trial=None,
            control_files=frozenset(),
        )
    )
    assert findings[0] == Finding("cgroup", "refused", why, UNIFIED)
    assert refused(findings)


def test_where_there_is_no_place_no_limit_is_judged() -> None:
    checks = {finding.check for finding in examine(host(place_error="none", trial=None))}
    assert not checks & {*LIMIT_FILES, *FEATURE_FILES, "trial run"}
    assert {"host", "disks", "wall", "PSI"} <= checks


def test_a_failing_trial_is_refused_with_its_words() -> None:
    facts = host(trial=None, trial_error="systemd made no scope x: access denied")
    assert only("trial run", facts) == Finding(
        "trial run", "refused", "systemd made no scope x: access denied"
    )
    assert refused(examine(facts))


@pytest.mark.parametrize("file", [file for file in LIMIT_FILES if file != "io.max"])
def test_a_limit_that_did_not_hold_is_refused(file: str) -> None:
    facts = host(trial=trial((file, "no such file")))
    finding = only(file, facts)
    assert finding.status == "refused"
    assert finding.detail.endswith(": no such file")
    assert finding.remedy
    assert refused(examine(facts))


# Missing: runs go on without it.


def test_io_that_a_user_manager_does_not_delegate_is_missing_with_the_drop_in() -> None:
    facts = host(
        uid=1000,
        place_kind="user",
        user_controllers=("cpu", "memory", "pids"),
        trial=trial(("io.max", "there is no io.max: the io controller is not available")),
        control_files=frozenset({*LIMIT_FILES, *FEATURE_FILES} - {"io.max"}),
    )
    finding = only("io.max", facts)
    assert (finding.status, finding.remedy) == ("missing", IO_DROP_IN)
    assert "the io controller is not available" in finding.detail
    assert not refused(examine(facts))


def test_io_that_a_service_does_not_delegate_is_missing_with_the_delegation() -> None:
    facts = host(
        place="/sys/fs/cgroup/a",
        place_kind="direct",
        trial=trial(("io.max", "there is no io.max")),
        control_files=frozenset(),
    )
    assert (
        only("io.max", facts).remedy
        == "delegate io to /sys/fs/cgroup/a (Delegate=yes in the service's unit)"
    )


def test_io_that_some_disk_does_not_take_is_missing_and_told_once() -> None:
    why = "device 8:1 takes no io.max"
    finding = only(
        "io.max", host(trial=trial(("io.max", why), ("io.max", why), ("io.max", "other")))
    )
    assert (finding.status, finding.detail) == ("missing", f"disk rates: {why}; other")
    assert finding.remedy == "name the disks that can be limited, as --io-write /dev/NAME=RATE"


def test_a_controller_that_the_kernel_lacks_is_told_as_the_kernels() -> None:
    finding = only("pids.max", host(trial=trial(("pids.max", "there is no pids.max"))))
    assert finding.remedy.startswith("a kernel with this controller")


def test_a_host_without_disks_has_nothing_to_limit() -> None:
    summary = trial()
    summary["enforced"] = [row for row in summary["enforced"] if row["file"] != "io.max"]
    summary["paced"] = []
    facts = host(trial=summary, disks=())
    assert only("io.max", facts).status == "note"
    assert only("disks", facts) == Finding("disks", "note", "none")


@pytest.mark.parametrize("file", FEATURE_FILES)
def test_a_control_file_that_the_kernel_lacks_is_missing(file: str) -> None:
    facts = host(control_files=frozenset({*LIMIT_FILES, *FEATURE_FILES} - {file}))
    assert [f.check for f in examine(facts) if f.status == "missing"] == [file]
    assert not refused(examine(facts))


@pytest.mark.parametrize(
    ("fact", "check", "status", "remedy"),
    [
        ("pressure", "PSI", "missing", "boot with psi=1"),
        ("kernel_log", "kernel log", "missing", "for root, or with sysctl kernel.dmesg_restrict=0"),
        ("spawn_into_cgroup", "pidfd_spawn", "note", ""),
    ],
)
def test_a_feature_that_the_host_lacks_is_told_with_its_remedy(
    fact: str, check: str, status: str, remedy: str
) -> None:
    finding = only(check, host(**{fact: False}))
    assert (finding.status, finding.remedy) == (status, remedy)
    assert only(check, host()).status == "ok"


def test_mounts_that_escape_the_write_limit_are_told_one_by_one() -> None:
    found = about("disks", host(unlimited_mounts=("/: zfs does not write", "/tmp: other")))
    assert [finding.detail for finding in found if finding.status == "missing"] == [
        "no write limit on /: zfs does not write",
        "no write limit on /tmp: other",
    ]


# Notes.


@pytest.mark.parametrize(
    ("uid", "words"), [(0, "run agents with --isolate or --user"), (1000, "not malice")]
)
def test_how_hard_the_wall_is_depends_on_who_asks(uid: int, words: str) -> None:
    assert words in only("wall", host(uid=uid)).detail


def test_the_host_and_its_disks_are_told_in_units() -> None:
    facts = host()
    assert (
        only("host", facts).detail
        == "Linux 6.12.0, glibc 2.41; 4 CPUs, 8.0 GiB memory, 1.0 GiB swap"
    )
    assert only("disks", facts).detail == "vda (254:0, 16.0 GiB)"


def test_the_most_open_files_are_told() -> None:
    assert "524288" in only("nofile", host()).detail


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [([], False), (["ok", "note", "missing"], False), (["ok", "refused"], True)],
)
def test_a_run_is_refused_for_one_finding_that_says_so(statuses: list[Any], verdict: bool) -> None:
    assert refused([Finding("x", status, "y") for status in statuses]) is verdict


def test_each_controller_is_told_with_where_it_stands() -> None:
    table = parse_mounts(
        "31 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "32 23 0:29 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio"
    )
    found = where_controllers_are(table)
    assert found == {
        "cpu": "absent",
        "memory": "v1 at /sys/fs/cgroup/memory",
        "io": "v1 at /sys/fs/cgroup/blkio",
        "pids": "absent",
    }
    facts = Facts("6.12", "glibc", 0, 2, 1 << 30, 0, place_error="v1 holds them", controllers=found)
    told = {finding.check: (finding.status, finding.detail) for finding in examine(facts)}
    assert told["memory controller"] == ("missing", "v1 at /sys/fs/cgroup/memory")


def test_a_user_is_told_what_his_manager_has() -> None:
    where = dict.fromkeys(("cpu", "io"), "v2 at /sys/fs/cgroup")
    facts = Facts(
        "6.12", "glibc", 1000, 2, 1 << 30, 0, place_kind="user", user_controllers=("cpu",),
        user_manager=True, controllers=where,
    )  # fmt: skip
    told = {finding.check: finding for finding in examine(facts)}
    assert told["cpu controller"].status == "ok"
    assert told["io controller"].status == "missing"
    assert "not delegated to your user manager" in told["io controller"].detail
    assert told["user manager"].status == "ok"


def test_where_a_daemon_has_agents_run_nothing_is_refused() -> None:
    facts = host(place_error="no user manager", place_kind="", trial=None)
    assert refused(examine(facts))
    served = host(place_error="no user manager", place_kind="", trial=None, daemon="/run/x.sock")
    assert not refused(examine(served))
    assert "/run/x.sock has agents run" in only("daemon", served).detail
