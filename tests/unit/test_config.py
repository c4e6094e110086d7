"""Configuration: what a file comes to, of alerts and handlers, of limits and how they move, of an agent."""

from __future__ import annotations

import marshal
import math
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from configured import CRITICAL, WARNING, Write, handler, host, rules_of

from agentres.config import ConfigError, dump, elastic, load
from agentres.model.errors import UsageError
from agentres.model.limits import LIMIT_SPECS, Host
from agentres.policy.alerts import DEFAULT_RULES, Rule, Severity
from agentres.policy.ceilings import Ceiling
from agentres.policy.prediction import PredictionSettings
from agentres.policy.scaling import AGGRESSIVE, BALANCED, FROZEN, PHILOSOPHIES
from agentres.policy.settings import TERMINAL, Handler, Settings, from_plain, to_plain

# Alerts and handlers.


def test_without_a_file_it_is_what_is_built_in() -> None:
    assert load([]) == Settings()


def test_an_empty_file_changes_nothing(write_config: Write) -> None:
    assert load([write_config("")]) == load(["/dev/null"]) == Settings()


@pytest.mark.parametrize("name", dict.fromkeys(rule.name for rule in DEFAULT_RULES))
def test_a_built_in_rule_changes_only_in_the_keys_given(write_config: Write, name: str) -> None:
    settings = load([write_config(f'[alerts.{name}]\nkeep_firing_for = "7s"')])
    before, after = rules_of(Settings(), name), rules_of(settings, name)
    assert [rule.keep_firing_for for rule in after] == [7] * len(before)
    same = [field for field in Rule.__match_args__ if field != "keep_firing_for"]
    for old, new in zip(before, after, strict=True):
        assert [getattr(new, field) for field in same] == [getattr(old, field) for field in same]
    others = [rule for rule in settings.rules if rule.name != name]
    assert others == [rule for rule in DEFAULT_RULES if rule.name != name]


@pytest.mark.parametrize("name", dict.fromkeys(rule.name for rule in DEFAULT_RULES))
def test_a_built_in_rule_can_be_removed(write_config: Write, name: str) -> None:
    settings = load([write_config(f"alerts.{name}.enabled = false")])
    assert list(settings.rules) == [rule for rule in DEFAULT_RULES if rule.name != name]
    assert load([write_config(dump(settings))]) == settings


def test_of_says_which_subjects_of_a_built_in_rule_are_left(write_config: Write) -> None:
    settings = load([write_config('alerts.cpu.of = ["slice", "agent"]\nalerts.memory.of = "host"')])
    assert [rule.of for rule in rules_of(settings, "cpu")] == ["agent", "slice"]
    assert [rule.of for rule in rules_of(settings, "memory")] == ["host"]


@pytest.mark.parametrize(
    ("resource", "text", "relative", "threshold"),
    [
        ("memory", '"75%"', True, 0.75),
        ("memory", '"100 %"', True, 1),
        ("memory", '"12.5%"', True, 0.125),
        ("memory", '"300MiB"', False, 300 * 2**20),
        ("memory", '"300MB"', False, 300e6),
        ("memory", "4096", False, 4096),
        ("swap", '"1G"', False, 2**30),
        ("disk", '"100MB/s"', False, 100e6),
        ("disk_write", '"50M"', False, 50 * 2**20),
        ("disk_read", "5e6", False, 5e6),
        ("network", '"1GB/s"', False, 1e9),
        ("cpu", "1.5", False, 1.5),
        ("cpu", '"1.5"', False, 1.5),
        ("cpu", '"90%"', True, 0.9),
        ("pids", '"90%"', True, 0.9),
        ("pids", "500", False, 500),
        ("fds", '"10k"', False, 10000),
        ("load", "4.5", False, 4.5),
        ("load", '"90%"', True, 0.9),
        ("cpu_pressure", '"20%"', False, 0.2),
        ("io_pressure", "0.2", False, 0.2),
    ],
)
def test_thresholds_are_of_the_limit_or_in_the_resources_unit(
    write_config: Write, resource: str, text: str, relative: bool, threshold: float
) -> None:
    settings = load([write_config(f'[alerts.mine]\nresource = "{resource}"\nwarning = {text}')])
    (rule,) = rules_of(settings, "mine")
    assert (rule.relative, rule.levels) == (relative, ((WARNING, threshold),))


def test_a_new_rule_has_the_defaults_of_a_rule(write_config: Write) -> None:
    text = 'resource = "swap"\ncritical = "2G"\ninfo = "1G"'
    settings = load([write_config(f"[alerts.mine]\n{text}")])
    levels = ((Severity.INFO, 2.0**30), (CRITICAL, 2.0**31))
    assert settings.rules == (*DEFAULT_RULES, Rule("mine", "swap", "agent", levels))


