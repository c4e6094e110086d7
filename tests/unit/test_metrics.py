"""The metrics as a scraper sees them: through both parsers of the client library, and promtool."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from scraped import no_history, series

from agentres.kernel import devices, registry, tree
from agentres.kernel.registry import RunningAgent
from agentres.model.errors import AgentresError
from agentres.model.stats import Sample
from agentres.policy.capacity import Claim
from agentres.readers.metrics import OF_AGENT, OF_HOST, TABLE, AgentresCollector, device_name
from agentres.store import Run, Store

MOUNT = "/sys/fs/cgroup"

FULL = Sample(
    *(
        (("254:0", 1, 2, 3, 4), ("7:0", 5, 6, 7, 8)) if field == "disks" else 1_500_000 + at
        for at, field in enumerate(Sample.__match_args__)
    )
)
"""Each figure another one."""


def agent(name: str = "a", where: str = "") -> RunningAgent:
    home = f"{MOUNT}/{where or name}"
    return RunningAgent(name, f"{home}/agent", home, 1700000000.25, 42, 1000, 0)


Scrape = Callable[..., dict[tuple[str, tuple[str, ...]], float]]


@pytest.fixture
def expose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The exposition of these agents, samples and history; both formats parse, and promtool's check."""

    def text(
        agents: list[RunningAgent] | None = None,
        sample: Sample = FULL,
        host: Sample = FULL,
        history: Callable[[], Store] = no_history,
        read: Callable[[str], Sample] | None = None,
        claims: list[Claim] | None = None,
        share: float | None = None,
    ) -> str:
        monkeypatch.setattr(
            registry, "running", lambda mount: [agent()] if agents is None else agents
        )
        monkeypatch.setattr(tree, "claims", lambda path: claims or [])
        collector = AgentresCollector(
            MOUNT, read or (lambda path: sample), history, lambda: host, share
        )
        mine = CollectorRegistry()
        mine.register(collector)
        list(parse_openmetrics(openmetrics.generate_latest(mine).decode()))
        return generate_latest(mine).decode()

    return text


@pytest.fixture
def scrape(expose: Callable[..., str]) -> Scrape:
    return lambda **named: series(expose(**named))


# What is told.


def test_each_figure_of_an_agent_is_told_in_base_units(scrape: Scrape) -> None:
    found = scrape(host=Sample(), agents=[agent("x", "agentres.slice/agentres-x.scope")])
    own = ("x", "/agentres.slice/agentres-x.scope")
    at = {field: 1_500_000 + n for n, field in enumerate(Sample.__match_args__)}
    assert found["agentres_agents", ()] == 1
    assert found["agentres_start_time_seconds", own] == 1700000000.25
    assert found["agentres_cpu_seconds_total", (*own, "user")] == at["user_usec"] / 1e6
    assert found["agentres_cpu_seconds_total", (*own, "system")] == at["system_usec"] / 1e6
    assert found["agentres_cpu_throttled_seconds_total", own] == at["throttled_usec"] / 1e6
    for name, field in [
        ("cpu_periods_total", "nr_periods"),
        ("cpu_throttled_periods_total", "nr_throttled"),
        ("cpu_limit_cores", "cpu_limit"),
        ("memory_current_bytes", "memory_current"),
        ("memory_working_set_bytes", "working_set"),
        ("memory_peak_bytes", "memory_peak"),
        ("memory_limit_bytes", "memory_limit"),
        ("swap_current_bytes", "swap_current"),
        ("tasks", "pids_current"),
        ("tasks_limit", "pids_limit"),
        ("open_files", "fds"),
        ("oom_kills_total", "memory_oom_kill"),
        ("forks_refused_total", "pids_max_events"),
    ]:
        assert found[f"agentres_{name}", own] == at[field], name
    for event in ("high", "max", "oom"):
        assert found["agentres_memory_events_total", (*own, event)] == at[f"memory_{event}"]
    for resource in ("cpu", "memory", "io"):
        for kind in ("some", "full"):
            name = f"{resource}_{kind}_usec"
            assert (
                found["agentres_pressure_seconds_total", (*own, kind, resource)] == at[name] / 1e6
            )


