"""Decides which limits of one agent should move, from its readings and the disk rates in force; writes nothing."""

from __future__ import annotations

from agentres.model.limits import DISKS, NETWORKS, PAGE, Limits, limit_spec
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import NEVER
from agentres.policy.resources import RESOURCES
from agentres.policy.scaling import Move, Philosophy, Scaler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from agentres.model.stats import Reading, Sample
    from agentres.model.units import Max

_GRAINS = {"cpu": 0.01, "memory": PAGE}

_RATE_SECONDS = 0.1
"""The shortest time over which a rate is measured."""

_NETWORK_SECONDS = 0.5
"""Between two looks at an elastic network rate: the kernel does not notify when it is reached."""

_UNBILLED = "unbilled"


class Terms(Record):
    """What an agent may have: ``limits`` with their ranges, and how they move.

    ``share`` is the fraction of the host that agents may use, ``slice`` the cgroup that holds all agents' cgroups.
    """

    limits: Limits
    philosophy: Philosophy
    priority: int
    share: float
    slice: str


class Elastic:
    """Decides how an agent's limits should move.

    ``disks`` maps the name in a disk rate ("": every disk) to device numbers.  ``rate`` returns the disk rate in force for a
    key, None if there is none.  ``now`` and all other times are in seconds, of any clock that does not jump.
    """

    def __init__(
        self,
        terms: Terms,
        now: float,
        disks: Mapping[str, Sequence[str]],
        rate: Callable[[str], int | Max | None],
    ) -> None:
        self._disks = disks
        self._rate = rate
        self._up = terms.philosophy.up
        self._scalers: dict[str, list[Scaler]] = {}
        for key, between in terms.limits.ranges.items():
            scaler = Scaler(key, terms.philosophy, between, now, _GRAINS.get(key, 1))
            self._scalers.setdefault(limit_spec(key).resource, []).append(scaler)
        self._before: dict[str, tuple[float, dict[str, int]]] = {}
        self._rates: dict[str, float] = {}
        self._periods = (0, 0)
        self._packets: dict[str, tuple[int, int]] = {}

    @property
    def resources(self) -> list[str]:
        """The resources to watch."""
        return list(self._scalers)

    def observe(
        self,
        resource: str,
        value: float | None,
        reading: Reading,
        now: float,
        notified: bool = False,
    ) -> Iterator[Move]:
        """Take a resource's value; yield the moves to make.  Each is decided after the one before was made.

        ``notified``: the kernel has notified.
        """
        for scaler in self._scalers.get(resource, ()):
            use, limit, felt = self._figures(scaler.resource, value, reading, now)
            if (move := scaler.observe(now, use, limit, felt, notified)) is not None:
                yield move

    def moved(self, now: float, move: Move, after: float) -> None:
        """Note that the move was made and ``after`` is the limit now."""
        for scaler in self._scalers[limit_spec(move.resource).resource]:
            if scaler.resource == move.resource:
                scaler.moved(now, move, after)

    def due(self, resource: str, now: float) -> float:
        """Return the seconds until the resource must be looked at again."""
        soonest = NEVER
        for scaler in self._scalers.get(resource, ()):
            soonest = min(soonest, scaler.due(now))
            if scaler.resource in NETWORKS:
                soonest = min(soonest, _NETWORK_SECONDS)
        return soonest

    def wake_at(self, limit: float | None) -> float | None:
        """Return the working set at which this memory limit must be raised, for the tripwire; None: no tripwire needed."""
        for scaler in self._scalers.get("memory", ()):
            if limit is not None:
                return scaler.wake_at(limit)
        return None

    def ceiling(self, resource: str) -> float | None:
        """Return the upper end of the limit's range; None if it is not elastic."""
        for scaler in self._scalers.get(resource, ()):
            if scaler.resource == resource:
                return scaler.range.most
        return None

    def _figures(
        self, key: str, value: float | None, reading: Reading, now: float
    ) -> tuple[float | None, float | None, float]:
        """Return the use, the limit, and the fraction of time (or packets) in which the limit had an effect."""
        if (limit := limit_of(key)) is None:
            rate = self._rate(key)
            return self._fastest(key, reading, now), None if rate is None else float(rate), 0.0
        standing, felt = limit(reading), 0.0
        if key == "cpu":
            felt = self._throttled(reading)
        elif key in NETWORKS:
            early = self._early(key, reading)
            # A few packets at once are early at any rate, so the average rate must be high as well.
            met = value is not None and standing is not None and value >= self._up * standing
            felt = early if met else 0.0
        return value, standing, felt

    def _throttled(self, reading: Reading) -> float:
        """Return the fraction of periods since the last look that cpu.max throttled."""
        periods, met = reading.nr_periods or 0, reading.nr_throttled or 0
        before, self._periods = self._periods, (periods, met)
        return (met - before[1]) / (periods - before[0]) if periods > before[0] else 0.0

    def _early(self, key: str, reading: Reading) -> float:
        """Return the fraction of packets since the last look that were delayed or dropped."""
        if key == "net_in":
            figures = reading.rx_packets, reading.rx_delayed_packets, reading.rx_dropped_packets
        else:
            figures = reading.tx_packets, reading.tx_delayed_packets, reading.tx_dropped_packets
        passed, delayed, dropped = (figure or 0 for figure in figures)
        all_before, early_before = self._packets.get(key, (0, 0))
        self._packets[key] = all_now, early_now = passed + dropped, delayed + dropped
        return (early_now - early_before) / (all_now - all_before) if all_now > all_before else 0.0

    def _fastest(self, key: str, reading: Reading, now: float) -> float | None:
        """Return the rate of the busiest of the key's disks since the last look."""
        if reading.disks is None:
            return None
        kind, _, name = key.partition("=")
        totals: dict[str, int] = {}
        for device, *counters in reading.disks:
            totals[device] = counters[DISKS.index(kind)]
        if key == "io_write":  # to which disk these bytes went is not known
            totals[_UNBILLED] = reading.unbilled_bytes or 0
        then, before = self._before.get(key, (now, {}))
        if then < now < then + _RATE_SECONDS:  # so short a time has a request or two: noise
            return self._rates.get(key)
        self._before[key] = (now, totals)
        if now <= then:
            return None
        more = [totals.get(device, 0) - before.get(device, 0) for device in self._disks[name]]
        unbilled = totals.get(_UNBILLED, 0) - before.get(_UNBILLED, 0)
        self._rates[key] = rate = float(max(more, default=0) + unbilled) / (now - then)
        return rate


def limit_of(key: str) -> Callable[[Sample], float | None] | None:
    """Return the function that takes the limit from a reading; None for disk rates, which readings do not have."""
    return None if key.partition("=")[0] in DISKS else RESOURCES[limit_spec(key).resource].limit
