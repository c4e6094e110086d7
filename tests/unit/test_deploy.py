"""What deploy/ has for Grafana and Prometheus: it is of metrics that there are, and a real Prometheus takes it."""

from __future__ import annotations

import http
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute, netns

from agentres.readers.metrics import TABLE

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/agentres.rules.yml"
RULES_TEST = ROOT / "deploy/prometheus/agentres.rules.test.yml"
DASHBOARD = json.loads((ROOT / "deploy/grafana/agentres.json").read_text())
EXPORTER = Path(__file__).with_name("recorded_metrics.py")

KNOWN = {metric.name: set(metric.labels) for metric in TABLE}
_BY_SCRAPE = {"instance", "job"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool here: apt-get install prometheus"
)


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def filters() -> list[str]:
    """What the dashboard's variables ask for."""
    return [
        variable["query"]["query"]
        for variable in DASHBOARD["templating"]["list"]
        if variable["type"] == "query"
    ]


def filled(expression: str) -> str:
    """As Grafana fills it in for all hosts and agents."""
    for variable, value in {"$instance": ".*", "$agent": ".*", "$__rate_interval": "10s"}.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


def names(expression: str) -> set[str]:
    """The metrics in it."""
    return set(re.findall(r"\bagentres_[a-z0-9_]+", expression))


def rules() -> str:
    return RULES.read_text()


@pytest.mark.parametrize("text", [*map(filled, [*expressions(), *filters()]), rules()])
def test_metrics_are_those_of_the_exporter(text: str) -> None:
    assert names(text) <= KNOWN.keys()
    for name, selector in re.findall(r"\b(agentres_[a-z0-9_]+)\{([^}]*)\}", text):
        labels = set(re.findall(r"(\w+)\s*[=!]~?", selector))
        assert labels <= KNOWN[name] | _BY_SCRAPE, name


def test_the_dashboard_filters_by_labels_that_there_are() -> None:
    asked = [re.fullmatch(r"label_values\((\w+)(\{.*\})?, (\w+)\)", query) for query in filters()]
    assert [query and query[3] for query in asked] == ["instance", "agent"]
    for query in asked:
        assert query is not None
        assert query[3] in KNOWN[query[1]] | _BY_SCRAPE


def test_the_dashboard_shows_what_matters() -> None:
    shown = set().union(*map(names, map(filled, expressions())))
    for name in (
        "agentres_budget_allocated_bytes", "agentres_agent_state", "agentres_memory_limit_bytes",
        "agentres_cpu_throttled_periods_total", "agentres_pressure_seconds_total", "agentres_alerts",
        "agentres_oom_kills_total", "agentres_scaling_actions_total", "agentres_open_files",
    ):  # fmt: skip
        assert name in shown


def test_panels_have_their_own_ids_places_and_words() -> None:
    every = DASHBOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    taken: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert DASHBOARD["uid"] == "agentres"
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {
        "datasource", "instance", "agent",
    }  # fmt: skip


def alert_names() -> list[str]:
    return re.findall(r"- alert: (\w+)", rules())


def test_each_alert_is_tested_and_told_what_to_do() -> None:
    tests, docs = RULES_TEST.read_text(), (ROOT / "docs/metrics.md").read_text()
    assert len(alert_names()) == 11
    for name in alert_names():
        assert len(re.findall(rf"alertname: {name}\b", tests)) >= 2, name  # due, and not due
        assert f"| `{name}` |" in docs, name


