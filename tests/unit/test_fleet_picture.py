"""What a dashboard draws, from a slice of folders: figures, rates, who comes and goes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_slice import MIB, FakeSlice, keep_attributes
from told import event

from agentres.kernel import host
from agentres.kernel.registry import ClaimMark
from agentres.model.limits import Host
from agentres.model.stats import Sample
from agentres.policy.alerts import Severity
from agentres.readers.fleet import KEPT, Fleet
from agentres.store import Store
from agentres.watch.recorder import new_run


class Clock:
    now = 2000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlice:
    keep_attributes(tmp_path, monkeypatch)
    monkeypatch.setattr(host, "read", lambda: Host(cpus=4, memory=1024 * MIB))
    return FakeSlice(tmp_path / "tree")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fleet(fake: FakeSlice, clock: Clock, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(
        str(fake.mount), lambda: Store.open(str(tmp_path / "history.db"), write=False), 0.8,
        own=str(fake.path), look_at_host=lambda: Sample(usage_usec=int(clock.now * 1e6), cpu_limit=4.0), now=clock,
    )  # fmt: skip
    yield made
    made.close()


def spent(agent: Path, usec: int, wrote: int) -> None:
    (agent / "cpu.stat").write_text(f"usage_usec {usec}\nuser_usec {usec}\nsystem_usec 0\n")
    (agent / "io.stat").write_text(f"8:0 rbytes=0 wbytes={wrote} rios=0 wios=1 dbytes=0 dios=0\n")


def test_a_rate_is_what_happened_between_two_looks(
    fake: FakeSlice, fleet: Fleet, clock: Clock
) -> None:
    agent = fake.agent("a", limit=256 * MIB, use=100 * MIB, cache=9 * MIB, cpu="150000 100000")
    (agent / "memory.high").write_text(f"{200 * MIB}\n")
    spent(agent, 0, 0)
    (first,) = fleet.look().agents
    assert (first.figures["cpu"], first.figures["memory"]) == (None, 100 * MIB)
    assert (first.limits["cpu"], first.limits["memory"], first.tripwire) == (
        1.5,
        256 * MIB,
        200 * MIB,
    )
    clock.now += 2
    spent(agent, 3_000_000, 4096)
    picture = fleet.look()
    (second,) = picture.agents
    assert (second.figures["cpu"], second.figures["disk_write"]) == (1.5, 2048)
    assert second.recent["cpu"] == (None, 1.5)
    assert (picture.host["cpu"], picture.host_limits["cpu"]) == (1.0, 4.0)
    assert second.figures["network_in"] is None


def test_what_a_slice_has_and_its_agents_take(fake: FakeSlice, fleet: Fleet) -> None:
    fake.agent("a", limit=256 * MIB, use=100 * MIB)
    fake.agent("b", limit=128 * MIB, use=20 * MIB, frozen=True, claimed=ClaimMark(priority=400))
    picture = fleet.look()
    (one,) = picture.slices
    assert (one.path, one.allocated, one.used) == ("/agentres.slice", 384 * MIB, 120 * MIB)
    assert one.free == one.budget - one.allocated
    assert {status.name: (status.state, status.priority) for status in picture.agents} == {
        "a": ("running", 100),
        "b": ("frozen", 400),
    }


def test_who_has_gone_is_in_no_picture_and_keeps_no_file_open(
    fake: FakeSlice, fleet: Fleet, clock: Clock
) -> None:
    files = len(list(Path("/proc/self/fd").iterdir()))
    agent = fake.agent("a")
    assert [status.name for status in fleet.look().agents] == ["a"]
    shutil.rmtree(agent.parent)
    assert fleet.look().agents == ()
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_the_first_picture_of_nothing(fleet: Fleet) -> None:
    picture = fleet.look()
    assert picture.agents == ()
    assert [one.path for one in picture.slices] == ["/agentres.slice"]
    assert "history" in picture.trouble


def test_only_the_last_looks_are_kept(fake: FakeSlice, fleet: Fleet, clock: Clock) -> None:
    spent(fake.agent("a"), 0, 0)
    for _ in range(KEPT + 5):
        clock.now += 1
        picture = fleet.look()
    assert len(picture.agents[0].recent["memory"]) == KEPT


def test_open_alerts_are_their_runs(fake: FakeSlice, fleet: Fleet, tmp_path: Path) -> None:
    fake.agent("a", started=1000.0)
    store = Store.open(str(tmp_path / "history.db"))
    store.record(event("raised", "0a", 500.0, agent="a"))  # of a run before this one
    store.record(event("raised", "0b", 1500.0, agent="a"))
    store.record(event("raised", "0c", 1500.0, agent="b"))
    store.close()
    (status,) = fleet.look().agents
    assert [alert.id for alert in status.alerts] == ["0b"]
    assert status.severity == Severity.WARNING
    store = Store.open(str(tmp_path / "history.db"))
    store.acknowledge("0b", "me", "", 1600.0)
    store.close()
    (status,) = fleet.look().agents
    assert status.severity is None


def test_of_two_users_agents_of_one_name_each_has_its_own_alerts(fake: FakeSlice, fleet: Fleet, tmp_path: Path) -> None:  # fmt: skip
    fake.agent("a", started=1000.0)
    other = FakeSlice(fake.mount / "user.slice")
    other.agent("a", started=1000.0)
    store = Store.open(str(tmp_path / "history.db"))
    run = new_run("a", "agent", (), str(other.path / "agentres-a.scope/agent"), 1001.0)
    store.begin(run)
    store.record(event("raised", "0a", 1500.0, agent="a", run=run.id))
    store.close()
    agents = fleet.look().agents
    assert len(agents) == 2
    assert {one.agent.path for one in agents if one.alerts} == {run.cgroup}
