"""Configuration files: what they come to, what is refused and in which words, and which are read."""

from __future__ import annotations

import marshal
import math
import os
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from command_line import agentres
from hypothesis import given
from hypothesis import strategies as st

from agentres.config import ConfigError, dump, elastic, files, load, schema, sections, values
from agentres.model.errors import UsageError
from agentres.model.limits import WRITTEN, Host
from agentres.model.paths import configuration
from agentres.policy.alerts import DEFAULT_RULES, Rule, Severity
from agentres.policy.ceilings import Ceiling
from agentres.policy.prediction import PredictionSettings
from agentres.policy.resources import EVENT, RESOURCES
from agentres.policy.scaling import AGGRESSIVE, BALANCED, FROZEN, PHILOSOPHIES
from agentres.policy.settings import TERMINAL, Handler, Settings, from_plain, to_plain

Write = Callable[..., str]
DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"
WARNING, CRITICAL = Severity.WARNING, Severity.CRITICAL
HOST = Host(cpus=4, memory=8 * 2**30)


def host() -> Host:
    return HOST


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "agentres.toml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def rules_of(settings: Settings, name: str) -> list[Rule]:
    return [rule for rule in settings.rules if rule.name == name]


def handler(settings: Settings, name: str) -> Handler:
    (found,) = [handler for handler in settings.handlers if handler.name == name]
    return found


# What files come to.


def test_without_a_file_it_is_what_is_built_in() -> None:
    assert load([]) == Settings()


def test_an_empty_file_changes_nothing(write: Write) -> None:
    assert load([write("")]) == load(["/dev/null"]) == Settings()


@pytest.mark.parametrize("name", dict.fromkeys(rule.name for rule in DEFAULT_RULES))
def test_a_built_in_rule_changes_only_in_the_keys_given(write: Write, name: str) -> None:
    settings = load([write(f'[alerts.{name}]\nkeep_firing_for = "7s"')])
    before, after = rules_of(Settings(), name), rules_of(settings, name)
    assert [rule.keep_firing_for for rule in after] == [7] * len(before)
    same = [field for field in Rule.__match_args__ if field != "keep_firing_for"]
    for old, new in zip(before, after, strict=True):
        assert [getattr(new, field) for field in same] == [getattr(old, field) for field in same]
    others = [rule for rule in settings.rules if rule.name != name]
    assert others == [rule for rule in DEFAULT_RULES if rule.name != name]


@pytest.mark.parametrize("name", dict.fromkeys(rule.name for rule in DEFAULT_RULES))
def test_a_built_in_rule_can_be_removed(write: Write, name: str) -> None:
    settings = load([write(f"alerts.{name}.enabled = false")])
    assert list(settings.rules) == [rule for rule in DEFAULT_RULES if rule.name != name]
    assert load([write(dump(settings))]) == settings


def test_of_says_which_subjects_of_a_built_in_rule_are_left(write: Write) -> None:
    settings = load([write('alerts.cpu.of = ["slice", "agent"]\nalerts.memory.of = "host"')])
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
    write: Write, resource: str, text: str, relative: bool, threshold: float
) -> None:
    settings = load([write(f'[alerts.mine]\nresource = "{resource}"\nwarning = {text}')])
    (rule,) = rules_of(settings, "mine")
    assert (rule.relative, rule.levels) == (relative, ((WARNING, threshold),))


def test_a_new_rule_has_the_defaults_of_a_rule(write: Write) -> None:
    text = 'resource = "swap"\ncritical = "2G"\ninfo = "1G"'
    settings = load([write(f"[alerts.mine]\n{text}")])
    levels = ((Severity.INFO, 2.0**30), (CRITICAL, 2.0**31))
    assert settings.rules == (*DEFAULT_RULES, Rule("mine", "swap", "agent", levels))


def test_a_new_rule_of_what_only_the_host_has_is_the_hosts(write: Write) -> None:
    settings = load([write('[alerts.mine]\nresource = "load"\nwarning = "90%"')])
    assert [rule.of for rule in rules_of(settings, "mine")] == ["host"]


def test_a_new_rule_of_an_event_is_like_those_built_in(write: Write) -> None:
    text = 'resource = "oom_kill"\nof = "slice"\nseverity = "CRITICAL"'
    (rule,) = rules_of(load([write(f"[alerts.mine]\n{text}")]), "mine")
    (built_in,) = rules_of(Settings(), "oom_kill")
    assert list(rule.levels) == [(CRITICAL, 1)]
    for field in ("duration", "hysteresis", "cooldown", "keep_firing_for", "relative"):
        assert getattr(rule, field) == getattr(built_in, field)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [('"1h30m"', 5400), ('"500ms"', 0.5), ("90", 90), ("0.5", 0.5), ('"0s"', 0)],
)
def test_durations_are_text_or_seconds(write: Write, text: str, seconds: float) -> None:
    settings = load([write(f"alerts.cpu.duration = {text}")])
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
def test_handlers(write: Write, text: str, expected: Handler) -> None:
    settings = load([write(f"[handlers.x]\n{text}")])
    assert settings.handlers == (TERMINAL, expected)
    assert from_plain(marshal.loads(marshal.dumps(to_plain(settings)))) == settings
    assert load([write(dump(settings))]) == settings


def test_the_terminal_can_be_changed_and_removed(write: Write) -> None:
    settings = load([write('handlers.terminal.severity = "CRITICAL"')])
    assert settings.handlers == (Handler("terminal", "terminal", CRITICAL),)
    settings = load([write("handlers.terminal.enabled = false")])
    assert settings.handlers == ()
    assert load([write(dump(settings))]) == settings


def test_what_a_disabled_handler_needs_need_not_be_there(write: Write) -> None:
    text = '[handlers.x]\nenabled = false\ntype = "command"\ncommand = ["/nowhere"]'
    assert load([write(text)]) == Settings()


def test_an_entry_point_becomes_the_callable_that_it_names(
    write: Write, entry_points: list[EntryPoint]
) -> None:
    entry_points.append(EntryPoint("mine", "json:dumps", "agentres.alert_handlers"))
    settings = load([write('[handlers.x]\ntype = "python"\nentry_point = "mine"')])
    assert handler(settings, "x").options == {"callable": "json:dumps"}


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    found: list[EntryPoint] = []
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found)
    return found


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
    write: Write, text: str, limits: dict[str, Any]
) -> None:
    settings = load([write(f"[limits]\n{text}")], host)
    assert settings.limits == limits
    assert from_plain(marshal.loads(marshal.dumps(to_plain(settings)))) == settings
    assert load([write(dump(settings))], host) == settings


def test_the_host_is_read_only_where_limits_are_given(write: Write) -> None:
    def unreadable() -> Host:
        raise AssertionError("the host was read")

    assert load([write('scaling.philosophy = "frozen"')], unreadable).limits == {}


def test_limits_can_be_all_that_options_can_be() -> None:
    assert list(elastic.Limits.model_fields) == list(WRITTEN)


def test_scaling_budget_and_prediction(write: Write) -> None:
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
    settings = load([write(text)])
    assert (settings.philosophy, settings.chosen(None)) == ("frozen", FROZEN)
    assert (settings.predict, settings.predictor, settings.budget_share) == (False, "", 0.655)
    assert settings.prediction == PredictionSettings(3 * 86400, 0.95, 0.2)
    assert from_plain(marshal.loads(marshal.dumps(to_plain(settings)))) == settings
    assert load([write(dump(settings))]) == settings


def test_ceilings_are_laid_over_one_another_key_by_key(write: Write) -> None:
    below = write('[ceilings.all]\nagents = 3\n[ceilings.x]\nusers = ["a"]\nmemory = "1G"')
    above = write('[ceilings.x]\ngroups = "b"\nmemory = "2G"\ncpu = 1.5', "above.toml")
    settings = load([below, above], host)
    both = Ceiling("x", ("a",), ("b",), None, {"cpu": "1.5", "memory": "2G"})
    assert settings.ceilings == (Ceiling("all", agents=3), both)
    assert load([write(dump(settings))], host) == settings
    assert from_plain(to_plain(settings)) == settings


