"""The metrics as a scraper sees them: through both parsers of the client library, promtool and HTTP."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import agentres as in_process

pytest.importorskip("prometheus_client", reason="pip install 'agentres[metrics]'")

from fake_slice import MIB, FakeSlice, keep_attributes
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse

from agentres.cli.listening import parse_address
from agentres.cli.metrics import write_textfile
from agentres.kernel import delegation, devices, host, registry, tree
from agentres.kernel.registry import Claimed, Found
from agentres.model.errors import AgentresError, UsageError
from agentres.model.stats import Sample
from agentres.policy.capacity import Claim
from agentres.readers.metrics import (
    OF_AGENT,
    OF_HOST,
    STATES,
    TABLE,
    AgentresCollector,
    device_name,
)
from agentres.store import Run, Store, StoreError

MOUNT = "/sys/fs/cgroup"
DOCS = Path(__file__).parents[2] / "docs/metrics.md"

FULL = Sample(
    *(
        (("254:0", 1, 2, 3, 4), ("7:0", 5, 6, 7, 8)) if field == "disks" else 1_500_000 + at
        for at, field in enumerate(Sample.__match_args__)
    )
)
"""Each figure another one."""


def agent(name: str = "a", where: str = "") -> Found:
    home = f"{MOUNT}/{where or name}"
    return Found(name, f"{home}/agent", home, 1700000000.25, 42, 1000, 0)


def no_history() -> Store:
    raise StoreError("no history yet at /nowhere")


Scrape = Callable[..., dict[tuple[str, tuple[str, ...]], float]]


def series(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, sorted label values) -> value; a series that comes twice is an error."""
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    for family in parse(text):
        for sample in family.samples:
            key = sample.name, tuple(value for _, value in sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


@pytest.fixture
def expose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The exposition of these agents, samples and history; both formats parse, and promtool's check."""

    def text(
        agents: list[Found] | None = None,
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


# The budget.


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
    agents.agent("runs", 256 * MIB, claimed=Claimed(25))
    agents.agent("short", 200 * MIB, claimed=Claimed(400, 1, 300 * MIB, 5.0))
    agents.agent("cold", 100 * MIB, claimed=Claimed(100, 1, 150 * MIB, 5.0), frozen=True)
    agents.agent("waits", "max", 0, claimed=Claimed(100, 1, 64 * MIB, 5.0))
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
    assert recording.seen == set(Sample.__match_args__) - told_in_parts


def test_the_documented_metrics_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(agentres_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", DOCS.read_text(), re.M)
    expected = [
        (metric.name, metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help)
        for metric in TABLE
    ]
    assert rows == expected


# The file for node_exporter.


def test_a_textfile_is_replaced_whole_and_readable_by_all(tmp_path: Path) -> None:
    target = tmp_path / "agentres.prom"
    target.write_text("old")
    target.chmod(0o600)
    with target.open() as reader:
        old = os.umask(0o077)
        try:
            write_textfile(str(target), b"new\n")
        finally:
            os.umask(old)
        assert reader.read() == "old"  # who has it open reads on in the old one
    assert target.read_bytes() == b"new\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["agentres.prom"]


def test_a_textfile_may_be_named_without_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_textfile("x.prom", b"new\n")
    assert (tmp_path / "x.prom").read_bytes() == b"new\n"


def test_a_textfile_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "agentres.prom"
    target.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(AgentresError, match=r"agentres\.prom: no space left on device"):
        write_textfile(str(target), b"new\n")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["agentres.prom"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "pipe").symlink_to("/dev/null")
    for path in (str(tmp_path), f"{tmp_path}/pipe", "/dev/null", "/dev/stdout"):
        with pytest.raises(UsageError, match="expected a regular file"):
            write_textfile(path, b"")
    assert (tmp_path / "pipe").is_symlink()
    with pytest.raises(AgentresError, match=r"/nowhere/x\.prom: no such file or directory"):
        write_textfile("/nowhere/x.prom", b"")


# The address.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9105", ("127.0.0.1", 9105)),
        ("0", ("127.0.0.1", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:9105", ("::1", 9105)),
        ("localhost:80", ("localhost", 80)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":9105",
        "9105:",
        "::1:9105",
        "[]:9105",
        "65536",
        "-1",
        "٣",
        "+9",
        "x",
        "127.0.0.1",
        "[::1]",
    ],
)
def test_wrong_addresses_are_told_with_what_was_expected(text: str) -> None:
    with pytest.raises(UsageError, match=f"--listen {re.escape(text)}: expected"):
        parse_address(text)


# The command, on a fake cgroup tree.

DRIVER = """
import os, sys
from agentres.cli import verbs
from agentres.kernel import delegation
delegation.hierarchy = lambda: delegation.Hierarchy(os.environ["FAKE_MOUNT"], "/", False)
sys.exit(verbs.main(sys.argv[1:]))
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    mount = tmp_path / "cgroup"
    mount.mkdir()
    return {**os.environ, "FAKE_MOUNT": str(mount), "AGENTRES_STATE_DIR": str(tmp_path / "state")}


@pytest.fixture
def command(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: status, stdout, stderr."""
    mount = environment["FAKE_MOUNT"]
    place = delegation.Hierarchy(mount, "/", False)
    monkeypatch.setattr(delegation, "hierarchy", lambda: place)
    monkeypatch.setenv("AGENTRES_STATE_DIR", environment["AGENTRES_STATE_DIR"])

    def call(textfile: str | None = None, listen: str | None = None) -> tuple[int, str, str]:
        given = {"--textfile": textfile, "--listen": listen}
        return in_process(
            "metrics", *(f"{key}={text}" for key, text in given.items() if text is not None)
        )

    return call


def agentres(environment: dict[str, str], **named: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, "metrics"],
        env=environment,
        text=True,
        timeout=60,
        stderr=subprocess.PIPE,
        **named,
    )


Command = Callable[..., tuple[int, str, str]]


def test_the_command_prints_an_agent_from_its_control_files(
    environment: dict[str, str], command: Command
) -> None:
    path = Path(environment["FAKE_MOUNT"], "agentres-x/agent")
    (path / "main").mkdir(parents=True)
    (path / "cpu.stat").write_text("usage_usec 3\nuser_usec 2\nsystem_usec 1\n")
    (path / "memory.max").write_text("max\n")
    (path / "memory.events").write_text("low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\n")
    fd = os.open(path, os.O_RDONLY)
    registry.mark(fd, "x", 1.0, 1)
    os.close(fd)
    if not registry.running(environment["FAKE_MOUNT"]):
        pytest.skip("this file system has no extended attributes to mark an agent with")
    status, out, err = command()
    assert (status, err) == (0, "")
    found = series(out)
    own = ("x", "/agentres-x")
    assert found["agentres_cpu_seconds_total", (*own, "user")] == 2e-6
    assert found["agentres_oom_kills_total", own] == 2
    assert ("agentres_memory_limit_bytes", own) not in found
    assert found["agentres_host_memory_limit_bytes", ()] > 0


def test_the_command_writes_a_textfile(command: Command, tmp_path: Path) -> None:
    assert command(f"{tmp_path}/x.prom") == (0, "", "")
    assert series((tmp_path / "x.prom").read_text())["agentres_agents", ()] == 0


@pytest.mark.parametrize(
    ("textfile", "listen", "status", "words"),
    [
        ("/nowhere/x", None, 1, "--textfile /nowhere/x: no such file or directory"),
        ("/dev/null", None, 2, "--textfile /dev/null: expected a regular file"),
        ("x", "1", 2, "--textfile and --listen exclude each other"),
        (None, "x", 2, "--listen x: expected PORT"),
        (None, "", 2, "--listen : expected PORT"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    command: Command, textfile: str | None, listen: str | None, status: int, words: str
) -> None:
    exited, out, err = command(textfile, listen)
    assert (exited, out) == (status, "")
    assert err.startswith(f"agentres: {words}")
    assert err.count("\n") == 1


def test_without_the_client_library_the_remedy_is_told(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    line = "metrics need the package prometheus-client; pip install 'agentres[metrics]'"
    assert command() == (1, "", f"agentres: {line}\n")


def test_a_port_that_is_taken_is_one_line(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, out, err = command(listen=str(port))
    assert (status, out) == (1, "")
    assert err == f"agentres: --listen 127.0.0.1:{port}: address already in use\n"


def test_a_full_disk_behind_stdout_is_one_line(environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        done = agentres(environment, stdout=full)
    assert (done.returncode, done.stderr) == (
        1,
        "agentres: cannot write: no space left on device\n",
    )


def test_a_reader_that_has_gone_is_no_failure_to_tell_of(environment: dict[str, str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = agentres(environment, stdout=write_end)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_wrong_configuration_costs_only_the_budget(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrong.toml").write_text("budget.share = 2")
    monkeypatch.setenv("AGENTRES_CONFIG", f"{tmp_path}/wrong.toml")
    status, out, err = command()
    assert status == 0
    assert err.startswith(
        f"agentres: no metrics of the budget: {tmp_path}/wrong.toml: budget.share"
    )
    assert err.count("\n") == 1
    assert series(out)["agentres_agents", ()] == 0


def test_the_command_tells_the_budget_of_where_an_agent_would_run(
    command: Command, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = environment["FAKE_MOUNT"]
    place = delegation.Place("direct", f"{mount}/mine", delegation.Hierarchy(mount, "/", False))
    monkeypatch.setattr(delegation, "find", lambda: place)
    monkeypatch.setattr(host, "memory", lambda: 1000 * MIB)
    (tmp_path / "agentres.toml").write_text('budget.share = "50%"')
    monkeypatch.setenv("AGENTRES_CONFIG", f"{tmp_path}/agentres.toml")
    status, out, err = command()
    assert (status, err) == (0, "")
    assert series(out)["agentres_budget_bytes", ("/mine/agentres.slice",)] == 500 * MIB
    assert series(out)["agentres_budget_allocated_bytes", ("/mine/agentres.slice",)] == 0


# For real, on a free port.


@pytest.fixture
def listening(
    environment: dict[str, str],
) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], str]]]:
    started: list[subprocess.Popen[str]] = []

    def listen(where: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, "metrics", "--listen", where],
            env=environment,
            text=True,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        match = re.fullmatch(r"agentres: metrics at (http://\S+)\n", line)
        assert match, line
        return process, match[1]

    yield listen
    for process in started:
        process.kill()
        process.communicate()


def get(url: str, **headers: str) -> tuple[str, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_scrapes_are_answered_until_sigterm(
    listening: Callable[[str], tuple[subprocess.Popen[str], str]],
) -> None:
    process, url = listening("0")
    assert url.startswith("http://127.0.0.1:")
    kind, text = get(url)
    assert kind.startswith("text/plain")
    assert series(text)["agentres_agents", ()] == 0
    kind, text = get(url, Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    list(parse_openmetrics(text))
    _, text = get(f"{url}?name[]=agentres_agents")
    assert series(text) == {("agentres_agents", ()): 0}
    # Who connects and goes, or says nothing, is in nobody's way.
    host, port = url.removeprefix("http://").removesuffix("/metrics").split(":")
    with socket.create_connection((host, int(port))) as silent:
        get(url)
        silent.sendall(b"GET / HTTP/1.0\r\n")
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "")


def test_ctrl_c_ends_it_with_130_and_ipv6_is_in_brackets(
    listening: Callable[[str], tuple[subprocess.Popen[str], str]],
) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        where = "127.0.0.1"
    else:
        where = "[::1]"
    process, url = listening(f"{where}:0")
    assert url.startswith(f"http://{where}:")
    get(url)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert (process.returncode, rest) == (130, "")