def test_a_new_rule_of_what_only_the_host_has_is_the_hosts(write_config: Write) -> None:
    settings = load([write_config('[alerts.mine]\nresource = "load"\nwarning = "90%"')])
    assert [rule.of for rule in rules_of(settings, "mine")] == ["host"]


def test_a_new_rule_of_an_event_is_like_those_built_in(write_config: Write) -> None:
    text = 'resource = "oom_kill"\nof = "slice"\nseverity = "CRITICAL"'
    (rule,) = rules_of(load([write_config(f"[alerts.mine]\n{text}")]), "mine")
    (built_in,) = rules_of(Settings(), "oom_kill")
    assert list(rule.levels) == [(CRITICAL, 1)]
    for field in ("duration", "hysteresis", "cooldown", "keep_firing_for", "relative"):
        assert getattr(rule, field) == getattr(built_in, field)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [('"1h30m"', 5400), ('"500ms"', 0.5), ("90", 90), ("0.5", 0.5), ('"0s"', 0)],
)
def test_durations_are_text_or_seconds(write_config: Write, text: str, seconds: float) -> None:
    settings = load([write_config(f"alerts.cpu.duration = {text}")])
    assert {rule.duration for rule in rules_of(settings, "cpu")} == {seconds}


HANDLERS = [
    ('type = "journal"', Handler("x", "journal")),
    (
        'type = "journal"\nseverity = "INFO"\ntimeout = "30s"\nqueue = 5',
        Handler("x", "journal", Severity.INFO, 30.0, 5),
    ),
    (
        'type = "command"\ncommand = ["/bin/sh", "-c", "cat"]',
        Handler("x", "command", options={"argv": ["/bin/sh", "-c", "cat"]}),
    ),
    ('type = "command"\ncommand = ["sh"]', Handler("x", "command", options={"argv": ["sh"]})),
    (
        'type = "python"\ncallable = "json.decoder:JSONDecoder.decode"',
        Handler("x", "python", options={"callable": "json.decoder:JSONDecoder.decode"}),
    ),
    (
        'type = "webhook"\nurl = "http://[::1]:8080/x?y=1"',
        Handler(
            "x",
            "webhook",
            options={
                "url": "http://[::1]:8080/x?y=1",
                "format": "agentres",
                "retries": 3,
                "headers": {},
            },
        ),
    ),
    (
        """
            type = "webhook"
            url = "https://127.0.0.1"
            format = "alertmanager"
            retries = 0
            headers = { Authorization = "Bearer x" }
        """,
        Handler(
            "x",
            "webhook",
            options={
                "url": "https://127.0.0.1",
                "format": "alertmanager",
                "retries": 0,
                "headers": {"Authorization": "Bearer x"},
            },
        ),
    ),
]


@pytest.mark.parametrize(("text", "expected"), HANDLERS)
def test_handlers(write_config: Write, text: str, expected: Handler) -> None:
    settings = load([write_config(f"[handlers.x]\n{text}")])
    assert settings.handlers == (TERMINAL, expected)
    assert from_plain(marshal.loads(marshal.dumps(to_plain(settings)))) == settings
    assert load([write_config(dump(settings))]) == settings


def test_the_terminal_can_be_changed_and_removed(write_config: Write) -> None:
    settings = load([write_config('handlers.terminal.severity = "CRITICAL"')])
    assert settings.handlers == (Handler("terminal", "terminal", CRITICAL),)
    settings = load([write_config("handlers.terminal.enabled = false")])
    assert settings.handlers == ()
    assert load([write_config(dump(settings))]) == settings


def test_what_a_disabled_handler_needs_need_not_be_there(write_config: Write) -> None:
    text = '[handlers.x]\nenabled = false\ntype = "command"\ncommand = ["/nowhere"]'
    assert load([write_config(text)]) == Settings()


def test_an_entry_point_becomes_the_callable_that_it_names(
    write_config: Write, entry_points: list[EntryPoint]
) -> None:
    entry_points.append(EntryPoint("mine", "json:dumps", "agentres.alert_handlers"))
    settings = load([write_config('[handlers.x]\ntype = "python"\nentry_point = "mine"')])
    assert handler(settings, "x").options == {"callable": "json:dumps"}