def test_a_predictor_is_an_entry_point_that_is_there(
    write: Write, entry_points: list[EntryPoint]
) -> None:
    path = write('scaling.predictor = "mine"')
    with pytest.raises(ConfigError) as refused:
        load([path])
    words = "expected an entry point of agentres.predictors, and there is none"
    assert str(refused.value) == f'{path}: scaling.predictor = "mine": {words}'
    entry_points.append(EntryPoint("mine", "my_package:predict", "agentres.predictors"))
    settings = load([path])
    assert settings.predictor == "mine"
    assert load([write(dump(settings))]) == settings


def test_without_a_file_the_philosophies_are_those_built_in() -> None:
    settings = load([])
    assert settings.philosophies == PHILOSOPHIES
    assert settings.chosen(None) == BALANCED
    assert settings.chosen("aggressive") == AGGRESSIVE
    with pytest.raises(UsageError, match=r"^philosophy x: expected one of balanced, "):
        settings.chosen("x")


def test_a_built_in_philosophy_changes_only_in_the_keys_given(write: Write) -> None:
    settings = load([write('philosophies.aggressive.up = "90%"')])
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
    write: Write, text: str, expected: object
) -> None:
    settings = load([write(f"[philosophies.x]\n{text}")])
    assert settings.philosophies == {**PHILOSOPHIES, "x": expected}
    assert from_plain(marshal.loads(marshal.dumps(to_plain(settings)))) == settings
    assert load([write(dump(settings))]) == settings


def test_philosophies_are_based_on_what_is_in_effect_in_any_order(write: Write) -> None:
    text = """
        [philosophies.a]
        based_on = "b"
        step = 2
        [philosophies.b]
        up = "80%"
        [philosophies.balanced]
        cooldown = "2m"
    """
    found = load([write(text)]).philosophies
    assert found["b"] == BALANCED.but(name="b", up=0.8, cooldown=120.0)
    assert found["a"] == BALANCED.but(name="a", up=0.8, cooldown=120.0, step=2.0)


def test_a_built_in_philosophy_can_become_another(write: Write) -> None:
    settings = load([write('philosophies.balanced.based_on = "frozen"')])
    assert settings.chosen(None) == FROZEN.but(name="balanced")
    assert load([write(dump(settings))]) == settings
    settings = load([write('philosophies.balanced.based_on = "aggressive"')])
    assert settings.chosen(None) == AGGRESSIVE.but(name="balanced")


def test_a_long_line_of_philosophies_is_no_trouble(write: Write) -> None:
    links = [f'[philosophies.p{n}]\nbased_on = "p{n + 1}"' for n in range(3000)]
    settings = load([write("\n".join([*links, "[philosophies.p3000]\nstep = 2"]))])
    assert settings.philosophies["p0"] == BALANCED.but(name="p0", step=2.0)


# One file over another.


def test_a_philosophy_that_is_based_on_another_one_starts_anew(write: Write) -> None:
    one = write('[philosophies.x]\nbased_on = "aggressive"\nstep = 2', "one")
    same = load([one, write("philosophies.x.patience = 3", "two")]).philosophies["x"]
    assert same == AGGRESSIVE.but(name="x", step=2.0, patience=3.0)
    anew = load([one, write('philosophies.x.based_on = "balanced"', "two")]).philosophies["x"]
    assert anew == BALANCED.but(name="x")


def test_the_later_file_wins_key_by_key(write: Write) -> None:
    one = 'sampling.interval = "10s"\nalerts.cpu.warning = "50%"\nalerts.cpu.critical = "60%"'
    two = 'alerts.cpu.warning = "55%"\nhistory.enabled = false'
    settings = load([write(one, "one"), write(two, "two")])
    assert (settings.interval, settings.history) == (10, False)
    assert rules_of(settings, "cpu")[0].levels == ((WARNING, 0.55), (CRITICAL, 0.6))


def test_what_one_file_removes_the_next_can_bring_back(write: Write) -> None:
    one = write("alerts.cpu.enabled = false", "one")
    assert load([one, write("alerts.cpu.enabled = true", "two")]) == Settings()


def test_another_type_or_resource_starts_anew(write: Write) -> None:
    one = '[handlers.x]\ntype = "webhook"\nurl = "http://[::1]"\n[alerts.memory]\nwarning = "1%"'
    two = '[handlers.x]\ntype = "journal"\n[alerts.memory]\nresource = "swap"\nwarning = 5'
    settings = load([write(one, "one"), write(two, "two")])
    assert handler(settings, "x") == Handler("x", "journal")
    assert rules_of(settings, "memory") == [Rule("memory", "swap", "agent", ((WARNING, 5),))]


@pytest.mark.parametrize(
    ("one", "two", "line"),
    [
        (
            'alerts.cpu.critical = "60%"\nalerts.cpu.warning = "50%"',
            'alerts.cpu.warning = "70%"',
            'two: alerts.cpu.warning = "70%": expected less than critical = "60%"',
        ),
        (
            'alerts.cpu.warning = "70%"',
            'alerts.cpu.critical = "60%"',
            'two: alerts.cpu.critical = "60%": expected more than warning = "70%"',
        ),
        (
            'sampling = { interval = "1m", fastest = "30s" }',
            'sampling.interval = "5s"',
            'two: sampling.interval = "5s": expected at least fastest = "30s"',
        ),
        (
            'philosophies.x = { up = "60%", aim = "50%" }',
            'philosophies.x.aim = "65%"',
            'two: philosophies.x.aim = "65%": expected less than up = "60%"',
        ),
        (
            "philosophies.x.step = 2.9",
            'philosophies.x.down = "30%"',
            'two: philosophies.x.down = "30%": expected less than up divided by step = 2.9, which is 0.259',
        ),
        ("alerts.cpu.warning = 0", "", None),
    ],
)
def test_the_blame_is_on_the_file_that_came_last(
    write: Write, tmp_path: Path, one: str, two: str, line: str | None
) -> None:
    paths = [write(one, "one"), write(two, "two")]
    with pytest.raises(ConfigError) as refused:
        load(paths)
    said = str(refused.value).removeprefix(f"{tmp_path}/")
    assert said == line if line else said.startswith("one: alerts.cpu.warning = 0: ")


# What is refused.

OF_MEMORY = 'expected a size such as "300MiB" or percent of the limit such as "75%", above 0 and at most 100%'
OF_CPU = (
    'expected cores such as 1.5 or percent of the limit such as "75%", above 0 and at most 100%'
)
OF_PIDS = (
    'expected a number such as 500 or percent of the limit such as "75%", above 0 and at most 100%'
)
OF_FDS = "expected a number such as 500, above 0"
OF_SWAP = 'expected a size such as "300MiB", above 0'
OF_DISK = 'expected bytes a second such as "100MB/s", above 0'
OF_TIME = 'expected percent of the time such as "20%", more than 0% and at most 100%'
DURATION = 'expected a duration such as "30s", 0s to 30d'
SHARE = 'expected percent of the threshold such as "5%", less than 100%'
ANY_OF = 'expected one of "agent", "host", "slice", or a list of them, each once'
MIXED = "expected both in percent of the limit or neither, and there is"
SEVERITIES = '"INFO", "WARNING", "CRITICAL" or "EMERGENCY"'
TYPES = '"python", "command", "webhook", "journal" or "terminal"'
NAME = "expected a name of at most 64 letters, digits, _ and -"
TIMEOUT = 'expected a duration such as "30s", more than 0s and at most 5m'
QUEUE = "expected a whole number, 1 to 10000"
ARGV = 'expected a list of text such as ["/usr/bin/logger", "-t", "agentres"]'
URL = 'expected a URL such as "https://example.org/alerts", without user and spaces'
NOT_BUILT_IN = "nothing of this name being built in"
SECTIONS = 'expected a section: "sampling", "history", "limits", "scaling", "budget", "prediction", "philosophies", "ceilings", "alerts", "handlers" or "agent"'
FRACTION = 'expected percent such as "50%"'
LASTING = 'expected a duration such as "30s", 1s to 30d'
PHILOSOPHY = 'expected a philosophy: "balanced", "conservative", "aggressive" or "frozen"'
RANGE = "expected least:most such as 256M:2G"

