"""The sections about limits, scaling, budget and prediction, and the philosophies that result from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Annotated

from pydantic import StrictBool

from agentres.config.handlers import entry_point
from agentres.config.values import (
    DEFAULT,
    DiskLimit,
    Duration,
    DurationOrNever,
    Limit,
    OptionalText,
    Section,
    Text,
    factor,
    fraction,
    percent_text,
    seconds,
)
from agentres.config.words import Wrong, nearest, shown
from agentres.model.limits import DISKS, Host, LimitError, Limits, read_limits
from agentres.policy import scaling


class LimitsSection(Section):
    """``[limits]``: the limits of an agent whose options set no others."""

    #: Cores, or percent of one: `"1.5"`, `"150%"`, `1.5`.
    cpu: Limit = None
    #: CPUs: `"0-3,8"`, or how many: `2` ([limits](limits.md#cpus)).
    cpuset: Limit = None
    #: `"512M"`, `"2GiB"`, `"50%"` of the host, or bytes.
    memory: Limit = None
    #: On top of the memory.
    swap: Limit = None
    #: Processes and threads at once.
    pids: Limit = None
    #: Bytes a second, read and written: `"50MB/s"`, `"/dev/vda=50M"`, or a list of them.
    io_read: DiskLimit = None
    io_write: DiskLimit = None
    #: Operations a second, likewise.
    io_read_iops: DiskLimit = None
    io_write_iops: DiskLimit = None
    #: Open files of each process.
    nofile: Limit = None
    #: Bytes a second received and sent: `"20MB/s"` ([network](network.md)).
    net_in: Limit = None
    net_out: Limit = None
    #: `"host"`, `"none"`: nothing but loopback, `"isolated"`: behind NAT.
    net: Limit = None
    #: Whether loopback counts for the rates: `"free"`, `"limited"`.
    net_loopback: Limit = None
    #: Whether the agent is paused for disk I/O that the kernel does not hold to the rates: `"on"`, `"off"` ([limits](limits.md)).
    io_strict: Limit = None

    def texts(self, host: Callable[[], Host]) -> dict[str, str | list[str]]:
        """Return the limits that are given; :class:`Wrong` if one is not valid on this host."""
        given = {key: getattr(self, key) for key in type(self).model_fields}
        texts = {key: value for key, value in given.items() if value is not None}
        try:
            if texts:
                read_limits(texts, host(), Limits())
        except LimitError as error:
            text = f"{error.text}: " if error.key in DISKS and len(texts[error.key]) > 1 else ""
            raise Wrong(error.key, f"{text}{error}") from None
        return texts


class ScalingSection(Section):
    """``[scaling]``."""

    #: How limits move, for agents without a `--philosophy` of their own.
    philosophy: Text = DEFAULT.philosophy
    #: Whether the first limits of an agent come from what it used before.
    predict: StrictBool = DEFAULT.predict
    #: What predicts instead of agentres: a name in the entry point group `agentres.predictors`.
    predictor: OptionalText = None

    def check(self, philosophies: Iterable[str]) -> None:
        """Raise :class:`Wrong` if the philosophy or predictor does not exist."""
        if self.philosophy not in philosophies:
            words = f"expected a philosophy{nearest(self.philosophy, philosophies)}"
            raise Wrong("philosophy", words)
        if self.predictor is not None:
            entry_point(self.predictor, "agentres.predictors", "predictor")


class BudgetSection(Section):
    """``[budget]``."""

    #: How much of the host's memory and CPU all agents together may use.
    share: Annotated[float, fraction("1%", "100%")] = DEFAULT.budget_share


class PredictionSection(Section):
    """``[prediction]``."""

    #: The time after which past use counts half.
    half_life: Annotated[float, seconds("1m", "365d")] = DEFAULT.prediction.half_life
    #: How much of past use must have fitted.
    percentile: Annotated[float, fraction("1%", "100%")] = DEFAULT.prediction.percentile
    #: What is added to that.
    margin: Annotated[float, fraction("0%", "100%")] = DEFAULT.prediction.margin


_BASE = scaling.BALANCED


class PhilosophySection(Section):
    """``[philosophies.NAME]``."""

    #: Another philosophy in effect, built in or not; `"balanced"` if not given.
    based_on: OptionalText = None
    #: Raise when the use reaches this much of the limit.
    up: Annotated[float, fraction("1%", "95%")] = _BASE.up
    #: Lower when the use is at this much of the limit or below.
    down: Annotated[float, fraction("0%", "95%")] = _BASE.down
    #: Factor of a raise.
    step: Annotated[float, factor(1, 10, above=True)] = _BASE.step
    #: A lowered limit has its use here.
    aim: Annotated[float, fraction("1%", "95%")] = _BASE.aim
    #: Least time between two lowerings, and between two raises that can wait.
    cooldown: Duration = _BASE.cooldown
    #: Whether a raise that cannot wait ignores the cooldown.
    burst: StrictBool = _BASE.burst
    #: The time after which unused room that a burst brought goes back; `"never"`: only by `down`.
    give_back: DurationOrNever = _BASE.give_back
    #: The most by which the cooldown grows after a regretted lowering; 1: not at all.
    patience: Annotated[float, factor(1, 1000)] = _BASE.patience
    #: Memory is never lowered to less than the use plus this much of it.
    margin: Annotated[float, fraction("0%", "100%")] = _BASE.margin

    def over(self, base: scaling.Philosophy, name: str) -> scaling.Philosophy:
        """Return ``base`` with the keys that are given; :class:`Wrong` if they do not fit together."""
        given = {key: getattr(self, key) for key in BEHAVIOUR if key in self.model_fields_set}
        if not base.moves:
            for key in given:
                raise Wrong(key, f"expected no key: {base.name} leaves every limit where it is")
        made = base.but(**given, name=name)
        text = {key: f"{key} = {shown(percent_text(getattr(made, key)))}" for key in FRACTIONS}
        for low, high in pairwise(FRACTIONS):
            if getattr(made, low) >= getattr(made, high):
                less = {low: f"expected less than {text[high]}"}
                raise Wrong(high, f"expected more than {text[low]}", **less)
        if made.down * made.step >= made.up:
            # Use would count as low right after a raise.
            by = f"step = {made.step:g}"
            raise Wrong(
                "step",
                f"expected less than up / down, which is {made.up / made.down:.3g}",
                up=f"expected more than down times {by}, which is {made.down * made.step:.3g}",
                down=f"expected less than up divided by {by}, which is {made.up / made.step:.3g}",
            )
        return made


FRACTIONS = ("down", "aim", "up")
"""The keys of a philosophy that are fractions of the limit, in the order in which their values must rise."""

BEHAVIOUR = tuple(key for key in PhilosophySection.model_fields if key != "based_on")


def philosophies(tables: Mapping[str, PhilosophySection]) -> dict[str, scaling.Philosophy]:
    """Build each philosophy on the one that it is based on; :class:`Wrong` with the full path of each key."""
    made: dict[str, scaling.Philosophy] = {}
    for name in tables:
        chain = [name]
        while chain[-1] not in made and (below := _below(chain[-1], tables)) is not None:
            if below in chain:
                wrong = Wrong("based_on", "expected a philosophy that is not based on this one")
                raise wrong.within(("philosophies", chain[-1]))
            chain.append(below)
        for one in reversed(chain):
            if one not in made:
                base = _below(one, tables)
                over = scaling.PHILOSOPHIES[one] if base is None else made[base]
                try:
                    made[one] = tables[one].over(over, one)
                except Wrong as wrong:
                    raise wrong.within(("philosophies", one)) from None
    return {name: made[name] for name in tables}


def _below(name: str, tables: Mapping[str, PhilosophySection]) -> str | None:
    """Return the name of the philosophy that this one is based on; None: the built-in one of its own name."""
    base = tables[name].based_on
    if base is None:
        return None if name in scaling.PHILOSOPHIES else scaling.BALANCED.name
    if name == scaling.FROZEN.name or base not in tables:
        known = f"expected a philosophy{nearest(base, tables)}"
        words = (
            "expected no key: frozen leaves every limit where it is" if base in tables else known
        )
        raise Wrong("based_on", words).within(("philosophies", name))
    return base