# Limits and how they move.


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ('memory = "256M:2G"', {"memory": "256M:2G"}),
        ('memory = "50%"', {"memory": "50%"}),
        ("memory = 1073741824", {"memory": "1073741824"}),
        ("memory = 1e9", {"memory": "1000000000"}),
        ("cpu = 1.5", {"cpu": "1.5"}),
        ('cpu = "0.5:max"', {"cpu": "0.5:max"}),
        ('swap = "max"\nnofile = 10', {"swap": "max", "nofile": "10"}),
        ("pids = 64", {"pids": "64"}),
        ('io_read = "10M:100M"', {"io_read": ["10M:100M"]}),
        ('io_write = ["5M", "/dev/v:a=1M:2M"]', {"io_write": ["5M", "/dev/v:a=1M:2M"]}),
        ("io_read_iops = 100", {"io_read_iops": ["100"]}),
        ('io_write_iops = [100, "/a=5:7"]', {"io_write_iops": ["100", "/a=5:7"]}),
        ("io_write = []", {"io_write": []}),
    ],
)
def test_limits_are_texts_as_options_have_them(
    write_config: Write, text: str, limits: dict[str, Any]
) -> None:
    settings = load([write_config(f"[limits]\n{text}")], host)
    assert settings.limits == limits
    assert from_plain(marshal.loads(marshal.dumps(to_plain(settings)))) == settings
    assert load([write_config(dump(settings))], host) == settings


def test_the_host_is_read_only_where_limits_are_given(write_config: Write) -> None:
    def unreadable() -> Host:
        raise AssertionError("the host was read")

    assert load([write_config('scaling.philosophy = "frozen"')], unreadable).limits == {}


def test_limits_can_be_all_that_options_can_be() -> None:
    assert list(elastic.LimitsSection.model_fields) == list(LIMIT_SPECS)


def test_scaling_budget_and_prediction(write_config: Write) -> None:
    text = """
        [scaling]
        philosophy = "frozen"
        predict = false
        [budget]
        share = "65.5%"
        [prediction]
        half_life = "3d"
        percentile = 0.95
        margin = "20%"
    """
    settings = load([write_config(text)])
    assert (settings.philosophy, settings.chosen(None)) == ("frozen", FROZEN)
    assert (settings.predict, settings.predictor, settings.budget_share) == (False, "", 0.655)
    assert settings.prediction == PredictionSettings(3 * 86400, 0.95, 0.2)
    assert from_plain(marshal.loads(marshal.dumps(to_plain(settings)))) == settings
    assert load([write_config(dump(settings))]) == settings


def test_ceilings_are_laid_over_one_another_key_by_key(write_config: Write) -> None:
    below = write_config(
        '[ceilings.all]\nagents = 3\npriority = "high"\n[ceilings.x]\nusers = ["a"]\nmemory = "1G"'
    )
    above = write_config('[ceilings.x]\ngroups = "b"\nmemory = "2G"\ncpu = 1.5', "above.toml")
    settings = load([below, above], host)
    both = Ceiling("x", ("a",), ("b",), limits={"cpu": "1.5", "memory": "2G"})
    assert settings.ceilings == (Ceiling("all", agents=3, priority=400), both)
    assert load([write_config(dump(settings))], host) == settings
    assert from_plain(to_plain(settings)) == settings


def test_a_predictor_is_an_entry_point_that_is_there(
    write_config: Write, entry_points: list[EntryPoint]
) -> None:
    path = write_config('scaling.predictor = "mine"')
    with pytest.raises(ConfigError) as refused:
        load([path])
    words = "expected an entry point of agentres.predictors, and there is none"
    assert str(refused.value) == f'{path}: scaling.predictor = "mine": {words}'
    entry_points.append(EntryPoint("mine", "my_package:predict", "agentres.predictors"))
    settings = load([path])
    assert settings.predictor == "mine"
    assert load([write_config(dump(settings))]) == settings


def test_without_a_file_the_philosophies_are_those_built_in() -> None:
    settings = load([])
    assert settings.philosophies == PHILOSOPHIES
    assert settings.chosen(None) == BALANCED
    assert settings.chosen("aggressive") == AGGRESSIVE
    with pytest.raises(UsageError, match=r"^philosophy x: expected one of balanced, "):
        settings.chosen("x")


