"""Changes the limits of a running agent: all that are asked for, or none."""

from __future__ import annotations

import time

from agentres.kernel import devices, host, registry, tree
from agentres.kernel.actuator import Actuator
from agentres.model import log
from agentres.model.errors import AgentresError, NoRoom, UsageError, reason
from agentres.model.limits import DISKS, EVERY_DISK, LimitError, Limits, Range, read_limits
from agentres.model.native import partial
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import MAX
from agentres.policy.capacity import shortage
from agentres.policy.elastic import Terms
from agentres.run.sharing import take

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentres.kernel.registry import ClaimMark

    Texts = Mapping[str, str | Sequence[str]]


class LimitChange(Record):
    """A changed limit: its key, its value before and after, the text that set it, the seconds it took, and a note to show."""

    key: str
    before: float | str
    after: float | str
    text: str
    took: float
    note: str = ""


def understand(texts: Texts, standing: Limits) -> Limits:
    """Return the limits after these texts are set; UsageError names the limit, its text and what was expected."""
    try:
        return read_limits(texts, host.read(), standing)
    except LimitError as error:
        raise UsageError(f"--{error.key.replace('_', '-')} {error.text}: {error}") from None


class Resize:
    """Sets the limits in ``texts`` on an agent; on AgentresError none of them is set.

    ``within`` may lower or refuse them.  ``terms`` are those that hold before, :attr:`terms` after it; :attr:`changes` lists what was changed.
    """

    def __init__(
        self,
        actuator: Actuator,
        terms: Terms,
        texts: Texts,
        within: Callable[[Limits], Limits] = lambda limits: limits,
    ) -> None:
        self._actuator = actuator
        self._before = terms
        self._limits = within(understand(texts, terms.limits))
        self.changes: list[LimitChange] = []
        given = {
            f"{key}={device}" if device else key: text
            for key, some in texts.items()
            for text in ([some] if isinstance(some, str) else some)
            for device in [text.rpartition("=")[0] if key in DISKS else ""]
        }
        for key in given:
            self._know(key)
        done: dict[str, Callable[[], None]] = {}
        try:
            for key, text in given.items():
                start, before = time.monotonic(), actuator.standing(key)
                done[key] = self._undo(key, before)
                after = self._write(key, before, self._first(key, before))
                took = time.monotonic() - start
                self.changes.append(LimitChange(key, before, after, text, took, self._note(key)))
        except (AgentresError, OSError, ImportError) as error:
            self._put_back(done, key)
            if isinstance(error, OSError):
                raise AgentresError(
                    f"cannot set --{key.replace('_', '-')}: {reason(error)}"
                ) from error
            raise
        self.terms = terms.but(limits=self._limits)

    def _know(self, key: str) -> None:
        """Find the devices that a disk limit applies to; UsageError if there are none."""
        kind, _, name = key.partition("=")
        if kind not in DISKS:
            return
        found = self._actuator.disks.get(name, ())
        if name and not found:
            found = tuple(devices.behind(name))
        self._actuator.add_disk(name, found)
        if not found:
            raise UsageError(
                f"--{kind.replace('_', '-')}: no disk is to be seen for {name or 'it'}"
            )

    def _first(self, key: str, before: float | str) -> float | str:
        """Return the value to write: for a range, the value in it that is nearest to the standing limit."""
        between = self._limits.ranges.get(key)
        if between is None:
            kind, _, name = key.partition("=")
            value = getattr(self._limits, kind)
            found: float | str = value[name or EVERY_DISK] if kind in DISKS else value
            return found
        if before == MAX:
            return between.most
        return max(between.least, min(between.most, float(before)))

    def _write(self, key: str, before: float | str, after: float | str) -> float | str:
        """Write a limit; return what stands now."""
        if key == "cpuset" and (asked := self._limits.cpuset) is not None and asked != MAX:
            from agentres.run import pinning

            write = partial(self._actuator.write, key)
            after = pinning.take(asked, self._actuator.cgroup.path, write)
            self._limits = self._limits.but(cpuset=after)
        elif key != "memory":
            self._actuator.write(key, after, elastic=key in self._limits.ranges)
        elif after != MAX and (before == MAX or float(after) < float(before)):
            self._actuator.lower_memory(int(after))
            self._mark_claim(int(after))
        else:
            self._raise(before, after)
        return after

    def _raise(self, before: float | str, after: float | str) -> None:
        if after == MAX:
            self._actuator.write_memory(MAX)
            self._mark_claim(0)
            return
        wanted, terms = int(after), self._before
        budget = tree.budget(terms.slice, host.memory(), terms.share)
        if before == MAX:  # there is no limit yet to raise from
            before = 0
        got = take(
            terms.slice,
            budget,
            self._actuator.cgroup.path,
            int(before),
            wanted,
            self._actuator.write_memory,
        )
        if got < wanted:
            why = shortage(budget, tree.claims(terms.slice), wanted - got)
            raise NoRoom(why, "set less, or wait until others have ended")
        self._mark_claim(wanted)

    def _note(self, key: str) -> str:
        if key != "cpuset" or not self._actuator.bound:
            return ""
        from agentres.run.pinning import BY_AFFINITY

        return BY_AFFINITY

    def _mark_claim(self, limit: int) -> None:
        """Tell the others the new claim; an elastic limit then claims for itself (:mod:`agentres.run.sharing`)."""
        between: Range | None = self._limits.ranges.get("memory")
        least = limit if between is None else int(between.least)
        most = 0 if between is None else int(between.most)
        registry.mark_claim(
            self._actuator.cgroup.fd, registry.ClaimMark(self._before.priority, least, most=most)
        )

    def _put_back(self, done: dict[str, Callable[[], None]], failed: str) -> None:
        lost = []
        for key in reversed(done):
            try:
                done[key]()
            except (AgentresError, OSError) as error:
                # The limit that failed was perhaps never changed: an error in putting it back is no loss.
                log.debug(__name__, "%s is not put back: %s", key, error)
                if key != failed:
                    lost.append(f"{key} is not as it was: {error}")
        if lost:
            raise AgentresError("; ".join(lost))

    def _undo(self, key: str, before: float | str) -> Callable[[], None]:
        claim_mark: ClaimMark | None = registry.claim_mark(self._actuator.cgroup.path)

        def undo() -> None:
            if key == "memory":
                self._actuator.write_memory(MAX if before == MAX else int(before))
                if claim_mark is not None:
                    registry.mark_claim(self._actuator.cgroup.fd, claim_mark)
            else:
                self._actuator.write(key, before, elastic=key in self._before.limits.ranges)

        return undo
