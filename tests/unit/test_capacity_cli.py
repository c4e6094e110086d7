"""`agentres capacity`: the sums, a row for each agent, the JSON, and hosts where nothing runs or can run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import agentres
from fake_slice import MIB, FakeSlice, keep_attributes
from json_types import check

from agentres.kernel import delegation, host, tree
from agentres.kernel.delegation import Hierarchy, Place
from agentres.kernel.registry import ClaimMark
from agentres.model.errors import NoCgroup
from agentres.model.limits import Host
from agentres.model.live_schemas import Capacity

GIB = 1 << 30


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlice:
    """A host of 10 GiB and 4 processors, whose agents are in a slice of folders."""
    keep_attributes(tmp_path, monkeypatch)
    made = FakeSlice(tmp_path / "cgroup")
    place = Place("direct", str(made.mount), Hierarchy(str(made.mount), "/", False))
    monkeypatch.setattr(delegation, "find", lambda: place)
    monkeypatch.setattr(host, "read", lambda: Host(4, 10 * GIB, 4096, 1024))
    return made


def capacity(*arguments: str, configured: str = os.devnull) -> tuple[int, str, str]:
    environment = {"AGENTRES_CONFIG": configured, "COLUMNS": "400", "TERM": "dumb", "NO_COLOR": "1"}
    return agentres("capacity", *arguments, env=environment)


def read(configured: str = os.devnull) -> dict[str, Any]:
    status, out, err = capacity("--json", configured=configured)
    assert (status, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    check(found, Capacity)
    return found


def sums(out: str) -> dict[str, str]:
    lines = [line.split(maxsplit=1) for line in out.split("\n\n", maxsplit=1)[0].splitlines()]
    return {name: " ".join(rest.split()) for name, rest in lines}


def test_with_no_agents_the_host_and_the_budget_are_told(fake: FakeSlice) -> None:
    status, out, err = capacity()
    assert (status, err) == (0, "")
    assert sums(out) == {
        "host": "10.0 GiB 4 cores",
        "budget": "8.0 GiB 3.2 cores 80% of the host; held by admission alone",
        "allocated": "0 B",
        "used": "0 B",
        "free": "8.0 GiB",
    }
    assert out.endswith("\nno agent runs\n")


def test_a_slice_that_no_agent_has_been_in_yet_is_empty(
    fake: FakeSlice, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place("direct", f"{fake.mount}/a/b", Hierarchy(str(fake.mount), "/", False))
    monkeypatch.setattr(delegation, "find", lambda: place)
    found = read()
    assert (found["budget"]["memory"], found["agents"]) == (8 * GIB, [])


def test_each_agent_has_a_row(fake: FakeSlice) -> None:
    fake.limit(8 * GIB)
    elastic = ClaimMark(400, 32 * MIB, 0, 0.0, 4 * GIB)
    fake.agent("a", 2 * GIB, GIB, cache=GIB // 2, started=1, claimed=elastic, cpu="150000 100000")
    fake.agent("b", GIB, GIB // 2, started=2, claimed=ClaimMark(100, GIB))
    fake.agent("c", GIB, GIB, started=3, claimed=elastic.but(priority=25, wants=2 * GIB, since=1.0))
    fake.agent("d", GIB, GIB // 4, started=4, claimed=elastic.but(since=1.0), frozen=True)
    fake.agent("e", "max", 0, started=5, claimed=ClaimMark(100, GIB, GIB, 1.0))
    status, out, err = capacity()
    assert (status, err) == (0, "")
    assert sums(out)["budget"].endswith(f"80% of the host; held by {fake.path}")
    assert sums(out)["allocated"] == "5.0 GiB"
    assert sums(out)["used"] == "2.8 GiB"
    assert sums(out)["free"] == "3.0 GiB"
    head, *rows = out.split("\n\n")[1].splitlines()
    assert head.split() == ["name", "priority", "state", "limit", "use", "range", "of", "budget", "cpu"]  # fmt: skip
    assert [" ".join(row.split()) for row in rows] == [
        "a 400 running 2.0 GiB 1.0 GiB 32.0 MiB to 4.0 GiB 25% 1.5",
        "b 100 running 1.0 GiB 512 MiB fixed 12% -",
        "c 25 throttled 1.0 GiB 1.0 GiB 32.0 MiB to 4.0 GiB 12% -",
        "d 400 frozen 1.0 GiB 256 MiB 32.0 MiB to 4.0 GiB 12% -",
        "e 100 waiting - 0 B - 0% -",
    ]


def test_who_is_bound_to_cpus_has_them_told(fake: FakeSlice) -> None:
    path = fake.agent("a", GIB, GIB)
    os.setxattr(fake.agent("b", GIB, GIB, started=2000.0), "user.agentres.cpus", b"garbage\x1b")
    assert "cpuset" not in capacity()[1]
    os.setxattr(path, "user.agentres.cpus", b"0-1,4")
    head, *rows = capacity()[1].split("\n\n")[1].splitlines()
    assert head.split()[-1] == "cpuset"
    assert [row.split()[-1] for row in rows] == ["0-1,4", "-"]
    assert [agent["cpuset"] for agent in read()["agents"]] == ["0-1,4", None]


def test_json_has_bytes_and_cores(fake: FakeSlice) -> None:
    fake.limit(4 * GIB, "200000 100000")
    claimed = ClaimMark(400, 32 * MIB, 3 * GIB, 7.5)
    path = fake.agent("x", GIB, GIB // 2, claimed=claimed, cpu="50000 100000", beside=10 * MIB)
    found = read()
    assert found == {
        "schema": 1,
        "slice": str(fake.path),
        "host": {"memory": 10 * GIB, "cpus": 4},
        "budget": {
            "share": 0.8,
            "memory": 4 * GIB,
            "memory_held_by": str(fake.path),
            "cpu": 2.0,
            "cpu_held_by": str(fake.path),
        },
        "allocated": GIB,
        "used": GIB // 2,
        "beside": 10 * MIB,
        "free": 3 * GIB - 10 * MIB,
        "agents": [
            {
                "name": "x",
                "cgroup": str(path),
                "started": 1000.0,
                "priority": 400,
                "state": "throttled",
                "limit": GIB,
                "use": GIB // 2,
                "least": 32 * MIB,
                "most": None,
                "wants": 3 * GIB,
                "share": 0.25,
                "cpu_limit": 0.5,
                "cpuset": None,
                "supervised": True,
            }
        ],
        "elsewhere": [],
    }


def test_json_has_null_for_what_there_is_not(fake: FakeSlice) -> None:
    fake.agent("x", "max", GIB, claimed=None)
    found = read()
    assert found["budget"]["memory_held_by"] is None
    assert found["budget"]["cpu_held_by"] is None
    (agent,) = found["agents"]
    assert (agent["limit"], agent["most"], agent["cpu_limit"]) == (None, None, None)
    assert (agent["state"], agent["supervised"]) == ("running", False)
    assert found["allocated"] == GIB


def test_the_share_is_the_configuration_s(fake: FakeSlice, tmp_path: Path) -> None:
    path = tmp_path / "agentres.toml"
    path.write_text('[budget]\nshare = "50%"\n')
    found = read(str(path))
    assert (found["budget"]["share"], found["budget"]["memory"]) == (0.5, 5 * GIB)
    path.write_text('[budget]\nshare = "150%"\n')
    status, out, err = capacity(configured=str(path))
    assert (status, out) == (1, "")
    assert err.startswith(f"agentres: {path}: budget.share")
    assert err.count("\n") == 1


def test_a_budget_that_has_shrunk_below_the_limits_is_told(fake: FakeSlice) -> None:
    fake.agent("x", 3 * GIB, GIB)
    fake.limit(2 * GIB)
    _, out, _ = capacity()
    assert sums(out)["budget"].endswith(f"less than 80% of the host; held by {fake.path}")
    assert sums(out)["free"] == "0 B the limits are 1.0 GiB above the budget"
    assert read()["free"] == -GIB


def test_a_budget_of_nothing_has_no_parts(fake: FakeSlice) -> None:
    fake.agent("x", GIB, GIB)
    fake.limit(0)
    assert capacity()[0] == 0
    assert read()["agents"][0]["share"] is None


def test_agents_elsewhere_are_counted(fake: FakeSlice) -> None:
    fake.agent("x", GIB, GIB)
    assert "elsewhere" not in capacity()[1]
    FakeSlice(fake.mount, "user.slice/agentres.slice").agent("y", GIB, GIB)
    assert capacity()[1].endswith("\n1 more agent runs elsewhere: other users', or inside of an agent\n")  # fmt: skip
    FakeSlice(fake.mount, "other.slice").agent("z", GIB, GIB)
    assert "2 more agents run elsewhere" in capacity()[1]
    assert len(read()["elsewhere"]) == 2
    assert read()["allocated"] == GIB


def test_a_name_commands_no_terminal(fake: FakeSlice) -> None:
    path = fake.agent("x", GIB, GIB)
    os.setxattr(path, "user.agentres.name", b"\x1b[31mred")
    assert "\x1b" not in capacity()[1]
    assert "red" in capacity()[1]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_where_no_agent_can_run_that_is_one_line(
    fake: FakeSlice, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    def find() -> Place:
        raise NoCgroup("no cgroup v2 hierarchy is mounted", "mount cgroup2")

    monkeypatch.setattr(delegation, "find", find)
    assert capacity(*arguments) == (
        1,
        "",
        "agentres: no cgroup v2 hierarchy is mounted; mount cgroup2\n",
    )


@pytest.mark.parametrize(
    ("kind", "uid", "expected"),
    [
        ("system", 0, "/mnt/agentres.slice"),
        ("user", 1000, "/mnt/user.slice/user-1000.slice/user@1000.service/agentres.slice"),
        ("direct", 1000, "/mnt/here/agentres.slice"),
    ],
)
@pytest.mark.parametrize("init", ["/init.scope", "/", None])
def test_the_slice_is_that_of_whoever_asks(
    kind: Any, uid: int, expected: str, init: str | None, proc: Callable[[str | None], None]
) -> None:
    proc(init)
    where = "/mnt/here" if kind == "direct" else "/run/bus"
    place = Place(kind, where, Hierarchy("/mnt", "/", False))
    assert tree.slice_of(place, uid) == expected


def test_a_manager_in_a_container_has_its_own(proc: Callable[[str | None], None]) -> None:
    proc("/machine/x/init.scope")
    place = Place("system", "/run/bus", Hierarchy("/mnt", "/", False))
    assert tree.slice_of(place, 0) == "/mnt/machine/x/agentres.slice"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Sets where the host's init is; None: nobody may know."""
    import builtins

    real = builtins.open

    def put(own: str | None) -> None:
        file = tmp_path / "cgroup-of-1"
        if own is not None:
            file.write_text(f"12:cpu:/x\n0::{own}\n")

        def opened(path: Any, *args: Any, **named: Any) -> Any:
            return real(file if path == "/proc/1/cgroup" else path, *args, **named)

        monkeypatch.setattr(builtins, "open", opened)

    return put
