"""The metrics of what agents share: the budget, what is allocated of it, and each agent's part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_slice import MIB, FakeSlice, keep_attributes
from prometheus_client import CollectorRegistry, generate_latest
from scraped import no_history, series

from agentres.kernel import host
from agentres.kernel.registry import ClaimMark
from agentres.model.stats import Sample
from agentres.readers.metrics import STATES, AgentresCollector


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlice:
    keep_attributes(tmp_path, monkeypatch)
    monkeypatch.setattr(host, "memory", lambda: 1000 * MIB)
    return FakeSlice(tmp_path / "cgroup")


def shares(agents: FakeSlice, share: float | None = 0.8, own: str = "") -> dict[Any, float]:
    mine = CollectorRegistry()
    mount = str(agents.mount)
    mine.register(
        AgentresCollector(mount, lambda _: Sample(), no_history, Sample, share, own and mount + own)
    )
    return series(generate_latest(mine).decode())


def test_what_agents_have_of_the_budget(agents: FakeSlice) -> None:
    agents.agent("runs", 256 * MIB, claimed=ClaimMark(25))
    agents.agent("short", 200 * MIB, claimed=ClaimMark(400, 1, 300 * MIB, 5.0))
    agents.agent("cold", 100 * MIB, claimed=ClaimMark(100, 1, 150 * MIB, 5.0), frozen=True)
    agents.agent("waits", "max", 0, claimed=ClaimMark(100, 1, 64 * MIB, 5.0))
    found = shares(agents)

    def told(name: str) -> dict[str, float]:
        by_agent = {labels[0]: value for (metric, labels), value in found.items() if metric == name}
        assert len(by_agent) == 4
        return by_agent

    assert told("agentres_agent_priority") == {"runs": 25, "short": 400, "cold": 100, "waits": 100}
    assert told("agentres_agent_short_bytes") == {
        "runs": 0, "short": 100 * MIB, "cold": 50 * MIB, "waits": 64 * MIB,
    }  # fmt: skip
    states = {
        (labels[0], labels[2]): value
        for (metric, labels), value in found.items()
        if metric == "agentres_agent_state"
    }
    assert len(states) == 4 * len(STATES)
    assert {key for key, value in states.items() if value} == {
        ("runs", "running"), ("short", "throttled"), ("cold", "frozen"), ("waits", "waiting"),
    }  # fmt: skip
    assert set(states.values()) == {0, 1}
    assert found["agentres_agent_priority", ("runs", "/agentres.slice/agentres-runs.scope")] == 25
    assert found["agentres_budget_bytes", ("/agentres.slice",)] == 800 * MIB
    assert found["agentres_budget_allocated_bytes", ("/agentres.slice",)] == 556 * MIB


def test_the_budget_is_what_the_kernel_holds_if_that_is_less(agents: FakeSlice) -> None:
    agents.agent("a")
    agents.limit(300 * MIB)
    assert shares(agents)["agentres_budget_bytes", ("/agentres.slice",)] == 300 * MIB


def test_each_cgroup_with_agents_has_a_budget_of_its_own(agents: FakeSlice) -> None:
    agents.agent("a", 256 * MIB)
    FakeSlice(agents.mount, "user.slice/agentres.slice").agent("a", 64 * MIB)
    found = shares(agents)
    for where, size in (("/agentres.slice", 256), ("/user.slice/agentres.slice", 64)):
        assert found["agentres_budget_bytes", (where,)] == 800 * MIB
        assert found["agentres_budget_allocated_bytes", (where,)] == size * MIB
        assert found["agentres_agent_priority", ("a", f"{where}/agentres-a.scope")] == 100


def test_our_own_budget_is_told_while_no_agent_runs(agents: FakeSlice) -> None:
    assert shares(agents) == {("agentres_agents", ()): 0, ("agentres_history_readable", ()): 0}
    found = shares(agents, own="/still/to/be/made")
    assert found["agentres_budget_bytes", ("/still/to/be/made",)] == 800 * MIB
    assert found["agentres_budget_allocated_bytes", ("/still/to/be/made",)] == 0


def test_a_budget_that_nobody_knows_is_absent(agents: FakeSlice) -> None:
    agents.agent("a", 256 * MIB)
    found = shares(agents, share=None)
    assert found["agentres_budget_allocated_bytes", ("/agentres.slice",)] == 256 * MIB
    assert "agentres_budget_bytes" not in {name for name, _ in found}


def test_an_agent_whose_memory_is_not_told_is_not_allocated_nothing(agents: FakeSlice) -> None:
    (agents.agent("a") / "memory.max").unlink()
    names = {name for name, _ in shares(agents)}
    assert "agentres_start_time_seconds" in names
    assert "agentres_budget_bytes" in names
    assert not [name for name in names if "allocated" in name or "agentres_agent_" in name]