def test_disks_are_told_by_name(
    scrape: Scrape, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "devices/vda").mkdir(parents=True)
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / "dev/block/254:0").symlink_to(tmp_path / "devices/vda")
    monkeypatch.setattr(devices, "SYS", str(tmp_path))
    device_name.cache_clear()
    found = scrape(host=Sample())
    device_name.cache_clear()
    names = ("read_bytes", "written_bytes", "reads", "writes")
    for device, figures in (("vda", (1, 2, 3, 4)), ("7:0", (5, 6, 7, 8))):
        for name, figure in zip(names, figures, strict=True):
            assert found[f"agentres_disk_{name}_total", ("a", "/a", device)] == figure


def test_the_host_has_the_same_and_network_and_load(scrape: Scrape) -> None:
    found = scrape(agents=[])
    at = {field: 1_500_000 + n for n, field in enumerate(Sample.__match_args__)}
    assert found["agentres_agents", ()] == 0
    assert found["agentres_host_cpu_seconds_total", ("user",)] == at["user_usec"] / 1e6
    for name, field in [
        ("memory_working_set_bytes", "working_set"),
        ("processes", "pids_current"),
        ("network_receive_bytes_total", "rx_bytes"),
        ("network_transmit_bytes_total", "tx_bytes"),
        ("load1", "load1"),
        ("load5", "load5"),
        ("load15", "load15"),
    ]:
        assert found[f"agentres_host_{name}", ()] == at[field]
    assert not [name for name, _ in found if name.startswith("agentres_cpu")]


# What is absent.


def test_what_is_absent_has_no_series(scrape: Scrape) -> None:
    found = scrape(sample=Sample(), host=Sample())
    assert {name for name, _ in found} == {
        "agentres_agents",
        "agentres_start_time_seconds",
        "agentres_history_readable",
    }
    zero = scrape(sample=Sample(usage_usec=0, user_usec=0), host=Sample())
    assert zero["agentres_cpu_seconds_total", ("a", "/a", "user")] == 0
    assert ("agentres_cpu_seconds_total", ("a", "/a", "system")) not in zero


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), AgentresError("gone")])
def test_an_agent_that_ends_meanwhile_takes_no_other_with_it(
    scrape: Scrape, error: Exception
) -> None:
    def read(path: str) -> Sample:
        if path == f"{MOUNT}/gone/agent":
            raise error
        return FULL

    found = scrape(agents=[agent("gone"), agent("stays")], read=read)
    assert {labels[0] for name, labels in found if name == "agentres_tasks"} == {"stays"}
    assert found["agentres_agents", ()] == 2


# Names that somebody else chose.


@pytest.mark.parametrize(
    "name", ['a"b', "a\\b", "a\nb", "a\\nb", "é\u202e", "{}=,", "", "\x00", "a" * 5000]
)
def test_odd_names_come_out_as_they_went_in(scrape: Scrape, name: str) -> None:
    found = scrape(agents=[agent(name, "home")])
    assert ("agentres_tasks", (name, "/home")) in found


def test_a_path_in_no_encoding_does_not_spoil_the_rest(scrape: Scrape) -> None:
    found = scrape(agents=[agent("x", os.fsdecode(b"caf\xe9"))])
    assert ("agentres_tasks", ("x", "/caf\\xe9")) in found


def test_two_agents_of_one_name_are_two(scrape: Scrape) -> None:
    found = scrape(agents=[agent("x", "user-1/agentres-x"), agent("x", "user-2/agentres-x")])
    assert ("agentres_tasks", ("x", "/user-1/agentres-x")) in found
    assert ("agentres_tasks", ("x", "/user-2/agentres-x")) in found


