"""One agent's part of the memory that all agents share: what it may take, what it gives, what it waits for.

Supervisors decide raises and contention under the slice's lock, from what the cgroup tree says
(:mod:`agentres.kernel.tree`).  Each changes only its own agent, and thaws orphans; the bell makes the others look.
"""

from __future__ import annotations

import time

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
    from collections.abc import Callable

    from agentres.policy.contention import Step

CONTEND_AGAIN = 0.25
"""Seconds between two looks at a tree in which an agent is short or frozen; the bell asks for others."""

KEEPS = 60.0
"""Seconds for which an agent that could hand nothing back is not asked again."""

_BUDGET_KEPT = 1.0
"""Seconds for which a budget that was read is used: no host shrinks faster."""

_GROWTH_PATIENCE = 0.5
"""Seconds to wait for the lock before growing without it: meanwhile the agent waits at its tripwire."""


def take(
    slice_path: str,
    budget: Budget,
    path: str,
    before: int,
    wanted: int,
    write: Callable[[int], None],
) -> int:
    """Raise the limit of the agent at ``path`` as far as there is room, by ``write``; return it, in bytes."""
    wanted = wanted // PAGE * PAGE

    def grow() -> int:
        after = _granted(tree.claims(slice_path), budget, path, before, wanted)
        if after > before:
            write(after)
        return after

    try:
        with Lock(slice_path, _GROWTH_PATIENCE):
            return grow()
    except Locked as error:
        # A process that keeps the lock must not keep agents from growing.  Two may then take the same
        # room; the slice's own limit still holds.
        log.debug(__name__, "%s", error)
        return grow()


def _granted(claims: list[Claim], budget: Budget, path: str, before: int, wanted: int) -> int:
    mine = next((claim for claim in claims if claim.path == path), None)
    if mine is None:  # its marks could not be written, so nobody counts it either
        return wanted
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    left = budget.but(limit=budget.limit - contention.reserved(claims, mine, now))
    return max(before, grant(left, claims, mine.path, before, wanted) // PAGE * PAGE)


class Sharing:
    """The share of the agent in ``cgroup``; ``share`` is the part of the host that all agents may have.

    ``slice_path`` is the cgroup that holds all of them.  ``carry_out`` does what they need from this one, and
    returns whether it did anything.
    """

    def __init__(
        self,
        cgroup: Cgroup,
        slice_path: str,
        share: float,
        claim_mark: registry.ClaimMark,
        carry_out: Callable[[Step], bool],
    ) -> None:
        self._cgroup = cgroup
        self._slice = slice_path
        self._share = share
        self._claim_mark = claim_mark
        self._carry_out = carry_out
        self._stuck = False
        self._budget: Budget | None = None
        self._budget_until = 0.0
        self.why = ""
        """What the agent waits for, in words."""
        self.was = ""
        """What it waited for before it stopped waiting, as it also does when it was killed for that."""
        self.released = False
        """Whether it wants what nobody will give: it is left to run into its hard limit."""
        self.bell = Bell(slice_path)
        self._mark(0, keep_since=True)

    def close(self) -> None:
        """Stop waiting, and let the others have what the agent had."""
        self.want(0)
        self.bell.ring()
        self.bell.close()

    @property
    def wants(self) -> int:
        """The limit that it was refused and waits for, in bytes; 0: it has all that it needs."""
        return self._claim_mark.wants

    @property
    def stuck(self) -> bool:
        """Whether it cannot go on without more."""
        return self._stuck and self.wants > 0

    def take(self, before: int, wanted: int, write: Callable[[int], None]) -> int:
        """Raise the limit as far as there is room, by ``write``; return it, in bytes."""
        after = take(self._slice, self.budget(), self._cgroup.path, before, wanted, write)
        if after > before:
            self.was = ""
        return after

    def budget(self) -> Budget:
        """Return what all agents together may have."""
        now = time.monotonic()
        if self._budget is None or now >= self._budget_until:
            self._budget = tree.budget(self._slice, host.memory(), self._share)
            self._budget_until = now + _BUDGET_KEPT
        return self._budget

    def want(self, wants: int, stuck: bool = False) -> None:
        """Publish the limit that the agent needs and cannot get, in bytes (0: none any more), and ring the bell.

        ``stuck``: it is at its tripwire, and cannot go on without.  The time since then counts in contention.
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
        """Take note that the agent was frozen, for the reason ``why``, or thawed (no reason)."""
        self.why = why
        self._mark(self.wants, keep_since=False)

    def keep(self) -> None:
        """Tell the others that for now none of its memory goes to swap."""
        registry.mark_kept(self._cgroup.fd, time.clock_gettime(time.CLOCK_BOOTTIME) + KEEPS)

    def _mark(self, wants: int, keep_since: bool) -> None:
        since = self._claim_mark.since if keep_since else time.clock_gettime(time.CLOCK_BOOTTIME)
        self._claim_mark = self._claim_mark.but(wants=wants, since=since)
        try:
            registry.mark_claim(self._cgroup.fd, self._claim_mark)
        except OSError as error:
            log.debug(__name__, "nobody is told what is wanted: %s", error)

    def contend(self) -> float:
        """Do this agent's part of what the tree asks for; return the seconds until the next look, at most."""
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
        """Note whether the agent is released now; when it no longer is, as others made room, it waits again."""
        if self.released and not released and self.wants:
            self.why = shortage(self.budget(), claims, self.wants)
        self.released = released

    def _thaw(self, step: Step) -> bool:
        """Thaw an agent whose supervisor is gone; return whether we may."""
        try:
            tree.thaw(step.path)
        except OSError as error:  # another user's: its deadman thaws it, or a process of that user
            log.debug(__name__, "%s stays frozen: %s", step.path, error)
            return False
        log.debug(__name__, "%s is thawed: %s", step.path, step.why)
        return True
