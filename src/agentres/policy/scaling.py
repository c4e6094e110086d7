"""When an elastic limit moves, and to what; pure.

One :class:`Scaler` follows one limit of one agent.  Times are seconds of one clock that never jumps; uses
and limits are in the resource's unit (cores, bytes, processes, bytes or operations a second).  The caller
writes the control files, and reports the limit in force with :meth:`Scaler.moved`.

Raises have two speeds.  What the kernel reports (a tripwire, a refused fork, throttling) raises at once; what
a sample finds waits for the cooldown if waiting does no harm.  After an immediate raise (a *burst*), the limit
is trimmed when use has stopped rising (*settle*), and lowered when use was low for a while (*give back*).

Why limits cannot flap: two lowerings (*give back*, *down*) are at least a cooldown apart, whatever the load.
A raise is trimmed at most once, and two trims are a quarter of the cooldown apart.  A trim leaves the use
that caused the raise at ``aim``, so the limit stays above its old value: between lowerings limits only climb.
"""

from __future__ import annotations

import math
from types import MappingProxyType

from agentres.model.limits import limit_spec
from agentres.model.native import deque
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import NEVER, format_duration
from agentres.policy.alerts import show
from agentres.policy.tripwire import HEADROOM, NEAR

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from agentres.model.limits import Range

    Rule = Literal["burst", "up", "settle", "give_back", "down"]

SETTLE = 3.0
"""Seconds without a new peak after which a burst is over, and the limit is trimmed to fit its peak."""

TRIMS = 0.25
"""The least time between two trims, as a fraction of the cooldown."""

THROTTLED = 0.05
"""The fraction of time at its limit from which a resource is raised, whatever its mean use."""

WORTH = 0.9
"""A lowered limit is at most this fraction of the old one: a smaller change is not worth a write."""

_SOON = 0.05
_ASK_AGAIN = 1.0

_HARD = frozenset({"memory", "pids"})
"""At these limits work fails; at the others it only slows down."""


class Philosophy(Record):
    """How an elastic limit behaves; times in seconds."""

    name: str
    # Use as fractions of the limit at which it is raised and lowered.
    up: float = 0.75
    down: float = 0.25
    # The factor of a raise.
    step: float = 1.5
    # Use as a fraction of a lowered limit.
    aim: float = 0.70
    # Between two policy actions; with ``burst``, an urgent raise ignores it.
    cooldown: float = 60.0
    burst: bool = True
    # How long what a burst added may be unused until it goes back; infinite: only by ``down``.
    give_back: float = 10.0
    # The factor by which regretted lowerings can lengthen the cooldown, at most.
    patience: float = 1.0
    # Memory is never lowered below use * (1 + margin).
    margin: float = 0.15
    # False leaves every limit where it is.
    moves: bool = True


BALANCED = Philosophy("balanced")
CONSERVATIVE = Philosophy(
    "conservative", aim=0.65, cooldown=300.0, give_back=180.0, patience=4.0, margin=0.3
)
AGGRESSIVE = Philosophy("aggressive", up=0.85, aim=0.8, cooldown=15.0, give_back=3.0, patience=1.5)
FROZEN = Philosophy("frozen", moves=False)

PHILOSOPHIES: Mapping[str, Philosophy] = MappingProxyType(
    {each.name: each for each in (BALANCED, CONSERVATIVE, AGGRESSIVE, FROZEN)}
)
"""The built-in philosophies, by name."""


class Move(Record):
    """A limit that should go from ``before`` to ``after``: by which ``rule``, and ``why`` in words.

    ``use`` is what was in use at time ``at``.
    """

    resource: str
    before: float
    after: float
    rule: Rule
    why: str
    use: float
    at: float