# Alerts.


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = f"{tmp_path}/history.db"
    store = Store.open(path)
    store.begin(Run("run00001", "a", "agent", ("true",), 0, "/a", 1, 1, "boot", 1.0))
    store.close()
    return path


def tell(path: str, event: str, alert: str, severity: str, at: float = 1.0) -> None:
    told: dict[str, Any] = {
        "schema": 1, "event": event, "id": alert, "run": "run00001", "agent": "a", "of": "agent",
        "rule": "memory", "resource": "memory", "unit": "bytes", "severity": severity, "value": 3.0,
        "limit": 4.0, "threshold": 2.0, "breached": at, "raised": at, "updated": at,
        "resolved": at if event == "resolved" else None, "message": "m", "repeats": 0, "host": "h",
    }  # fmt: skip
    store = Store.open(path)
    store.record(told)
    store.close()


def collector(path: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[Any, float]]:
    monkeypatch.setattr(registry, "running", lambda mount: [])
    mine = CollectorRegistry()
    mine.register(
        AgentresCollector(MOUNT, lambda _: FULL, lambda: Store.open(path, write=False), Sample)
    )
    return lambda: series(generate_latest(mine).decode())


def total(severity: str) -> tuple[str, tuple[str, ...]]:
    return "agentres_alerts_raised_total", ("a", "memory", severity)


def is_open(severity: str) -> tuple[str, tuple[str, ...]]:
    return "agentres_alerts", ("a", "memory", severity)