REFUSED = [
    ('[ceilings.x]\nmemory = "1G:2G"', 'ceilings.x.memory = "1G:2G": expected one figure, which is the most that it may be'),
    ('[ceilings.x]\nmemory = "max"', 'ceilings.x.memory = "max": expected one figure, which is the most that it may be'),
    ('[ceilings.x]\nio_read = "/dev/vda=3M"', 'ceilings.x.io_read = "/dev/vda=3M": expected one figure, which is the most that it may be'),
    ('[ceilings.x]\nmemori = "1G"', 'ceilings.x.memori = "1G": expected a key, did you mean "memory"?'),
    ("[ceilings.x]\ncpu = 0", "ceilings.x.cpu = 0: must be above 0"),
    ("[ceilings.x]\nusers = 3", "ceilings.x.users = 3: expected a name, or a list of them"),
    ("[ceilings.x]\nagents = -1", "ceilings.x.agents = -1: expected a whole number, 0 to 1000"),
    ("ceilings.memory = 3", "ceilings.memory = 3: expected a section"),
    # Sections and keys.
    ("alert = 3", 'alert = 3: expected a section, did you mean "alerts"?'),
    ("[alrets.memory]", 'alrets: expected a section, did you mean "alerts"?'),
    ("[x]", f"x: {SECTIONS}"),
    ('["x\\ny"]', f'"x\\ny": {SECTIONS}'),
    ("alerts = 3", "alerts = 3: expected a section"),
    ("handlers = 3", "handlers = 3: expected a section"),
    ("alerts.memory = 3", "alerts.memory = 3: expected a section"),
    ("handlers.terminal = 3", "handlers.terminal = 3: expected a section"),
    ("sampling = []", "sampling = []: expected a section"),
    ("history = false", "history = false: expected a section"),
    ("sampling.intervall = 1", 'sampling.intervall = 1: expected a key of sampling, did you mean "interval"?'),
    ("history.x = 1", 'history.x = 1: expected a key of history: "enabled"'),
    ("alerts.memory.warnin = 3", 'alerts.memory.warnin = 3: expected a key, did you mean "warning"?'),
    ("alerts.memory.Warning = 3", 'alerts.memory.Warning = 3: expected a key, did you mean "warning"?'),
    ("handlers.terminal.url = 3", 'handlers.terminal.url = 3: expected a key: "type", "severity", "timeout", "queue" or "enabled"'),
    ('[handlers.x]\ntype = "webhook"\nulr = "y"', 'handlers.x.ulr = "y": expected a key, did you mean "url"?'),
    # Sampling, history.
    ('sampling.interval = "0.5s"', 'sampling.interval = "0.5s": expected a duration such as "30s", 1s to 1h'),
    ('sampling.interval = "61m"', 'sampling.interval = "61m": expected a duration such as "30s", 1s to 1h'),
    ("sampling.interval = true", 'sampling.interval = true: expected a duration such as "30s", 1s to 1h'),
    ("sampling.interval = nan", 'sampling.interval = nan: expected a duration such as "30s", 1s to 1h'),
    ('sampling.fastest = "9ms"', 'sampling.fastest = "9ms": expected a duration such as "30s", 10ms to 1h'),
    ('sampling.fastest = "6s"', 'sampling.fastest = "6s": expected at most interval = "5s"'),
    ("history.enabled = 1", "history.enabled = 1: expected true or false"),
    # Limits.
    ("limits = 3", "limits = 3: expected a section"),
    ("limits.memroy = 3", 'limits.memroy = 3: expected a key of limits, did you mean "memory"?'),
    ('limits.memory = "2G:1G"', f'limits.memory = "2G:1G": {RANGE}: its least, 2.0 GiB, is above its most, 1.0 GiB'),
    ('limits.memory = ":1G"', f'limits.memory = ":1G": {RANGE}'),
    ('limits.memory = "9G"', 'limits.memory = "9G": is above the host\'s 8.0 GiB'),
    ('limits.memory = "1G:9G"', 'limits.memory = "1G:9G": 9G: is above the host\'s 8.0 GiB'),
    ("limits.memory = 0", "limits.memory = 0: must be above 0"),
    ("limits.memory = true", 'limits.memory = true: expected a limit, or a range such as "256M:2G", as text'),
    ("limits.memory = nan", 'limits.memory = nan: expected a limit, or a range such as "256M:2G", as text'),
    ("limits.memory = []", 'limits.memory = []: expected a limit, or a range such as "256M:2G", as text'),
    ('limits.cpu = ""', 'limits.cpu = "": expected a limit, or a range such as "256M:2G", as text'),
    ("limits.cpu = 5", "limits.cpu = 5: is above the host's 4 cores"),
    ("limits.cpu = -1.5", "limits.cpu = -1.5: must not be negative; expected cores such as 1.5, or percent of one core such as 150%"),
    ('limits.swap = "0:1G"', 'limits.swap = "0:1G": expected one value: this limit does not move'),
    ("limits.pids = 1.5", "limits.pids = 1.5: expected a whole number such as 512"),
    ('limits.pids = "1\\n2"', 'limits.pids = "1\\n2": expected a whole number such as 512'),
    ('limits.io_read = "vda=5M"', 'limits.io_read = "vda=5M": a device is a path, as /dev/vda=50M'),
    ('limits.io_read = ["5M", "/a=0"]', 'limits.io_read = ["5M", "/a=0"]: /a=0: must be above 0'),
    ("limits.io_read = [[1]]", 'limits.io_read = [[1]]: expected a rate or a range such as "10M:100M" or "/dev/vda=50M", or a list of them'),
    # Scaling, budget, prediction.
    ('scaling.philosophy = "balancd"', 'scaling.philosophy = "balancd": expected a philosophy, did you mean "balanced"?'),
    ('scaling.philosophy = "x"', f'scaling.philosophy = "x": {PHILOSOPHY}'),
    ("scaling.philosophy = 3", "scaling.philosophy = 3: expected text"),
    ("scaling.predict = 1", "scaling.predict = 1: expected true or false"),
    ("scaling.predictor = 3", "scaling.predictor = 3: expected text"),
    ("scaling.x = 1", 'scaling.x = 1: expected a key of scaling: "philosophy", "predict" or "predictor"'),
    ('budget.share = "101%"', f'budget.share = "101%": {FRACTION}, 1% to 100%'),
    ("budget.share = 80", f"budget.share = 80: {FRACTION}, 1% to 100%"),
    ("budget.share = 0", f"budget.share = 0: {FRACTION}, 1% to 100%"),
    ('prediction.half_life = "-1s"', 'prediction.half_life = "-1s": expected a duration such as "30s", 1m to 365d'),
    ('prediction.percentile = "0%"', f'prediction.percentile = "0%": {FRACTION}, 1% to 100%'),
    ("prediction.margin = -0.1", f"prediction.margin = -0.1: {FRACTION}, 0% to 100%"),
    # Philosophies.
    ("philosophies = 3", "philosophies = 3: expected a section"),
    ("philosophies.x = 3", "philosophies.x = 3: expected a section"),
    ('[philosophies."a b"]', f'philosophies."a b": {NAME}'),
    ("philosophies.x.stpe = 3", 'philosophies.x.stpe = 3: expected a key, did you mean "step"?'),
    ("philosophies.x.moves = false", 'philosophies.x.moves = false: expected a key: "based_on", "up", "down", "step", "aim", "cooldown", "burst", "give_back", "patience" or "margin"'),
    ("philosophies.x.step = 1", "philosophies.x.step = 1: expected a factor such as 1.5, more than 1 and at most 10"),
    ("philosophies.x.step = 0.5", "philosophies.x.step = 0.5: expected a factor such as 1.5, more than 1 and at most 10"),
    ('philosophies.x.step = "1.5"', 'philosophies.x.step = "1.5": expected a factor such as 1.5, more than 1 and at most 10'),
    ("philosophies.x.step = 11", "philosophies.x.step = 11: expected a factor such as 1.5, more than 1 and at most 10"),
    ("philosophies.x.step = 3", "philosophies.x.step = 3: expected less than up / down, which is 3"),
    ("philosophies.x.patience = 0.5", "philosophies.x.patience = 0.5: expected a factor such as 1.5, 1 to 1000"),
    ('philosophies.x.up = "96%"', f'philosophies.x.up = "96%": {FRACTION}, 1% to 95%'),
    ('philosophies.x.up = "75"', f'philosophies.x.up = "75": {FRACTION}, 1% to 95%'),
    ('philosophies.x = { up = "60%", aim = "60%" }', 'philosophies.x.up = "60%": expected more than aim = "60%"'),
    ('philosophies.x = { aim = "30%", down = "30%" }', 'philosophies.x.aim = "30%": expected more than down = "30%"'),
    ('philosophies.x.aim = "80%"', 'philosophies.x.aim = "80%": expected less than up = "75%"'),
    ('philosophies.x.aim = "20%"', 'philosophies.x.aim = "20%": expected more than down = "25%"'),
    ('philosophies.x = { up = "50%", aim = "40%", down = "45%" }', 'philosophies.x.aim = "40%": expected more than down = "45%"'),
    ('philosophies.x = { step = 2, up = "75%", down = "40%" }', "philosophies.x.step = 2: expected less than up / down, which is 1.88"),
    ("philosophies.x.down = -0.1", f"philosophies.x.down = -0.1: {FRACTION}, 0% to 95%"),
    ('philosophies.x.margin = "-1%"', f'philosophies.x.margin = "-1%": {FRACTION}, 0% to 100%'),
    ('philosophies.x.cooldown = "-5s"', f'philosophies.x.cooldown = "-5s": {LASTING}'),
    ("philosophies.x.cooldown = 0", f"philosophies.x.cooldown = 0: {LASTING}"),
    ('philosophies.x.cooldown = "never"', f'philosophies.x.cooldown = "never": {LASTING}'),
    ("philosophies.x.give_back = -1", f'philosophies.x.give_back = -1: {LASTING}, or "never"'),
    ("philosophies.x.give_back = nan", f'philosophies.x.give_back = nan: {LASTING}, or "never"'),
    ("philosophies.x.burst = 1", "philosophies.x.burst = 1: expected true or false"),
    ('philosophies.x.based_on = "agressive"', 'philosophies.x.based_on = "agressive": expected a philosophy, did you mean "aggressive"?'),
    ('philosophies.x.based_on = "x"', 'philosophies.x.based_on = "x": expected a philosophy that is not based on this one'),
    ('philosophies.x.based_on = "y"\nphilosophies.y.based_on = "x"', 'philosophies.y.based_on = "x": expected a philosophy that is not based on this one'),
    ('philosophies.balanced.based_on = "z"\nphilosophies.z.step = 2', 'philosophies.z.based_on: expected a philosophy that is not based on this one'),
    ("philosophies.x.based_on = 3", "philosophies.x.based_on = 3: expected text"),
    ("philosophies.frozen.step = 2", "philosophies.frozen.step = 2: expected no key: frozen leaves every limit where it is"),
    ('philosophies.frozen.based_on = "balanced"', 'philosophies.frozen.based_on = "balanced": expected no key: frozen leaves every limit where it is'),
    ('philosophies.x = { based_on = "frozen", step = 2 }', "philosophies.x.step = 2: expected no key: frozen leaves every limit where it is"),
    # Thresholds.
    ('alerts.memory.warning = "175%"', f'alerts.memory.warning = "175%": {OF_MEMORY}'),
    ('alerts.memory.warning = "0%"', f'alerts.memory.warning = "0%": {OF_MEMORY}'),
    ('alerts.memory.warning = "-5%"', f'alerts.memory.warning = "-5%": {OF_MEMORY}'),
    ('alerts.memory.warning = "%"', f'alerts.memory.warning = "%": {OF_MEMORY}'),
    ('alerts.memory.warning = ""', f'alerts.memory.warning = "": {OF_MEMORY}'),
    ('alerts.memory.warning = "1 MB/s"', f'alerts.memory.warning = "1 MB/s": {OF_MEMORY}'),
    ("alerts.memory.warning = 0", f"alerts.memory.warning = 0: {OF_MEMORY}"),
    ("alerts.memory.warning = true", f"alerts.memory.warning = true: {OF_MEMORY}"),
    ("alerts.memory.warning = [1]", f"alerts.memory.warning = [1]: {OF_MEMORY}"),
    ("alerts.memory.warning = { a = 1 }", f"alerts.memory.warning: {OF_MEMORY}"),
    ("alerts.memory.warning = 2024-01-01", f"alerts.memory.warning = 2024-01-01: {OF_MEMORY}"),
    ("alerts.cpu.warning = inf", f"alerts.cpu.warning = inf: {OF_CPU}"),
    ("alerts.cpu.warning = nan", f"alerts.cpu.warning = nan: {OF_CPU}"),
    ('alerts.cpu.warning = "150%"', f'alerts.cpu.warning = "150%": {OF_CPU}'),
    ("alerts.cpu.warning = 0x" + "f" * 5000, f"alerts.cpu.warning = 0x{'f' * 77}…: {OF_CPU}"),
    ("alerts.fds.warning = -1", f"alerts.fds.warning = -1: {OF_FDS}"),
    ('alerts.fds.warning = "1.5"', f'alerts.fds.warning = "1.5": {OF_FDS}'),
    ('alerts.fds.warning = "75%"', f'alerts.fds.warning = "75%": {OF_FDS}: fds has no limit to be percent of'),
    ('alerts.disk.warning = "10%"', f'alerts.disk.warning = "10%": {OF_DISK}: disk has no limit to be percent of'),
    ('alerts.disk.warning = "fast"', f'alerts.disk.warning = "fast": {OF_DISK}'),
    ('[alerts.x]\nresource = "swap"\nwarning = "75%"', f'alerts.x.warning = "75%": {OF_SWAP}: swap has no limit to be percent of'),
    ('[alerts.x]\nresource = "pids"\nwarning = "many"', f'alerts.x.warning = "many": {OF_PIDS}'),
    ('[alerts.x]\nresource = "io_pressure"\nwarning = 20', f"alerts.x.warning = 20: {OF_TIME}"),
    ('[alerts.x]\nresource = "io_pressure"\nwarning = "20"', f'alerts.x.warning = "20": {OF_TIME}'),
    ('[alerts.x]\nresource = "cpu_pressure"\nwarning = "101%"', f'alerts.x.warning = "101%": {OF_TIME}'),
    # Levels together.
    ('alerts.memory.warning = "80%"', 'alerts.memory.warning = "80%": expected less than critical = "80%"'),
    ('alerts.memory.critical = "70%"', 'alerts.memory.critical = "70%": expected more than warning = "75%"'),
    ('alerts.memory.emergency = "80%"', 'alerts.memory.emergency = "80%": expected more than critical = "80%"'),
    ('alerts.memory.info = "75%"', 'alerts.memory.info = "75%": expected less than warning = "75%"'),
    ('alerts.memory.warning = "1G"', f'alerts.memory.warning = "1G": {MIXED} critical = "80%"'),
    ('alerts.memory.emergency = "1G"', f'alerts.memory.emergency = "1G": {MIXED} critical = "80%"'),
    ('alerts.memory = { warning = "2G", critical = "1G" }', 'alerts.memory.critical = "1G": expected more than warning = "2G"'),
    ("alerts.fds.critical = 1000", "alerts.fds.critical = 1000: expected more than warning = 1000"),
    # The rest of a rule.
    ('alerts.cpu.duration = "soon"', f'alerts.cpu.duration = "soon": {DURATION}'),
    ("alerts.cpu.duration = -1", f"alerts.cpu.duration = -1: {DURATION}"),
    ('alerts.cpu.duration = "31d"', f'alerts.cpu.duration = "31d": {DURATION}'),
    ("alerts.cpu.cooldown = inf", f"alerts.cpu.cooldown = inf: {DURATION}"),
    ("alerts.cpu.keep_firing_for = []", f"alerts.cpu.keep_firing_for = []: {DURATION}"),
    ('alerts.cpu.hysteresis = "100%"', f'alerts.cpu.hysteresis = "100%": {SHARE}'),
    ("alerts.cpu.hysteresis = 1", f"alerts.cpu.hysteresis = 1: {SHARE}"),
    ("alerts.cpu.hysteresis = -0.1", f"alerts.cpu.hysteresis = -0.1: {SHARE}"),
    ('alerts.cpu.hysteresis = "5"', f'alerts.cpu.hysteresis = "5": {SHARE}'),
    ('alerts.cpu.enabled = "no"', 'alerts.cpu.enabled = "no": expected true or false'),
    ('alerts.cpu.of = "network"', f'alerts.cpu.of = "network": {ANY_OF}'),
    ("alerts.cpu.of = []", f"alerts.cpu.of = []: {ANY_OF}"),
    ("alerts.cpu.of = [1]", f"alerts.cpu.of = [1]: {ANY_OF}"),
    ('alerts.cpu.of = ["host", "host"]', f'alerts.cpu.of = ["host", "host"]: {ANY_OF}'),
    ('alerts.network.of = "slice"', 'alerts.network.of = "slice": expected "agent" or "host": slice has no network'),
    ('alerts.oom_kill.of = ["agent", "host"]', 'alerts.oom_kill.of = ["agent", "host"]: expected "agent" or "slice": host has no oom_kill'),
    # What should never happen.
    ("alerts.oom_kill.warning = 1", 'alerts.oom_kill.warning = 1: expected "severity" or "keep_firing_for": oom_kill should never happen'),
    ('alerts.oom_kill.duration = "5s"', 'alerts.oom_kill.duration = "5s": expected "severity" or "keep_firing_for": oom_kill should never happen'),
    ("alerts.drift.hysteresis = 0", 'alerts.drift.hysteresis = 0: expected "severity", "duration", "cooldown" or "keep_firing_for": drift should never happen'),
    ('alerts.drift.severity = "warnin"', 'alerts.drift.severity = "warnin": expected a severity, did you mean "WARNING"?'),
    ('alerts.drift.severity = "X"', f'alerts.drift.severity = "X": expected a severity: {SEVERITIES}'),
    ("alerts.drift.severity = 3", f"alerts.drift.severity = 3: expected a severity: {SEVERITIES}"),
    ('[alerts.x]\nresource = "oom_kill"', "alerts.x: expected a severity: oom_kill should never happen"),
    ('alerts.cpu.severity = "INFO"', 'alerts.cpu.severity = "INFO": expected "info", "warning", "critical" or "emergency": cpu has thresholds'),
    # New rules.
    ("alerts.memroy.enabled = false", f'alerts.memroy: expected a key "resource", {NOT_BUILT_IN}, did you mean "memory"?'),
    ("alerts.mine.warning = 3", f'alerts.mine: expected a key "resource", {NOT_BUILT_IN}'),
    ('alerts.x.resource = "memroy"', 'alerts.x.resource = "memroy": expected a resource, did you mean "memory"?'),
    ("alerts.x.resource = 7", "alerts.x.resource = 7: expected a resource: " + ", ".join(f'"{name}"' for name in list(RESOURCES)[:-1]) + f' or "{list(RESOURCES)[-1]}"'),
    ('alerts.x.resource = "swap"', 'alerts.x: expected a threshold: "info", "warning", "critical" or "emergency"'),
    ('[alerts."my rule"]\nresource = "swap"', f'alerts."my rule": {NAME}'),
    ('[alerts."x\\u2028y"]\nresource = "swap"', f'alerts."x\\u2028y": {NAME}'),
    # Handlers.
    ('handlers.x.severity = "INFO"', f'handlers.x: expected a key "type", {NOT_BUILT_IN}'),
    ('handlers.termnal.severity = "INFO"', f'handlers.termnal: expected a key "type", {NOT_BUILT_IN}, did you mean "terminal"?'),
    ('handlers.x.type = "webhok"', 'handlers.x.type = "webhok": expected a type of handler, did you mean "webhook"?'),
    ("handlers.x.type = 5", f"handlers.x.type = 5: expected a type of handler: {TYPES}"),
    ('[handlers."x\\ny"]\ntype = "journal"', f'handlers."x\\ny": {NAME}'),
    ("handlers.terminal.timeout = 0", f"handlers.terminal.timeout = 0: {TIMEOUT}"),
    ('handlers.terminal.timeout = "301s"', f'handlers.terminal.timeout = "301s": {TIMEOUT}'),
    ("handlers.terminal.queue = 0", f"handlers.terminal.queue = 0: {QUEUE}"),
    ("handlers.terminal.queue = 10001", f"handlers.terminal.queue = 10001: {QUEUE}"),
    ("handlers.terminal.queue = 1.0", f"handlers.terminal.queue = 1.0: {QUEUE}"),
    ("handlers.terminal.queue = true", f"handlers.terminal.queue = true: {QUEUE}"),
    ('handlers.terminal.severity = "LOUD"', f'handlers.terminal.severity = "LOUD": expected a severity: {SEVERITIES}'),
    ("handlers.terminal.enabled = 0", "handlers.terminal.enabled = 0: expected true or false"),
    # Commands.
    ('handlers.x.type = "command"', 'handlers.x: expected a key "command"'),
    ('handlers.x = { type = "command", command = "ls -l" }', f'handlers.x.command = "ls -l": {ARGV}'),
    ('handlers.x = { type = "command", command = [] }', f"handlers.x.command = []: {ARGV}"),
    ('handlers.x = { type = "command", command = [""] }', 'handlers.x.command = [""]: expected text'),
    ('handlers.x = { type = "command", command = ["sh", 3] }', 'handlers.x.command = ["sh", 3]: expected text'),
    ('handlers.x = { type = "command", command = ["sh", "\\u0000"] }', 'handlers.x.command = ["sh", "\\u0000"]: expected text'),
    ('handlers.x = { type = "command", command = ["no-such"] }', 'handlers.x.command = ["no-such"]: expected an executable, and no-such is none in PATH (/bin:/usr/bin)'),
    ('handlers.x = { type = "command", command = ["/no/such"] }', 'handlers.x.command = ["/no/such"]: expected an executable, and /no/such is none'),
    ('handlers.x = { type = "command", command = ["/etc/passwd"] }', 'handlers.x.command = ["/etc/passwd"]: expected an executable, and /etc/passwd is none'),
    ('handlers.x = { type = "command", command = ["./sh"] }', 'handlers.x.command = ["./sh"]: expected an absolute path, or a name that PATH has'),
    # Webhooks.
    ('handlers.x.type = "webhook"', 'handlers.x: expected a key "url"'),
    *(
        (f'handlers.x = {{ type = "webhook", url = "{url}" }}', f'handlers.x.url = "{url}": {URL}')
        for url in (
            *("ftp://example.org", "file:///etc/passwd", "example.org", "http://", "https:///x"),
            *("https://user:pw@example.org", "https://example.org/a b", "https://example.org/ä"),
            *("http://example.org:99999", "http://example.org:0", "http://[::1"),
        )
    ),
    ('handlers.x = { type = "webhook", url = 3 }', "handlers.x.url = 3: expected text"),
    ('handlers.x = { type = "webhook", url = "http://[::1]", format = "alertmanger" }', 'handlers.x.format = "alertmanger": expected a format, did you mean "alertmanager"?'),
    ('handlers.x = { type = "webhook", url = "http://[::1]", retries = 11 }', "handlers.x.retries = 11: expected a whole number, 0 to 10"),
    ('handlers.x = { type = "webhook", url = "http://[::1]", retries = -1 }', "handlers.x.retries = -1: expected a whole number, 0 to 10"),
    ('handlers.x = { type = "webhook", url = "http://[::1]", headers = 3 }', 'handlers.x.headers: expected a table such as { Authorization = "Bearer TOKEN" }'),
    ('handlers.x = { type = "webhook", url = "http://[::1]", headers = { A = 3 } }', "handlers.x.headers: expected one line of printable ASCII as A"),
    ('handlers.x = { type = "webhook", url = "http://[::1]", headers = { A = "b\\nsecret" } }', "handlers.x.headers: expected one line of printable ASCII as A"),
    ('handlers.x = { type = "webhook", url = "http://[::1]", headers = { "A B" = "secret" } }', 'handlers.x.headers: expected names as RFC 9110 has them, not "A B"'),
    # Python.
    ('handlers.x.type = "python"', 'handlers.x: expected either callable = "package.module:function" or entry_point'),
    ('handlers.x = { type = "python", callable = "json:dumps", entry_point = "y" }', 'handlers.x: expected either callable = "package.module:function" or entry_point'),
    ('handlers.x = { type = "python", callable = "json.dumps" }', 'handlers.x.callable = "json.dumps": expected "package.module:function"'),
    ('handlers.x = { type = "python", callable = "json:" }', 'handlers.x.callable = "json:": expected "package.module:function"'),
    ('handlers.x = { type = "python", callable = ".json:dumps" }', 'handlers.x.callable = ".json:dumps": expected "package.module:function"'),
    ('handlers.x = { type = "python", callable = "os:system(\'x\')" }', 'handlers.x.callable = "os:system(\'x\')": expected "package.module:function"'),
    ('handlers.x = { type = "python", callable = "no_such:f" }', "handlers.x.callable = \"no_such:f\": expected no_such:f, and importing it failed: ModuleNotFoundError: No module named 'no_such'"),
    ('handlers.x = { type = "python", callable = "json:f" }', "handlers.x.callable = \"json:f\": expected json:f, and importing it failed: AttributeError: module 'json' has no attribute 'f'"),
    ('handlers.x = { type = "python", callable = "math:pi" }', 'handlers.x.callable = "math:pi": expected a callable, and math:pi is of type float'),
    ('handlers.x = { type = "python", entry_point = "y" }', 'handlers.x.entry_point = "y": expected an entry point of agentres.alert_handlers, and there is none'),
]  # fmt: skip  # a table


