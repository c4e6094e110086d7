"""Which limits of one agent are to move, by what is read of it and by the disk rates that stand; writes nothing."""

from __future__ import annotations

from agentres.model.limits import DISKS, NETWORKS, PAGE, Limits, written
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import NEVER
from agentres.policy.resources import RESOURCES
from agentres.policy.scaling import Move, Philosophy, Scaler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from agentres.model.stats import Sample
    from agentres.model.units import Max

_GRAINS = {"cpu": 0.01, "memory": PAGE}

_RATE_SECONDS = 0.1
"""A rate is over as much time at the least."""

_NETWORK_SECONDS = 0.5
"""Between two looks at an elastic rate of the network: the kernel tells nobody that one is met."""

_UNBILLED = "unbilled"


class Terms(Record):
    """What an agent may have: ``limits`` with their ranges, and how they move.

    ``share`` is the agents' part of the host, ``slice`` the cgroup that holds all their homes.
    """

    limits: Limits
    philosophy: Philosophy
    priority: int
    share: float
    slice: str


class Elastic:
    """Says how an agent's limits are to move.

    ``disks`` are the device numbers behind each name that a disk rate has ("": every disk); ``rate`` has the one that stands for
    a key, None where there is none.  ``now`` and all other times are in seconds, of any clock that does not jump.
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
            self._scalers.setdefault(written(key).resource, []).append(scaler)
        self._before: dict[str, tuple[float, dict[str, int]]] = {}
        self._rates: dict[str, float] = {}
        self._periods = (0, 0)
        self._packets: dict[str, tuple[int, int]] = {}

    @property
    def resources(self) -> list[str]:
        """The resources that are to be looked at."""
        return list(self._scalers)

    def observe(
        self, resource: str, value: float | None, reading: Sample, now: float, event: bool = False
    ) -> Iterator[Move]:
        """Take a value of what was read; the moves that are to be made, each judged when the one before was made.

        ``event``: the kernel has notified.
        """
        for scaler in self._scalers.get(resource, ()):
            use, limit, felt = self._figures(scaler.resource, value, reading, now)
            if (move := scaler.observe(now, use, limit, felt, event)) is not None:
                yield move

    def moved(self, now: float, move: Move, after: float) -> None:
        """The move was made, and ``after`` stands."""
        for scaler in self._scalers[written(move.resource).resource]:
            if scaler.resource == move.resource:
                scaler.moved(now, move, after)

    def due(self, resource: str, now: float) -> float:
        """Seconds until the next look at the resource, at the latest."""
        soonest = NEVER
        for scaler in self._scalers.get(resource, ()):
            soonest = min(soonest, scaler.due(now))
            if scaler.resource in NETWORKS:
                soonest = min(soonest, _NETWORK_SECONDS)
        return soonest

    def wake_at(self, limit: float | None) -> float | None:
        """The working set at which memory is to be raised from this limit, for the tripwire; None: nothing to wait for."""
        for scaler in self._scalers.get("memory", ()):
            if limit is not None:
                return scaler.wake_at(limit)
        return None

    def ceiling(self, resource: str) -> float | None:
        """What the limit may become at the most, where it is elastic."""
        for scaler in self._scalers.get(resource, ()):
            if scaler.resource == resource:
                return scaler.range.most
        return None

    def _figures(
        self, key: str, value: float | None, reading: Sample, now: float
    ) -> tuple[float | None, float | None, float]:
        """What is used, the limit, and how much of the time it was felt."""
        if (limit := limit_of(key)) is None:
            rate = self._rate(key)
            return self._fastest(key, reading, now), None if rate is None else float(rate), 0.0
        standing, felt = limit(reading), 0.0
        if key == "cpu":
            felt = self._throttled(reading)
        elif key in NETWORKS:
            early = self._early(key, reading)
            # A few packets at once are early at any rate: it is felt where the rate is reached besides.
            met = value is not None and standing is not None and value >= self._up * standing
            felt = early if met else 0.0
        return value, standing, felt

    def _throttled(self, reading: Sample) -> float:
        """The part of the periods since the last look in which cpu.max was met."""
        periods, met = reading.nr_periods or 0, reading.nr_throttled or 0
        before, self._periods = self._periods, (periods, met)
        return (met - before[1]) / (periods - before[0]) if periods > before[0] else 0.0

    def _early(self, key: str, reading: Sample) -> float:
        """The part of the packets since the last look that were held back or dropped."""
        if key == "net_in":
            figures = reading.rx_packets, reading.rx_delayed_packets, reading.rx_dropped_packets
        else:
            figures = reading.tx_packets, reading.tx_delayed_packets, reading.tx_dropped_packets
        passed, delayed, dropped = (figure or 0 for figure in figures)
        all_before, early_before = self._packets.get(key, (0, 0))
        self._packets[key] = all_now, early_now = passed + dropped, delayed + dropped
        return (early_now - early_before) / (all_now - all_before) if all_now > all_before else 0.0

    def _fastest(self, key: str, reading: Sample, now: float) -> float | None:
        """The rate of the one of these disks that was used most since the last look."""
        if reading.disks is None:
            return None
        kind, _, name = key.partition("=")
        totals: dict[str, int] = {}
        for device, *counters in reading.disks:
            totals[device] = counters[DISKS.index(kind)]
        if key == "io_write":  # to which disk that went nobody can tell
            totals[_UNBILLED] = reading.unbilled_bytes or 0
        then, before = self._before.get(key, (now, {}))
        if then < now < then + _RATE_SECONDS:  # a request or two in that: noise, and no rate
            return self._rates.get(key)
        self._before[key] = (now, totals)
        if now <= then:
            return None
        more = [totals.get(device, 0) - before.get(device, 0) for device in self._disks[name]]
        unbilled = totals.get(_UNBILLED, 0) - before.get(_UNBILLED, 0)
        self._rates[key] = rate = float(max(more, default=0) + unbilled) / (now - then)
        return rate


def limit_of(key: str) -> Callable[[Sample], float | None] | None:
    """Takes the limit that stands from a reading; None for disk rates, of which none is read."""
    return None if key.partition("=")[0] in DISKS else RESOURCES[written(key).resource].limit