def test_a_built_in_philosophy_changes_only_in_the_keys_given(write_config: Write) -> None:
    settings = load([write_config('philosophies.aggressive.up = "90%"')])
    assert settings.philosophies == {**PHILOSOPHIES, "aggressive": AGGRESSIVE.but(up=0.9)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", BALANCED.but(name="x")),
        ("step = 2", BALANCED.but(name="x", step=2.0)),
        ('based_on = "aggressive"', AGGRESSIVE.but(name="x")),
        ('based_on = "aggressive"\nup = 0.9', AGGRESSIVE.but(name="x", up=0.9)),
        ('based_on = "frozen"', FROZEN.but(name="x")),
        ('give_back = "never"', BALANCED.but(name="x", give_back=math.inf)),
        ("give_back = inf", BALANCED.but(name="x", give_back=math.inf)),
        ('give_back = "1m"\ncooldown = 5', BALANCED.but(name="x", give_back=60.0, cooldown=5.0)),
        ("burst = false\npatience = 1", BALANCED.but(name="x", burst=False, patience=1.0)),
        ('down = "0%"\nmargin = "0%"', BALANCED.but(name="x", down=0.0, margin=0.0)),
    ],
)
def test_a_new_philosophy_has_the_rest_from_another(
    write_config: Write, text: str, expected: object
) -> None:
    settings = load([write_config(f"[philosophies.x]\n{text}")])
    assert settings.philosophies == {**PHILOSOPHIES, "x": expected}
    assert from_plain(marshal.loads(marshal.dumps(to_plain(settings)))) == settings
    assert load([write_config(dump(settings))]) == settings


def test_philosophies_are_based_on_what_is_in_effect_in_any_order(write_config: Write) -> None:
    text = """
        [philosophies.a]
        based_on = "b"
        step = 2
        [philosophies.b]
        up = "80%"
        [philosophies.balanced]
        cooldown = "2m"
    """
    found = load([write_config(text)]).philosophies
    assert found["b"] == BALANCED.but(name="b", up=0.8, cooldown=120.0)
    assert found["a"] == BALANCED.but(name="a", up=0.8, cooldown=120.0, step=2.0)


def test_a_built_in_philosophy_can_become_another(write_config: Write) -> None:
    settings = load([write_config('philosophies.balanced.based_on = "frozen"')])
    assert settings.chosen(None) == FROZEN.but(name="balanced")
    assert load([write_config(dump(settings))]) == settings
    settings = load([write_config('philosophies.balanced.based_on = "aggressive"')])
    assert settings.chosen(None) == AGGRESSIVE.but(name="balanced")


def test_a_long_line_of_philosophies_is_no_trouble(write_config: Write) -> None:
    links = [f'[philosophies.p{n}]\nbased_on = "p{n + 1}"' for n in range(3000)]
    settings = load([write_config("\n".join([*links, "[philosophies.p3000]\nstep = 2"]))])
    assert settings.philosophies["p0"] == BALANCED.but(name="p0", step=2.0)


# The agent of a file of its own.


AGENT = '[agent]\ncommand = ["true"]\n'


def test_an_agent_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("agentres.model.paths.AGENTS", str(tmp_path))
    path = tmp_path / "x.toml"
    path.write_text(
        AGENT + 'isolate = false\nuser = "dev"\ncwd = "/"\npriority = "high"\ntimeout = "90s"\n'
        'environment = { A = "b" }\n[limits]\nmemory = "64M"\n'
    )
    settings = load([str(path)])
    assert settings.agent is not None
    assert settings.agent.command == ("true",)
    assert settings.agent.environment == {"A": "b"}
    assert settings.agent.values == {
        "user": "dev", "isolate": "no", "cwd": "/", "priority": "high", "timeout": "90s",
    }  # fmt: skip
    assert settings.limits == {"memory": "64M"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[agent]\n", 'agent: expected a key "command", a list of text'),
        ('[agent]\ncommand = "true"\n', 'agent.command = "true": expected a list'),
        ("[agent]\ncommand = []\n", 'agent: expected a key "command"'),
        (AGENT + 'priority = "urgent"\n', 'agent.priority = "urgent": expected low, normal, high'),
        (AGENT + 'restart = "sometimes"\n', 'agent.restart = "sometimes": expected'),
        (AGENT + 'restart_delay = "1m"\nrestart_delay_max = "1s"\n', "agent.restart_delay_max"),
        (AGENT + 'timeout = "soon"\n', 'agent.timeout = "soon": expected'),
        (AGENT + 'isolate = "yes"\n', 'agent.isolate = "yes": expected true or false'),
        (AGENT + 'environment = { "A=B" = "c" }\n', "agent.environment"),
        (AGENT + 'comand = ["true"]\n', 'agent.comand = ["true"]: expected a key of agent'),
    ],
)
def test_an_agent_that_makes_no_sense_is_refused(
    text: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("agentres.model.paths.AGENTS", str(tmp_path))
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load([str(path)])
    assert str(caught.value).startswith(f"{path}: {words}")


def test_no_agent_is_described_elsewhere(write_config: Write) -> None:
    with pytest.raises(
        ConfigError, match=r"agent: expected in a file of /etc/agentres/agents\.d only"
    ):
        load([write_config(AGENT)])