class Scaler:
    """One limit of one agent: takes its use, decides where the limit should go.

    ``resource`` is a key of ``Limits.ranges``; limits are multiples of ``grain``, rounded up.
    """

    __slots__ = (
        "_acted", "_asked", "_began", "_cooldown", "_grain", "_hard", "_headroom", "_high", "_lent", "_lowered",
        "_memory", "_regretted", "_seen", "_settle", "_stands", "_trimmed", "_unit", "_wants", "philosophy", "range",
        "resource",
    )  # fmt: skip

    def __init__(
        self, resource: str, philosophy: Philosophy, range: Range, now: float, grain: float = 1
    ) -> None:
        kind = resource.partition("=")[0]
        self.resource = resource
        self.philosophy = philosophy
        self.range = range
        self._grain = grain
        self._unit = limit_spec(kind).unit
        self._memory = kind == "memory"
        self._hard = kind in _HARD
        self._headroom = HEADROOM if self._memory else 0
        self._began = self._asked = now
        # (since, use): no look since then found more use; the highest use first.
        self._seen: deque[tuple[float, float]] = deque()
        self._stands: float | None = None
        self._lent = False  # a burst added at least a part of the present limit
        self._high = 0.0  # since the last raise
        self._settle: float | None = None
        self._wants = NEVER  # when to ask again for a refused raise
        self._acted = self._lowered = self._trimmed = -NEVER
        self._cooldown = philosophy.cooldown
        self._regretted = True  # at first, so that the first lowering does not shorten the cooldown

    def wake_at(self, limit: float) -> float | None:
        """Return the use at which an urgent raise is due, where the tripwire belongs; None: no tripwire."""
        return self._height(limit) if self.philosophy.burst else None

    def observe(
        self,
        now: float,
        use: float | None,
        limit: float | None,
        throttled: float = 0.0,
        notified: bool = False,
    ) -> Move | None:
        """Take the use and the limit at ``now``; None means "not known" and changes nothing.

        ``throttled`` is the fraction of the time in which the limit had an effect, 0 to 1.  ``notified``: a
        kernel notification, not a sample.  The caller must pass every move to :meth:`moved`, even a failed one.
        """
        if use is None or limit is None or not self.philosophy.moves:
            return None
        now = self._asked = max(now, self._asked)
        if self._stands is None or abs(limit - self._stands) >= self._grain:
            self._set(now, limit)
        height = self._height(limit)
        felt = throttled >= THROTTLED or (notified and self._hard and not self._memory)
        # How much use the limit cut off is not known: assume at least enough for a raise.
        seen = max(use, self.philosophy.up * limit) if felt else use
        self._remember(now, seen)
        if seen > self._high:
            self._high = seen
            if self._settle is not None:  # it still rises
                self._settle = max(self._settle, now + SETTLE)
        # An agent that waits for memory still does when the tripwire holds it just below, or makes it swap there.
        near = NEAR if self._memory and self._wants < NEVER else 0
        if height is not None and (felt or use >= height - near):
            return self._raise(now, use, limit, felt, felt or notified or self._hard)
        self._wants = NEVER
        if self._settle is not None and now >= self._settle:
            after = self._fit(self._high)
            self._settle = None
            if after <= WORTH * limit:
                why = f"the burst went up to {self._show(self._high)}"
                return self._move(now, use, limit, after, "settle", why)
        if now >= self._lower_at(limit):
            return self._lower(now, use, limit)
        return None

    def moved(self, now: float, move: Move, after: float) -> None:
        """Take the limit in force since ``now``: ``after`` may be less than asked for, or still ``move.before``."""
        now = max(now, self._asked)
        self._stands = after
        lowering = move.rule in ("give_back", "down")
        if lowering:
            # Also if it was refused: it is not tried again any sooner.
            if not self._regretted:
                self._cooldown = max(self._cooldown / 2, self.philosophy.cooldown)
            self._lowered = self._acted = now
            self._settle = None
            self._regretted = after == move.before
        elif move.rule == "settle":
            self._settle = None
            self._trimmed = now
        elif after <= move.before:
            self._wants = now + _ASK_AGAIN
            self._settle = None  # use is now so high that there is nothing to trim
        else:
            self._wants = now + _ASK_AGAIN if after < move.after else NEVER
            self._acted = self._began = now
            self._lent = self._lent or move.rule == "burst"
            self._high = max(move.use, self._seen[-1][1] if self._seen else 0.0)
            if move.rule == "burst":
                trim = self._trimmed + self._cooldown * TRIMS
                self._settle = max(now + SETTLE, trim)
            if not self._regretted and now - self._lowered < self.philosophy.cooldown:
                self._regretted = True
                most = self.philosophy.cooldown * self.philosophy.patience
                self._cooldown = min(self._cooldown * 2, most)

    def due(self, now: float) -> float:
        """Return the seconds from ``now`` until the next look is due at the latest; infinite: no reason for one."""
        if not self.philosophy.moves:
            return NEVER
        if self._stands is None:  # nothing is known yet: a rate needs two readings
            return _SOON
        soonest = self._wants
        if self._settle is not None:
            soonest = min(soonest, self._settle)
        soonest = min(soonest, self._lower_at(self._stands))
        return max(soonest - now, _SOON)

    def _set(self, now: float, limit: float) -> None:
        """Take a limit that this scaler did not set: the first one, or one that something else wrote."""
        self._stands = limit
        self._began = now
        self._lent = False
        self._settle = None

    def _height(self, limit: float) -> float | None:
        """Return the use at which the limit is raised; None at the upper end, or if it never moves."""
        if limit >= self.range.most or not self.philosophy.moves:
            return None
        return max(0.0, min(self.philosophy.up * limit, limit - self._headroom))

    def _fit(self, use: float) -> float:
        """Return the limit that puts this use at ``aim``, with some distance to the next raise."""
        policy = self.philosophy
        fit = use / policy.aim
        if self._memory:
            slack = max(use, self._headroom / 4) * policy.up / policy.aim
            fit = max(fit, use * (1 + policy.margin), slack + self._headroom)
        return self._whole(fit)

    def _whole(self, limit: float) -> float:
        """Return the limit rounded up to whole grains and clamped to the range."""
        grains = math.ceil(limit / self._grain - 1e-6)
        whole = (
            grains * self._grain if isinstance(self._grain, int) else round(grains * self._grain, 9)
        )
        return min(max(whole, self.range.least), self.range.most)

    def _raise(self, now: float, use: float, limit: float, felt: bool, urgent: bool) -> Move | None:
        policy = self.philosophy
        waits = self._acted + policy.cooldown
        if now < waits and not (policy.burst and urgent):
            self._wants = waits
            self._settle = None  # use is now so high that there is nothing to trim
            return None
        after = self._stepped(use, limit)
        if use >= policy.up * limit:
            why = f"use of {self._show(use)} reached {policy.up:.0%} of {self._show(limit)}"
        elif felt:
            why = f"the limit of {self._show(limit)} was felt, at a use of {self._show(use)}"
        else:
            why = f"use of {self._show(use)} came within {self._show(self._headroom)} of {self._show(limit)}"
        return self._move(now, use, limit, after, "burst" if urgent and policy.burst else "up", why)

    def _stepped(self, use: float, limit: float) -> float:
        """Return the limit after as many steps as the use needs, at least one."""
        step, limit = self.philosophy.step, max(limit, self._grain)
        enough = max(use / self.philosophy.up, use + self._headroom)
        steps = max(1, math.ceil(math.log(max(enough / limit, 1)) / math.log(step)))
        if steps * math.log(step) > 100:  # more than any host has; a float may overflow
            return self.range.most
        after = self._whole(max(limit * step**steps, limit + self._grain))
        while (height := self._height(after)) is not None and use >= height:
            after = self._whole(max(after * step, after + self._grain))
        return after

    def _lower(self, now: float, use: float, limit: float) -> Move | None:
        policy = self.philosophy
        for rule, window, enough in self._windows(limit):
            high = self._highest(now - window)
            if high <= enough:
                after = self._fit(high)
                span = format_duration(window)
                what = f"at most {self._show(high)} of {self._show(limit)} was used for {span}"
                why = what if rule == "give_back" else f"{what}, {policy.down:.0%} or less"
                return self._move(now, use, limit, after, rule, why)
        return None

    def _lower_at(self, limit: float) -> float:
        """Return when the limit may be lowered if use stays as at the last look; infinite: never."""
        if not self._seen:
            return NEVER
        earliest = max(self._lowered + self._cooldown, self._began)
        soonest = NEVER
        for _, window, enough in self._windows(limit):
            since = self._below_since(enough)
            if since is not None:
                soonest = min(soonest, max(since, self._began) + window)
        return max(soonest, earliest)

    def _windows(self, limit: float) -> tuple[tuple[Rule, float, float], ...]:
        """Return the lowering rules that apply: (rule, window in seconds, highest use in that window)."""
        policy = self.philosophy
        worth = WORTH * limit
        if self._fit(0.0) > worth:
            return ()
        rules: list[tuple[Rule, float, float]] = []
        if self._lent and policy.give_back < NEVER:
            rules.append(("give_back", policy.give_back, self._filling(worth)))
        rules.append(("down", policy.cooldown, min(policy.down * limit, self._filling(worth))))
        return tuple(rules)

    def _filling(self, limit: float) -> float:
        """Return the highest use that fits a limit: the inverse of :meth:`_fit`, to within a grain."""
        policy = self.philosophy
        limit = limit // self._grain * self._grain
        use = limit * policy.aim
        if self._memory:
            slack = (limit - self._headroom) * policy.aim / policy.up
            use = min(use, limit / (1 + policy.margin), slack)
        return use

    def _remember(self, now: float, use: float) -> None:
        seen = self._seen
        since = now
        while seen and seen[-1][1] <= use:
            since = seen.pop()[0]
        seen.append((since, use))
        policy = self.philosophy
        longest = (
            policy.cooldown if policy.give_back == NEVER else max(policy.cooldown, policy.give_back)
        )
        # The use when the window began is that of the last look before it: keep that.
        while len(seen) > 1 and seen[1][0] <= now - longest:
            seen.popleft()

    def _highest(self, since: float) -> float:
        """Return the highest use from ``since`` on, including the use at that time."""
        highest = self._seen[0][1]
        for at, use in self._seen:
            if at > since:
                break
            highest = use
        return highest

    def _below_since(self, enough: float) -> float | None:
        """Return since when no look found more use than that; None if the last one did."""
        since = None
        for at, use in reversed(self._seen):
            if use > enough:
                break
            since = at
        return since

    def _move(
        self, now: float, use: float, limit: float, after: float, rule: Rule, why: str
    ) -> Move:
        return Move(self.resource, limit, after, rule, why, use, now)

    def _show(self, value: float) -> str:
        return show(value, self._unit)
