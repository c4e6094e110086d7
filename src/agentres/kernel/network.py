"""Counts and limits what one agent sends and receives, by cgroup BPF.

``network.bpf.c`` beside this file is the program and explains how it works; ``scripts/bpf`` compiles it to
``network.bpf.o``.  Rates and counters are in one page that the kernel and we share, so that a change
applies from the next packet on and a look costs nothing.  The programs belong to the agent's cgroup:
they outlive us and vanish with it.
"""

from __future__ import annotations

import errno
import os
import struct

from agentres.kernel import bpf, registry
from agentres.model import log
from agentres.model.errors import NotEnforceable, reason
from agentres.model.limits import LOOPBACKS, NetworkMax
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import MAX

if TYPE_CHECKING:
    from agentres.kernel.cgroup import Cgroup
    from agentres.model.units import Max

OBJECT = os.path.join(os.path.dirname(__file__), "network.bpf.o")

NAME = "agentres_net"
"""The name of the programs and their map, by which they are found again; at most 15 characters."""

HORIZON = 0.5
"""The most seconds by which a packet may be delayed, where something can hold it back."""

BURST = 0.25
"""Seconds' worth of the rate that may come in at once.  With 20 to 50 ms TCP gets 14 to 55 % of the rate at short
round trips, from 200 ms on all of it."""

# struct direction in network.bpf.c: one for sent packets, followed by one for received ones.
_SIZE = 128
_OUT, _IN = 0, _SIZE
_LIMIT = struct.Struct("=QQ")
_LOOPBACK = struct.Struct("=Q")
_LOOPBACK_AT = 24
_COUNTERS = struct.Struct("=8Q")
_COUNTERS_AT = 32
_COUNTED = (
    "bytes", "packets", "dropped_bytes", "dropped_packets",
    "loopback_bytes", "loopback_packets", "delayed_bytes", "delayed_packets",
)  # fmt: skip
_RX, _TX = (tuple(f"{way}_{name}" for name in _COUNTED) for way in ("rx", "tx"))

FIELDS = (*_RX, *_TX, "net_in_limit", "net_out_limit")
"""The keys of :meth:`Network.figures`: fields of :class:`agentres.model.stats.Sample`."""

_WAYS = (
    ("sends", "cgroup_skb/egress", bpf.EGRESS),
    ("receives", "cgroup_skb/ingress", bpf.INGRESS),
)


class Programs:
    """The programs of one agent, loaded but not attached to anything.

    Raises NotEnforceable.  The kernel needs some milliseconds to verify them.
    """

    def __init__(self) -> None:
        self._fds: list[int] = []
        try:
            with open(OBJECT, "rb") as file:
                object_file = bpf.parse(file.read())
            self._map = bpf.create_map(len(object_file.data), NAME)
            self._fds.append(self._map)
            for _, section, kind in _WAYS:
                code = bpf.link(object_file, section, self._map)
                self._fds.append(bpf.load(code, kind, NAME))
        except PermissionError:
            self.close()
            raise NotEnforceable(
                "cgroup BPF needs CAP_BPF and CAP_NET_ADMIN, which root has"
            ) from None
        except (OSError, ValueError) as error:
            self.close()
            raise NotEnforceable(f"no cgroup BPF: {_words(error)}") from error

    def attach(self, cgroup: Cgroup) -> Network:
        """Count what the processes of the cgroup send and receive from now on.  Raises NotEnforceable.

        A socket belongs to the cgroup in which it was made: attach before the first process enters.
        """
        try:
            for fd, (_, _, kind) in zip(self._fds[1:], _WAYS, strict=True):
                bpf.attach(cgroup.fd, fd, kind)
            return Network(cgroup, os.dup(self._map))
        except (OSError, ValueError) as error:
            raise NotEnforceable(f"no cgroup BPF on {cgroup.path}: {_words(error)}") from error

    def close(self) -> None:
        """Close their descriptors: programs that are not attached vanish."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


class Network:
    """The network of the agent in ``cgroup``; its programs use the map ``map_fd``, which this closes.  OSError."""

    def __init__(self, cgroup: Cgroup, map_fd: int) -> None:
        self._cgroup = cgroup
        try:
            self._page = bpf.share_map(map_fd, 2 * _SIZE)
        finally:
            os.close(map_fd)

    def close(self) -> None:
        """Unmap the page; the limits stay."""
        bpf.unshare_map(self._page)

    def read(self) -> NetworkMax:
        """Return the limits in force."""
        loopback = _LOOPBACK.unpack_from(self._page, _OUT + _LOOPBACK_AT)[0]
        return NetworkMax(self._rate(_IN), self._rate(_OUT), LOOPBACKS[bool(loopback)])

    def write(self, wanted: NetworkMax) -> None:
        """Limit the agent to ``wanted`` from its next packet on."""
        log.debug(__name__, "%s: %s", self._cgroup.path, wanted.line().text)
        # The mark first: a comparison in between must not blame somebody else for the change.
        registry.mark_network(self._cgroup.fd, wanted.line().text)
        loopback = LOOPBACKS.index(wanted.loopback)
        for block, rate, seconds in (
            (_IN, wanted.net_in, BURST),
            (_OUT, wanted.net_out, HORIZON),
        ):
            _LIMIT.pack_into(self._page, block, 0 if rate == MAX else rate, int(seconds * 1e9))
            _LOOPBACK.pack_into(self._page, block + _LOOPBACK_AT, loopback)

    def figures(self) -> dict[str, int | None]:
        """Return the counts since the agent's launch, and the limits, by :data:`FIELDS`."""
        received = _COUNTERS.unpack_from(self._page, _IN + _COUNTERS_AT)
        sent = _COUNTERS.unpack_from(self._page, _OUT + _COUNTERS_AT)
        limits = (None if rate == MAX else rate for rate in (self._rate(_IN), self._rate(_OUT)))
        return dict(zip(FIELDS, (*received, *sent, *limits), strict=True))

    def undone(self) -> list[str]:
        """Return what somebody else has changed, a line each."""
        found = [
            f"{NAME}: what it {does} is not limited any more: its program was taken off"
            for does, _, kind in _WAYS
            if not _attached(self._cgroup.fd, kind)
        ]
        standing, marked = self.read().line().text, registry.network(self._cgroup.fd)
        if marked and marked != standing:
            found.append(f"network is {standing!r}, was set to {marked!r}")
        return found

    def _rate(self, block: int) -> int | Max:
        rate: int = _LIMIT.unpack_from(self._page, block)[0]
        return rate or MAX


def find(cgroup: Cgroup) -> Network:
    """Return the network of a running agent, from what is attached to its cgroup.  Raises NotEnforceable."""
    try:
        for number in bpf.attached(cgroup.fd, bpf.EGRESS):
            program = bpf.program(number)
            if program.name == NAME and program.maps:
                return Network(cgroup, bpf.open_map(program.maps[0]))
    except (OSError, ValueError) as error:
        raise NotEnforceable(
            f"cannot read what is attached to {cgroup.path}: {_words(error)}"
        ) from error
    raise NotEnforceable(f"nothing counts or limits the network of {cgroup.path}")


def _attached(cgroup: int, kind: int) -> bool:
    return any(_name(number) == NAME for number in bpf.attached(cgroup, kind))


def _name(number: int) -> str:
    try:
        return bpf.program(number).name
    except OSError as error:
        if error.errno == errno.ENOENT:  # it vanished between the two calls
            return ""
        raise


def _words(error: OSError | ValueError) -> str:
    return reason(error) if isinstance(error, OSError) else str(error)