@pytest.mark.usefixtures("entry_points")
@pytest.mark.parametrize(("text", "line"), REFUSED, ids=lambda text: ascii(text)[:60])
def test_what_makes_no_sense_is_refused_in_one_line(
    write: Write, monkeypatch: pytest.MonkeyPatch, text: str, line: str
) -> None:
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    path = write(text)
    with pytest.raises(ConfigError) as refused:
        load([path], host)
    assert str(refused.value) == f"{path}: {line}"
    assert isinstance(refused.value, UsageError)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a = ", "1:5: invalid value"),
        ("\n[alerts", "2:8: expected ']' at the end of a table declaration"),
        ("a = 1\na = 2", "2:6: cannot overwrite a value"),
        ('a = "', "1:6: unterminated string"),
        ("a = [1,\n", "2:1: invalid value"),
        ("[x]\n[x]", "2:3: cannot declare ('x',) twice"),
    ],
)
def test_toml_that_is_none_has_a_line_and_a_column(write: Write, text: str, where: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as refused:
        load([path])
    assert str(refused.value) == f"{path}:{where}"


def test_a_huge_number_and_deep_nesting_are_refused(write: Write) -> None:
    for text in ("a = " + "9" * 5000, "a = " + "[" * 5000 + "]" * 5000):
        path = write(text)
        with pytest.raises(ConfigError, match=rf"^{re.escape(path)}: .*$"):
            load([path])


@pytest.mark.parametrize(
    ("data", "where"), [(b"\xff", "1:1"), (b"a = 1\n# \xe9\n", "2:3"), (b"\n\n\xc3", "3:1")]
)
def test_a_file_is_utf_8(tmp_path: Path, data: bytes, where: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as refused:
        load([str(path)])
    assert str(refused.value) == f"{path}:{where}: expected UTF-8"


def test_two_entry_points_of_one_name_are_refused(
    write: Write, entry_points: list[EntryPoint]
) -> None:
    entry_points += [EntryPoint("y", f"{m}:dumps", "agentres.alert_handlers") for m in ("json", "marshal")]  # fmt: skip
    path = write('handlers.x = { type = "python", entry_point = "y" }')
    with pytest.raises(ConfigError, match=r"and there are json:dumps and marshal:dumps$"):
        load([path])


def test_a_module_that_raises_is_refused_with_its_first_line(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write('print("hello")\nraise SystemExit("no\\nway")', "raises_system_exit.py")
    path = write('handlers.x = { type = "python", callable = "raises_system_exit:f" }')
    with pytest.raises(ConfigError) as refused:
        load([path])
    assert str(refused.value).endswith("and importing it failed: SystemExit: no")


# Files.


@pytest.mark.parametrize("make", ["missing", "directory", "fifo", "large"])
def test_what_is_no_file_is_refused(tmp_path: Path, make: str) -> None:
    path = tmp_path / "f"
    if make == "directory":
        path.mkdir()
    elif make == "fifo":
        os.mkfifo(path)
    elif make == "large":
        path.write_text("#" * (files.LARGEST + 1))
    words = {
        "missing": "cannot be read: no such file or directory",
        "directory": "cannot be read: is a directory",
        "fifo": "expected a regular file",
        "large": "expected at most 1 MiB",
    }
    with pytest.raises(ConfigError) as refused:
        load([str(path)])
    assert str(refused.value) == f"{path}: {words[make]}"


def a_status(mode: int, uid: int, gid: int) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("euid", "mode", "owner", "group", "what", "remedy"),
    [
        (0, 0o644, 0, 0, "", ""),
        (0, 0o600, 1000, 1000, "", ""),
        (0, 0o644, 0, 7, "", ""),
        (0, 0o664, 0, 0, "", ""),
        (0, 0o664, 0, 7, "its group, gid 7, may write it", "chmod g-w it"),
        (0, 0o664, 1000, 1000, "its group, gid 1000, may write it", "chmod g-w it"),
        (0, 0o644, 7, 0, "it belongs to uid 7", "chown it to root"),
        (0, 0o646, 0, 0, "anybody may write it", "chmod o-w it"),
        (1000, 0o666, 7, 7, "", ""),
    ],
)
def test_root_trusts_no_file_that_others_write(
    euid: int, mode: int, owner: int, group: int, what: str, remedy: str
) -> None:
    status = a_status(stat.S_IFREG | mode, owner, group)
    why = f"{what}, and its handlers would run as root; {remedy}" if what else ""
    assert files.untrusted(status, euid, 1000) == why


def test_a_file_that_anybody_may_write_is_refused_as_root(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("")
    os.chmod(path, 0o666)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ConfigError, match="anybody may write it"):
        load([path])


ETC = "/etc/agentres/agentres.toml"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"AGENTRES_CONFIG": "/x/y", "HOME": "/h"}, ["/x/y"]),
        ({"AGENTRES_CONFIG": "", "HOME": "/h"}, [ETC, "/h/.config/agentres/agentres.toml"]),
        ({"XDG_CONFIG_HOME": "/c", "HOME": "/h"}, [ETC, "/c/agentres/agentres.toml"]),
        ({"XDG_CONFIG_HOME": "c", "HOME": "/h"}, [ETC, "/h/.config/agentres/agentres.toml"]),
    ],
)
def test_which_files_are_read(environ: dict[str, str], expected: list[str]) -> None:
    assert configuration(environ, 0, missing=True) == expected