def test_alerts_are_open_until_they_are_resolved_and_counted_for_good(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = collector(path, monkeypatch)
    assert look() == {("agentres_agents", ()): 0, ("agentres_history_readable", ()): 1}
    tell(path, "raised", "a1", "WARNING")
    tell(path, "raised", "a2", "WARNING")
    found = look()
    assert (found[is_open("WARNING")], found[total("WARNING")]) == (2, 2)
    tell(path, "updated", "a1", "CRITICAL")
    found = look()
    assert (found[is_open("WARNING")], found[is_open("CRITICAL")]) == (1, 1)
    assert (found[total("WARNING")], found[total("CRITICAL")]) == (2, 1)
    tell(path, "updated", "a1", "WARNING")
    tell(path, "resolved", "a2", "WARNING")
    found = look()
    assert (found[is_open("WARNING")], found.get(is_open("CRITICAL"))) == (1, None)
    assert (found[total("WARNING")], found[total("CRITICAL")]) == (2, 1)
    # Who looks for the first time counts the same.
    assert collector(path, monkeypatch)() == found


def test_what_the_history_forgets_is_not_taken_from_the_count(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = collector(path, monkeypatch)
    tell(path, "raised", "a1", "WARNING")
    tell(path, "resolved", "a1", "WARNING")
    assert look()[total("WARNING")] == 1
    store = Store.open(path)
    store.purge(40 * 86400.0)
    assert store.alerts() == []
    store.close()
    assert look()[total("WARNING")] == 1


def test_another_history_in_its_place_is_counted_anew(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = collector(path, monkeypatch)
    for number in range(3):
        tell(path, "raised", f"a{number}", "WARNING")
    assert look()[total("WARNING")] == 3
    for suffix in ("", "-wal", "-shm"):
        Path(path + suffix).unlink(missing_ok=True)
    tell(path, "raised", "b", "CRITICAL")
    found = look()
    assert (found.get(total("WARNING")), found[total("CRITICAL")]) == (None, 1)


def test_a_history_that_is_absent_or_broken_is_said(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(path, "raised", "a1", "WARNING")
    look = collector(path, monkeypatch)
    assert look()["agentres_history_readable", ()] == 1
    for suffix in ("", "-wal", "-shm"):
        Path(path + suffix).unlink(missing_ok=True)
    nothing = {("agentres_agents", ()): 0, ("agentres_history_readable", ()): 0}
    assert look() == nothing
    Path(path).write_bytes(b"no database" * 1000)
    assert look() == nothing


# Limits that move.


def act(path: str, kind: str, resource: str = "memory", agent: str = "a", at: float = 1.0) -> None:
    store = Store.open(path)
    store.act(
        {
            "run": "run00001", "agent": agent, "time": at, "resource": resource, "kind": kind,
            "before": 1.0, "after": 2.0, "rule": "up", "why": "w", "took": None,
        }
    )  # fmt: skip
    store.close()


def acted(found: dict[Any, float]) -> dict[tuple[str, ...], float]:
    name = "agentres_scaling_actions_total"
    return {labels: count for (metric, labels), count in found.items() if metric == name}


def test_actions_are_counted_by_agent_resource_and_kind(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = collector(path, monkeypatch)
    assert acted(look()) == {}
    act(path, "raise")
    act(path, "raise")
    act(path, "freeze")
    act(path, "raise", "io_write=/dev/vda", "b")
    expected = {
        ("a", "raise", "memory"): 2,
        ("a", "freeze", "memory"): 1,
        ("b", "raise", "io_write=/dev/vda"): 1,
    }
    assert acted(look()) == expected
    assert acted(look()) == expected  # nothing is counted twice
    act(path, "freeze")
    assert acted(look()) == {**expected, ("a", "freeze", "memory"): 2}
    assert acted(collector(path, monkeypatch)()) == acted(look())


def test_actions_that_the_history_forgets_are_not_taken_from_the_count(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = collector(path, monkeypatch)
    for _ in range(3):
        act(path, "raise")
    assert acted(look()) == {("a", "raise", "memory"): 3}
    store = Store.open(path)
    store.purge(40 * 86400.0)
    assert store.actions() == []
    store.close()
    assert acted(look()) == {("a", "raise", "memory"): 3}
    act(path, "raise")  # whose number has been there before
    assert acted(look()) == {("a", "raise", "memory"): 4}


def test_actions_of_another_history_in_its_place_are_counted_anew(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = collector(path, monkeypatch)
    for _ in range(3):
        act(path, "raise")
    assert acted(look()) == {("a", "raise", "memory"): 3}
    for suffix in ("", "-wal", "-shm"):
        Path(path + suffix).unlink(missing_ok=True)
    act(path, "lower")
    assert acted(look()) == {("a", "lower", "memory"): 1}


# Names and documentation.


def test_promtool_finds_nothing_to_lint(expose: Callable[..., str], path: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here: apt-get install prometheus")
    tell(path, "raised", "a1", "WARNING")
    act(path, "raise")
    claim = Claim(f"{MOUNT}/a/agent", "a", 1.0, 100, 50)
    text = expose(history=lambda: Store.open(path, write=False), claims=[claim], share=0.8)
    assert {family.name for family in parse(text)} == {
        metric.name.removesuffix("_total") for metric in TABLE
    }
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_names_follow_the_conventions() -> None:
    assert len({metric.name for metric in TABLE}) == len(TABLE)
    for metric in TABLE:
        assert re.fullmatch(r"agentres(_[a-z0-9]+)+", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert metric.help.endswith((".", "PSI.", "0."))


def test_each_figure_of_a_sample_is_a_metric() -> None:
    class Recording:
        def __init__(self) -> None:
            self.seen: set[str] = set()

        def __getattr__(self, name: str) -> None:
            self.seen.add(name)

    recording = Recording()
    for figure in (*OF_AGENT, *OF_HOST):
        list(figure.figures(recording))  # type: ignore[arg-type]
    # Sums of what is told by mode and by device.
    told_in_parts = {"usage_usec", "rbytes", "wbytes", "rios", "wios"}
    # Between two samples of the supervisor's: a scrape is none of these.
    most = {"memory_most", "working_set_most", "swap_most", "pids_most"}
    assert recording.seen == set(Sample.__match_args__) - told_in_parts - most
