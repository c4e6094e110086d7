"""One agent's part of the memory that all share: what it may take, what it gives, what it waits for.

Raises, and what happens when nothing is left, are settled under the slice's lock from what the tree says
(:mod:`agentres.kernel.tree`).  A supervisor changes nothing but its own agent; the bell has the others look.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from agentres.kernel import host, registry, tree
from agentres.kernel.bell import Bell
from agentres.kernel.cgroup import Cgroup
from agentres.kernel.lock import Lock, Locked
from agentres.model import log
from agentres.model.errors import AgentresError
from agentres.model.limits import PAGE
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import NEVER
from agentres.policy import contention
from agentres.policy.capacity import Budget, Claim, grant, shortage

if TYPE_CHECKING:
    from agentres.policy.contention import Step

CONTEND_AGAIN = 0.25
"""Seconds between two looks at a tree in which somebody goes short, beside those that the bell asks for."""

KEEPS = 60.0
"""Seconds after which one is asked again of which nothing could be had."""

_BUDGET_KEPT = 1.0
"""Seconds for which the budget is not read anew: no host shrinks faster than that."""

_GROWTH_PATIENCE = 0.5
"""Seconds to wait for the lock before growing without it: the agent waits at its tripwire meanwhile."""


def take(
    slice_path: str,
    budget: Budget,
    path: str,
    before: int,
    wanted: int,
    write: Callable[[int], None],
) -> int:
    """Raise the limit of the agent at ``path`` as far as there is room; ``write`` writes it.  What it is now."""
    wanted = wanted // PAGE * PAGE
    try:
        with Lock(slice_path, _GROWTH_PATIENCE):
            after = _granted(tree.claims(slice_path), budget, path, before, wanted)
            if after > before:
                write(after)
    except Locked as error:
        # Whoever holds it shall keep nobody from growing.  Two may then take the same room, for which
        # the slice's own limit stands.
        log.debug(__name__, "%s", error)
        after = _granted(tree.claims(slice_path), budget, path, before, wanted)
        if after > before:
            write(after)
    return after


def _granted(claims: list[Claim], budget: Budget, path: str, before: int, wanted: int) -> int:
    mine = next((claim for claim in claims if claim.path == path), None)
    if mine is None:  # its marks could not be made: nobody counts it either
        return wanted
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    left = budget.but(limit=budget.limit - contention.reserved(claims, mine, now))
    return max(before, grant(left, claims, mine.path, before, wanted) // PAGE * PAGE)


class Sharing:
    """The share of the agent in ``cgroup``, one of those in ``slice``; ``share`` is theirs of the host.

    ``carry_out`` does what is asked of this agent; whether it was anything.
    """

    def __init__(
        self,
        cgroup: Cgroup,
        slice_path: str,
        share: float,
        claimed: registry.ClaimMark,
        carry_out: Callable[[Step], bool],
    ) -> None:
        self._cgroup = cgroup
        self._slice = slice_path
        self._share = share
        self._claimed = claimed
        self._carry_out = carry_out
        self._stuck = False
        self._budget: Budget | None = None
        self._budget_until = 0.0
        self.why = ""
        """What it waits for, in words."""
        self.was = ""
        """What it waited for until it needed it no more, which is how it looks when it was killed for that."""
        self.released = False
        """Whether it wants what nobody will give: its hard limit is next."""
        self.bell = Bell(slice_path)
        self._mark(0, keep_since=True)

    def close(self) -> None:
        """Leave the others what it had."""
        self.want(0)
        self.bell.ring()
        self.bell.close()

    @property
    def wants(self) -> int:
        """The bytes that it was refused and waits for; 0: it has all that it needs."""
        return self._claimed.wants

    @property
    def stuck(self) -> bool:
        """Whether it does not get on without them."""
        return self._stuck and self.wants > 0

    def take(self, before: int, wanted: int, write: Callable[[int], None]) -> int:
        """Raise the limit as far as there is room; ``write`` writes it.  What it is now."""
        after = take(self._slice, self.budget(), self._cgroup.path, before, wanted, write)
        if after > before:
            self.was = ""
        return after

    def budget(self) -> Budget:
        """What all agents together may have."""
        now = time.monotonic()
        if self._budget is None or now >= self._budget_until:
            self._budget = tree.budget(self._slice, host.memory(), self._share)
            self._budget_until = now + _BUDGET_KEPT
        return self._budget

    def want(self, wants: int, stuck: bool = False) -> None:
        """Say what is needed and cannot be had, in bytes, and have the others look; 0: nothing any more.

        ``stuck``: it has come to its tripwire, and does not get on without.  Since when counts.
        """
        if (wants, stuck) == (self.wants, self._stuck):
            return
        if wants and not self.wants:
            self.why = shortage(self.budget(), tree.claims(self._slice), wants)
        elif not wants:
            self.was, self.why, self.released = self.why, "", False
        same = bool(wants) == bool(self.wants) and stuck == self._stuck
        self._stuck = stuck
        self._mark(wants, keep_since=same)
        self.bell.ring()

    def stopped(self, why: str) -> None:
        """The agent was frozen, or thawed where there is no reason."""
        self.why = why
        self._mark(self.wants, keep_since=False)

    def keep(self) -> None:
        """Tell the others that no memory of it goes to swap for now."""
        registry.mark_kept(self._cgroup.fd, time.clock_gettime(time.CLOCK_BOOTTIME) + KEEPS)

    def _mark(self, wants: int, keep_since: bool) -> None:
        since = self._claimed.since if keep_since else time.clock_gettime(time.CLOCK_BOOTTIME)
        self._claimed = self._claimed.but(wants=wants, since=since)
        try:
            registry.mark_claim(self._cgroup.fd, self._claimed)
        except OSError as error:
            log.debug(__name__, "nobody is told what is wanted: %s", error)

    def contend(self) -> float:
        """Do our part in what the tree asks for; seconds until it should be asked again, at the latest."""
        done = False
        try:
            with Lock(self._slice):
                claims = tree.claims(self._slice)
                now = time.clock_gettime(time.CLOCK_BOOTTIME)
                steps = contention.decide(self.budget(), claims, now)
                mine = [step for step in steps if step.path == self._cgroup.path]
                for step in mine:
                    done = self._carry_out(step) or done
                self._hold(any(step.kind == "release" for step in mine), claims)
                orphans = {claim.path for claim in claims if claim.orphan}
                for step in steps:
                    if step.kind == "thaw" and step.path in orphans:
                        done = self._thaw(step) or done
        except (AgentresError, OSError) as error:
            log.debug(__name__, "not now: %s", error)
            return CONTEND_AGAIN
        if done:
            self.bell.ring()
        scarce = any(claim.wants or claim.frozen for claim in claims)
        return CONTEND_AGAIN if scarce else NEVER

    def _hold(self, released: bool, claims: list[Claim]) -> None:
        """Whether it meets its hard limit, by what is asked for now: others may have made room again."""
        if self.released and not released and self.wants:
            self.why = shortage(self.budget(), claims, self.wants)
        self.released = released

    def _thaw(self, step: Step) -> bool:
        """Thaw another agent, which nobody else is left to do; whether we may."""
        try:
            tree.thaw(step.path)
        except OSError as error:  # another user's: its deadman does, or somebody of that user
            log.debug(__name__, "%s stays frozen: %s", step.path, error)
            return False
        log.debug(__name__, "%s is thawed: %s", step.path, step.why)
        return True
