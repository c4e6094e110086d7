"""Configuration of any kind: settings go round, and whatever TOML may hold is settings or one line."""

from __future__ import annotations

import marshal
import math
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from configured import host
from hypothesis import given
from hypothesis import strategies as st
from scaler_life import is_sound

from agentres.config import ConfigError, dump, elastic, load, schema, values
from agentres.policy.alerts import Severity
from agentres.policy.resources import EVENT, RESOURCES
from agentres.policy.scaling import PHILOSOPHIES
from agentres.policy.settings import from_plain, to_plain

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
    assert all(is_sound(each) for each in settings.philosophies.values())


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
ALERT_KEYS = [*schema.AlertSection.model_fields, "x"]
FREE_KEYS = {
    "limits": [*elastic.LimitsSection.model_fields, "x"],
    "scaling": [*elastic.ScalingSection.model_fields, "x"],
    "budget": [*elastic.BudgetSection.model_fields, "x"],
    "prediction": [*elastic.PredictionSection.model_fields, "x"],
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
        st.dictionaries(st.sampled_from([*elastic.PhilosophySection.model_fields, "x"]), TOML),
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