def test_without_a_home_in_the_environment_it_is_the_accounts() -> None:
    import pwd

    assert configuration({}, 0, missing=True)[1].startswith(pwd.getpwuid(0).pw_dir)
    assert configuration({}, 4_000_000_000, missing=True)[1] == "//.config/agentres/agentres.toml"


def test_a_default_file_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    mine = tmp_path / "agentres" / "agentres.toml"
    assert str(mine) not in configuration(environ, 0)
    mine.parent.mkdir()
    mine.touch()
    assert configuration(environ, 0)[-1] == str(mine)


# Round trips, and whatever else TOML may hold.

NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
SECONDS = st.one_of(
    st.sampled_from(["0s", "1h30m", "500ms", "90", "0.333333333333333ms"]),
    st.floats(0, 86400),
    st.integers(0, 86400),
)
PERCENT = st.decimals(0, 100, places=15).filter(lambda d: d > 0).map(lambda d: f"{d:f}%")
SHARES = st.one_of(PERCENT.filter(lambda text: _share(text) < 1), st.floats(0, 0.99))


@st.composite
def thresholds(draw: st.DrawFn, resource: str) -> dict[str, Any]:
    keys = draw(st.lists(st.sampled_from(list(schema.LEVELS)), min_size=1, unique=True))
    keys.sort(key=list(schema.LEVELS).index)
    spec = RESOURCES[resource]
    if spec.unit == "fraction" or (spec.limit and draw(st.booleans())):
        texts = draw(st.lists(PERCENT, min_size=len(keys), max_size=len(keys), unique_by=_share))
        return dict(zip(keys, sorted(texts, key=_share), strict=True))
    numbers = st.one_of(st.integers(1, 10**17), st.floats(1e-9, 1e17))
    found = draw(st.lists(numbers, min_size=len(keys), max_size=len(keys), unique_by=float))
    return dict(zip(keys, sorted(found), strict=True))