@needs_promtool
@pytest.mark.parametrize("words", [("check", "rules", RULES), ("test", "rules", RULES_TEST)])
def test_promtool_agrees(words: tuple[str, str, Path]) -> None:
    done = subprocess.run(
        ["promtool", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=RULES.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


# An hour and a half of two hosts, one of which was not scraped before: what its history has is old.
KILLS = """
rule_files: []
tests:
  - interval: 1m
    input_series:
      - {series: 'agentres_alerts_raised_total{instance="a", agent="gone", resource="oom_kill", severity="CRITICAL"}', values: '_x70 1x60'}
      - {series: 'agentres_alerts_raised_total{instance="a", agent="again", resource="oom_kill", severity="CRITICAL"}', values: '1x70 2x60'}
      - {series: 'agentres_alerts_raised_total{instance="a", agent="calm", resource="oom_kill", severity="CRITICAL"}', values: '5x130'}
      - {series: 'agentres_oom_kills_total{instance="a", agent="alive", cgroup="/a"}', values: '0x70 1x60'}
      - {series: 'agentres_alerts_raised_total{instance="a", agent="alive", resource="oom_kill", severity="CRITICAL"}', values: '_x70 1x60'}
      - {series: 'agentres_history_readable{instance="a"}', values: '1x130'}
      - {series: 'agentres_alerts_raised_total{instance="b", agent="old", resource="oom_kill", severity="CRITICAL"}', values: '_x70 4x60'}
      - {series: 'agentres_history_readable{instance="b"}', values: '_x70 1x60'}
    promql_expr_test:
      - {expr: EXPR, eval_time: 65m, exp_samples: [{value: 0}]}
      - {expr: EXPR, eval_time: 90m, exp_samples: [{value: 3}]}
"""


@needs_promtool
def test_kills_that_no_scrape_saw_are_on_the_dashboard(tmp_path: Path) -> None:
    (panel,) = (panel for panel in panels() if panel["title"].startswith("Killed for memory"))
    expression = filled(panel["targets"][0]["expr"]).replace("'", "''")
    # Rounded: increase() reckons on to the ends of its hour.
    (tmp_path / "test.yml").write_text(KILLS.replace("EXPR", f"'round({expression})'"))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_example_is_a_configuration() -> None:
    done = subprocess.run(
        ["promtool", "check", "config", str(RULES.parent / "prometheus.yml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# A real one, with two hosts in network namespaces of their own.

PORT, API = 9105, 9090


def net(index: int, side: int) -> str:
    return f"10.88.{index}.{side}"


class Hosts:
    """Namespaces a and b of two hosts, and one of Prometheus', joined to both."""

    def __init__(self) -> None:
        tag = f"agentres-test-{os.getpid()}"
        self.here, self.hosts = f"{tag}-p", [f"{tag}-a", f"{tag}-b"]

    def make(self) -> None:
        for name in (self.here, *self.hosts):
            netns.create(name)
        for index, name in enumerate(self.hosts, 1):
            with IPRoute() as links:
                ours, its = f"arp{os.getpid() % 10_000}{index}", f"arq{os.getpid() % 10_000}{index}"
                links.link("add", ifname=ours, peer=its, kind="veth")
                for interface, where in ((ours, self.here), (its, name)):
                    (number,) = links.link_lookup(ifname=interface)
                    links.link("set", index=number, net_ns_fd=where)
            for where, interface, side in ((self.here, ours, 1), (name, its, 2)):
                with IPRoute(netns=where) as inside:
                    for up in ("lo", interface):
                        (number,) = inside.link_lookup(ifname=up)
                        inside.link("set", index=number, state="up")
                    inside.addr("add", index=number, address=net(index, side), prefixlen=24)

    def remove(self) -> None:
        for name in (self.here, *self.hosts):
            if name in netns.listnetns():
                netns.remove(name)

    def start(self, where: str, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{where}", "--", *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, "PYTHONPATH": str(EXPORTER.parent)},
            )  # fmt: skip

    def ask(self, path: str, **query: str) -> Any:
        """Prometheus' answer (its HTTP API, v1)."""
        url = f"http://127.0.0.1:{API}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        netns.pushns(self.here)
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:  # it is not ready yet
                    raise
                pytest.fail(f"{query}: {error.read().decode()}")
        finally:
            netns.popns()


def wait_until(done: Callable[[], object], what: Callable[[], str], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if done():
                return
        except OSError:  # it does not answer yet
            pass
        if time.monotonic() > deadline:
            pytest.fail(what())
        time.sleep(0.2)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made, running = Hosts(), []
    try:
        made.make()
        for index, name in enumerate(made.hosts, 1):
            folder = tmp_path / f"host{index}"
            folder.mkdir()
            command = [sys.executable, str(EXPORTER), str(folder), net(index, 2), str(PORT)]
            running.append(made.start(name, command, tmp_path / f"host{index}.log"))
        shutil.copy(RULES, tmp_path)
        # The rules' own times are minutes: here they are due at once.
        quick = re.sub(r"(?m)^\s+for: \w+\n", "", rules())
        (tmp_path / RULES.name).write_text(quick)
        targets = ", ".join(f"'{net(index, 2)}:{PORT}'" for index in (1, 2))
        (tmp_path / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: [{RULES.name}]\n"
            f"scrape_configs: [{{job_name: agentres, static_configs: [{{targets: [{targets}]}}]}}]\n"
        )
        command = [
            "prometheus", f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/tsdb", f"--web.listen-address=127.0.0.1:{API}",
        ]  # fmt: skip
        running.append(made.start(made.here, command, tmp_path / "prometheus.log"))
        yield made
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(timeout=30)
        made.remove()


@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus here: apt-get install prometheus"
)
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are root's to make")
def test_a_prometheus_scrapes_two_hosts_and_has_something_for_each_panel(
    hosts: Hosts, tmp_path: Path
) -> None:
    def logs() -> str:
        return "\n".join(log.read_text()[-1500:] for log in tmp_path.glob("*.log"))

    def scraped() -> bool:
        found = hosts.ask("query", query="count(agentres_cpu_seconds_total) by (instance)")[
            "result"
        ]
        return len(found) == 2

    wait_until(scraped, logs)
    instances = {f"{net(index, 2)}:{PORT}" for index in (1, 2)}

    def rated() -> bool:
        rate = "rate(agentres_cpu_seconds_total[10s])"
        return {
            r["metric"]["instance"] for r in hosts.ask("query", query=rate)["result"]
        } == instances

    wait_until(rated, logs)
    nothing = []
    for expression in map(filled, expressions()):
        found = hosts.ask("query", query=expression)["result"]
        of = {row["metric"]["instance"] for row in found if "instance" in row["metric"]}
        if not found or (of and of != instances):
            nothing.append(expression)
    assert nothing == []

    def firing() -> set[tuple[str, str]]:
        alerts = hosts.ask("alerts")["alerts"]
        return {
            (a["labels"]["alertname"], a["labels"].get("agent", ""))
            for a in alerts
            if a["state"] == "firing"
        }

    wait_until(lambda: ("AgentMemoryNearLimit", "full") in firing(), logs)
    assert ("AgentMemoryNearLimit", "fixer") not in firing()
    wait_until(lambda: ("AgentFrozen", "crawler") in firing(), logs)
    wait_until(lambda: ("AgentAlertOpen", "trainer") in firing(), logs)
    assert not any(name == "AgentresDown" for name, _ in firing())