def _share(text: str) -> float:
    return values.percent(text) or math.nan


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    resource = draw(st.sampled_from(list(RESOURCES)))
    of = draw(st.lists(st.sampled_from(RESOURCES[resource].of), min_size=1, unique=True))
    section: dict[str, Any] = {"resource": resource, "of": of}
    times: tuple[str, ...] = ("duration", "cooldown", "keep_firing_for")
    if schema.happens(resource):
        section["severity"] = draw(st.sampled_from(list(Severity))).name
        times = times if RESOURCES[resource].kind != EVENT else times[2:]
    else:
        section |= draw(thresholds(resource))
        section |= draw(st.fixed_dictionaries({}, optional={"hysteresis": SHARES}))
    return section | draw(st.fixed_dictionaries({}, optional=dict.fromkeys(times, SECONDS)))


OPTIONS = st.one_of(
    st.just({"type": "journal"}),
    st.just({"type": "terminal"}),
    st.just({"type": "python", "callable": "json:dumps"}),
    st.builds(
        lambda args: {"type": "command", "command": ["/bin/sh", *args]},
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)),
    ),
    st.builds(
        lambda retries, token: {
            "type": "webhook",
            "url": "https://127.0.0.1/x",
            "retries": retries,
            "headers": {"Authorization": token},
        },
        st.integers(0, 10),
        st.text(st.characters(min_codepoint=32, max_codepoint=126)),
    ),
)  # fmt: skip
COMMON = st.fixed_dictionaries(
    {},
    optional={
        "severity": st.sampled_from(list(Severity.__members__)),
        "timeout": st.one_of(st.floats(0.001, 300), st.just("30s")),
        "queue": st.integers(1, 10000),
        "enabled": st.booleans(),
    },
)
PARTS = st.one_of(st.floats(0.01, 0.95), st.integers(1, 95).map(lambda n: f"{n}%"))
LONG = st.one_of(st.floats(1, 86400), st.sampled_from(["1s", "2m", "1h30m"]))


@st.composite
def behaviours(draw: st.DrawFn) -> dict[str, Any]:
    down, aim, up = sorted(
        draw(st.lists(st.floats(0.01, 0.95), min_size=3, max_size=3, unique=True))
    )
    step = draw(
        st.floats(1, 10).filter(lambda step: 1 < step < up / down * 0.999 and down * step < up)
    )
    rest: dict[str, Any] = {
        "cooldown": LONG,
        "burst": st.booleans(),
        "give_back": st.one_of(LONG, st.just("never"), st.just(math.inf)),
        "patience": st.one_of(st.floats(1, 1000), st.integers(1, 1000)),
        "margin": st.floats(0, 1),
        "based_on": st.sampled_from(["balanced", "conservative", "aggressive"]),
    }
    given = draw(st.fixed_dictionaries({}, optional=rest))
    return {"down": down, "aim": aim, "up": up, "step": step} | given


ELASTIC = {
    "limits": st.fixed_dictionaries(
        {},
        optional={
            "cpu": st.one_of(st.floats(0.01, 4), st.just("0.5:max")),
            "memory": st.sampled_from(["1M:1G", "10%:100%", "max", 10**9]),
            "pids": st.integers(1, 10**6),
            "io_write": st.lists(st.sampled_from(["1M:2M", "/a=5M", 7]), max_size=3),
        },
    ),
    "scaling": st.fixed_dictionaries(
        {}, optional={"philosophy": st.sampled_from(list(PHILOSOPHIES)), "predict": st.booleans()}
    ),
    "budget": st.fixed_dictionaries({}, optional={"share": PARTS}),
    "prediction": st.fixed_dictionaries(
        {}, optional={"half_life": st.floats(60, 10**7), "percentile": PARTS, "margin": PARTS}
    ),
    "philosophies": st.dictionaries(
        NAMES.filter(lambda name: name not in PHILOSOPHIES),
        st.one_of(behaviours(), st.just({"based_on": "frozen"})),
        max_size=3,
    ),
}
CONFIGURATIONS = st.fixed_dictionaries(
    {
        **ELASTIC,
        "sampling": st.fixed_dictionaries(
            {}, optional={"interval": st.floats(1, 3600), "fastest": st.floats(0.01, 1)}
        ),
        "history": st.fixed_dictionaries({"enabled": st.booleans()}),
        "alerts": st.dictionaries(NAMES, rules(), max_size=4),
        "handlers": st.dictionaries(
            NAMES, st.builds(lambda a, b: a | b, OPTIONS, COMMON), max_size=3
        ),
    }
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "agentres.toml"


@given(written=CONFIGURATIONS)
def test_settings_go_to_another_process_and_into_a_file_and_come_back(
    scratch: Path, written: dict[str, Any]
) -> None:
    scratch.write_text(tomli_w.dumps(written))
    settings = load([str(scratch)], host)
    assert from_plain(marshal.loads(marshal.dumps(to_plain(settings)))) == settings
    scratch.write_text(dump(settings))
    assert load([str(scratch)], host) == settings
    assert [each.wrong() for each in settings.philosophies.values()] == [None] * len(
        settings.philosophies
    )


TOML = st.recursive(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.integers(-(10**25), 10**25),
        st.floats(),
        st.booleans(),
        st.dates(),
        st.sampled_from(["75%", "1G", "30s", "agent", "memory", "webhook", "INFO", "", "%"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    ),
    max_leaves=6,
)
ALERT_KEYS = [*schema.Alert.model_fields, "x"]
FREE_KEYS = {
    "limits": [*elastic.Limits.model_fields, "x"],
    "scaling": [*elastic.Scaling.model_fields, "x"],
    "budget": [*elastic.Budget.model_fields, "x"],
    "prediction": [*elastic.Prediction.model_fields, "x"],
}
HANDLER_KEYS = sorted({key for model in schema.HANDLERS.values() for key in model.model_fields})
ANYTHING = st.one_of(
    st.dictionaries(st.sampled_from(["sampling", "history", "alerts", "x"]), TOML),
    st.builds(
        lambda name, section: {"alerts": {name: section}},
        st.sampled_from(["memory", "oom_kill", "network", "x"]),
        st.dictionaries(st.sampled_from(ALERT_KEYS), TOML),
    ),
    st.sampled_from(list(FREE_KEYS)).flatmap(
        lambda name: st.fixed_dictionaries(
            {name: st.dictionaries(st.sampled_from(FREE_KEYS[name]), TOML)}
        )
    ),
    st.builds(
        lambda name, section: {"philosophies": {name: section}},
        st.sampled_from(["balanced", "frozen", "x"]),
        st.dictionaries(st.sampled_from([*elastic.Philosophy.model_fields, "x"]), TOML),
    ),
    st.builds(
        lambda kind, section: {"handlers": {"x": {"type": kind, **section}}},
        st.sampled_from(list(schema.HANDLERS)),
        st.dictionaries(st.sampled_from(HANDLER_KEYS), TOML),
    ),
)


@given(written=ANYTHING)
def test_whatever_a_file_says_is_settings_or_one_line(
    scratch: Path, written: dict[str, Any]
) -> None:
    scratch.write_text(tomli_w.dumps(written))
    said = ""
    try:
        settings = load([str(scratch)], host)
    except ConfigError as error:
        said = str(error)
    if said:
        assert said.startswith(f"{scratch}: ")
        assert said.isprintable()
    else:
        assert from_plain(marshal.loads(marshal.dumps(to_plain(settings)))) == settings


# The process of its own, and the verbs.


def read_apart(*paths: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "agentres.config", *paths],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environ},
        timeout=60,
    )


def test_a_process_of_its_own_writes_the_settings(write: Write) -> None:
    done = read_apart(write("alerts.cpu.enabled = false"))
    assert (done.returncode, done.stderr) == (0, b"")
    settings = from_plain(marshal.loads(done.stdout))
    assert rules_of(settings, "cpu") == []


def test_keys_know_the_file_that_they_are_from(write: Write) -> None:
    first = write('limits.memory = "1G"\nlimits.cpu = 2', name="first.toml")
    second = write(
        'limits.memory = "2G"\nalerts.mine.resource = "memory"\nalerts.mine.warning = 1',
        name="second.toml",
    )
    origins = load([first, second], origins=True).origins
    assert (origins["limits.memory"], origins["limits.cpu"]) == (second, first)
    assert origins["alerts.mine.warning"] == second
    assert "sampling.interval" not in origins


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


def test_no_agent_is_described_elsewhere(write: Write) -> None:
    with pytest.raises(
        ConfigError, match=r"agent: expected in a file of /etc/agentres/agents\.d only"
    ):
        load([write(AGENT)])


def test_a_process_of_its_own_reads_what_the_environment_names(write: Write) -> None:
    done = read_apart(AGENTRES_CONFIG=write("history.enabled = false"))
    assert not from_plain(marshal.loads(done.stdout)).history


def test_a_process_of_its_own_refuses_in_one_line(write: Write) -> None:
    path = write("a = ")
    done = read_apart(path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == f"{path}:1:5: invalid value\n".encode()


def test_a_module_that_prints_and_starts_threads_spoils_nothing(
    write: Write, tmp_path: Path
) -> None:
    write(
        "import os, threading, time\nprint('noise')\nos.write(1, b'noise')\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\ndef f(event): pass\n",
        "noisy_handler.py",
    )
    path = write('handlers.x = { type = "python", callable = "noisy_handler:f" }')
    done = read_apart(path, PYTHONPATH=str(tmp_path))
    settings = from_plain(marshal.loads(done.stdout))
    assert handler(settings, "x").options == {"callable": "noisy_handler:f"}


def verb(*arguments: str, **environ: str) -> tuple[int, str, str]:
    return agentres("config", *arguments, env=environ)


def test_show_prints_a_file_of_the_same_settings(write: Write) -> None:
    path = write('alerts.cpu.warning = "60%"\nhandlers.j.type = "journal"')
    status, out, _ = verb("show", AGENTRES_CONFIG=path)
    assert status == 0
    assert load([write(out, "shown")]) == load([path])


def test_show_prints_json(write: Write) -> None:
    import json

    path = write("history.enabled = false")
    status, out, _ = verb("show", "--json", AGENTRES_CONFIG=path)
    assert status == 0
    assert json.loads(out) == {"schema": 1, "files": [path], **sections(load([path]))}


def test_check_tells_what_it_read(write: Write) -> None:
    path = write("")
    words = f"{len(DEFAULT_RULES)} rules, 1 handler, 4 philosophies, 0 limits"
    assert verb("check", path) == (0, f"{path}: {words}\n", "")
    assert verb("check", AGENTRES_CONFIG=path) == (0, f"{path}: {words}\n", "")


def test_check_refuses_in_one_line(write: Write) -> None:
    path = write("alerts.cpu.enabled = 0")
    line = f"agentres: {path}: alerts.cpu.enabled = 0: expected true or false\n"
    assert verb("check", path) == (1, "", line)
    assert verb("show", AGENTRES_CONFIG=path) == (1, "", line)


def test_path_tells_which_files_are_there(tmp_path: Path) -> None:
    status, out, _ = verb("path", AGENTRES_CONFIG="", XDG_CONFIG_HOME=str(tmp_path))
    lines = out.splitlines()
    assert (status, len(lines)) == (0, 2)
    assert lines[1] == f"{tmp_path}/agentres/agentres.toml\tnot there"
    here = __file__
    assert verb("path", AGENTRES_CONFIG=here)[1] == f"{here}\tread\n"


# The documentation.


def test_every_example_of_the_documentation_is_taken(
    write: Write, monkeypatch: pytest.MonkeyPatch, entry_points: list[EntryPoint]
) -> None:
    monkeypatch.setattr(schema, "executable", lambda name: None)
    monkeypatch.setattr(schema, "importable", lambda key, target: target)
    entry_points.append(EntryPoint("pager", "my_package.alerts:page", "agentres.alert_handlers"))
    examples = re.findall(r"^```toml\n(.*?)^```", DOCS.read_text(), re.M | re.S)
    assert len(examples) > 2
    for example in examples:
        load([write(example)], host)
    types = {h.get("type") for e in examples for h in tomllib.loads(e).get("handlers", {}).values()}
    assert types >= set(schema.HANDLERS) - {"terminal"}


def test_the_documentation_has_every_key_resource_and_rule() -> None:
    text = DOCS.read_text()
    table = text.partition("\n## Resources")[2].partition("\n## ")[0]
    models: list[type[schema.Table]] = [schema.Sampling, schema.History, schema.Alert]
    models += schema.HANDLERS.values()
    models += [elastic.Limits, elastic.Scaling, elastic.Budget, elastic.Prediction]
    models += [elastic.Philosophy]
    for key in {key for model in models for key in model.model_fields}:
        assert f"`{key}`" in text
    for name, resource in RESOURCES.items():
        (row,) = re.findall(rf"^\| `{name}` \| (.*) \| (.*) \| (.*) \| .* \|$", table, re.M)
        assert row[0] == resource.unit
        assert row[1] == ("yes" if resource.limit else "")
        assert row[2] == ", ".join(resource.of)


def test_the_documentation_has_the_defaults_of_a_philosophy() -> None:
    text = DOCS.read_text()
    balanced = sections(Settings())["philosophies"]["balanced"]
    for key, value in balanced.items():
        assert re.search(
            rf"^\| `{key}` \| .* \| `{re.escape(values.shown(value))}` \|$", text, re.M
        )


def test_the_documentation_has_the_built_in_rules_as_they_are() -> None:
    table = DOCS.read_text().partition("## Built-in rules")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| `")
    ]
    built_in = sections(Settings())["alerts"]
    assert [row[0] for row in rows] == [f"`{name}`" for name in built_in]
    for row, (name, section) in zip(rows, built_in.items(), strict=True):
        assert section["resource"] == name
        levels = [f"{key} {section[key]}" for key in schema.LEVELS if key in section]
        rest = [section.get(key, "") for key in ("duration", "keep_firing_for", "cooldown")]
        assert row[1:] == [
            ", ".join(section["of"]),
            ", ".join(levels) or section["severity"],
            *(str(cell) for cell in rest),
        ]


def test_a_file_to_begin_with_says_nothing_and_means_what_is_built_in(
    write: Write, tmp_path: Path
) -> None:
    path = tmp_path / "deep/agentres.toml"
    assert verb("init", str(path)) == (0, f"{path}\n", "")
    assert load([str(path)]) == Settings()
    status, _, err = verb("init", str(path))
    assert status == 1
    assert "is there already" in err
    marked = path.read_text().splitlines()
    at = marked.index("# [sampling]")
    all_of_it = "\n".join(line.removeprefix("# ") for line in marked[at:])
    assert load([write(all_of_it)]) == Settings()
