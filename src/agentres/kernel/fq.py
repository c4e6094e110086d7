"""Installs the queueing discipline fq (tc-fq(8)), which delays packets that an agent sends too fast.

Our programs stamp each packet with its departure time.  fq keeps the packet until then; any other discipline
sends it at once, so that the excess has to be dropped.  fq changes the host for all processes: it is installed
only on command, in place of the kernel's own choice, and removed by another command.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from agentres.model.errors import AgentresError, reason
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

STATE = "/run/agentres/pacing.json"
"""The interfaces that have fq from us, with what they had before; gone at the next boot, like fq."""

_ROOT = 0xFFFFFFFF  # TC_H_ROOT
_UP = 1  # IFF_UP
_MQ_HANDLE = 0x10000  # 1:, so that mq's queues are 1:1, 1:2 …


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface that is up, and its queueing disciplines.

    ``configured``: somebody chose them; else the kernel did.  ``hardware``: a device outside this kernel is behind
    the interface.
    """

    name: str
    index: int
    kinds: tuple[str, ...]
    configured: bool
    hardware: bool

    @property
    def delays(self) -> bool:
        """Whether packets wait for their departure time."""
        return self.kinds[-1:] == ("fq",) and set(self.kinds) <= {"mq", "fq"}


def interfaces() -> list[Interface]:
    """Return all interfaces that are up, without loopback.  AgentresError where the kernel does not tell."""
    try:
        with _netlink() as netlink:
            return list(_interfaces(netlink))
    except OSError as error:
        raise AgentresError(f"cannot read the network interfaces: {reason(error)}") from error


def install(names: list[str]) -> list[str]:
    """Install fq on the interfaces; none named: those with hardware behind them.  Return what was done, a line each.

    Raises AgentresError, with nothing changed, if one is not up or somebody has configured it.
    """
    found = {each.name: each for each in interfaces()}
    for name in names:
        if name not in found:
            raise AgentresError(f"no interface {name} is up here")
    chosen = [found[n] for n in names] or [each for each in found.values() if each.hardware]
    if not chosen:
        raise AgentresError(
            "no interface has hardware behind it", "name those that packets leave by"
        )
    for each in chosen:
        if each.configured and not each.delays:
            kinds = ", ".join(each.kinds)
            raise AgentresError(f"{each.name} has {kinds} because somebody said so: not touched")
    done = []
    state = _state()
    for each in chosen:
        if each.delays:
            done.append(f"{each.name} has fq already")
            continue
        state[each.name] = asdict(each)
        _keep(state)  # before the change: a half-done change must be undone too
        _change(each)
        done.append(f"{each.name}: fq in the place of {', '.join(each.kinds)}")
    return done


def remove() -> list[str]:
    """Remove our fq, so that the kernel puts back its own choice.  Return what was done, a line each."""
    state, done = _state(), []
    there = {each.name: each for each in interfaces()}
    for name, was in list(state.items()):
        before = ", ".join(was["kinds"])
        if name not in there or not there[name].delays:
            done.append(f"{name}: not ours any more")
        else:
            with _netlink() as netlink:
                netlink.tc("del", index=there[name].index, parent=_ROOT)
            now = ", ".join({each.name: each for each in interfaces()}[name].kinds)
            done.append(f"{name}: {now}" + ("" if now == before else f", which was {before}"))
        del state[name]
        _keep(state)
    return done or ["no interface has fq from us"]


def _netlink() -> Any:
    from pyroute2 import IPRoute
    from pyroute2.netlink.rtnl import tcmsg

    # pyroute2 puts a kind without an entry at the root, whatever the parent.  fq needs no options here.
    tcmsg.plugins.setdefault("fq", tcmsg.sched_template)
    return IPRoute()


def _interfaces(netlink: Any) -> Iterator[Interface]:
    disciplines: dict[int, list[Any]] = {}
    for one in netlink.get_qdiscs():
        disciplines.setdefault(one["index"], []).append(one)
    for link in netlink.get_links():
        name = link.get_attr("IFLA_IFNAME")
        if name == "lo" or not link["flags"] & _UP:
            continue
        # The root first; clsact and ingress are left out: they delay nothing.
        own = sorted(
            (q for q in disciplines.get(link["index"], ()) if q["parent"] >> 16 != 0xFFFF or q["parent"] == _ROOT),
            key=lambda q: q["parent"] != _ROOT,
        )  # fmt: skip
        yield Interface(
            name,
            link["index"],
            tuple(dict.fromkeys(q.get_attr("TCA_KIND") for q in own)),
            any(q["handle"] for q in own),
            os.path.exists(f"/sys/class/net/{name}/device"),
        )


def _change(interface: Interface) -> None:
    try:
        with _netlink() as netlink:
            if interface.kinds[:1] != ("mq",):
                netlink.tc("replace", "fq", index=interface.index, parent=_ROOT, handle=0)
                return
            # The kernel's own mq has no handle, so its queues could not be named.
            netlink.tc("replace", "mq", index=interface.index, parent=_ROOT, handle=_MQ_HANDLE)
            queues = [
                q["parent"]
                for q in netlink.get_qdiscs(index=interface.index)
                if q["parent"] & 0xFFFF0000 == _MQ_HANDLE
            ]
            for queue in queues:
                netlink.tc("replace", "fq", index=interface.index, parent=queue, handle=0)
    except Exception as error:  # pyroute2's exceptions are no OSErrors
        raise AgentresError(f"cannot give {interface.name} fq: {error}") from error


def _state() -> dict[str, Any]:
    try:
        with open(STATE) as file:
            found: dict[str, Any] = json.load(file)
            return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise AgentresError(f"cannot read {STATE}: {error}") from error


def _keep(state: dict[str, Any]) -> None:
    try:
        if not state:
            os.unlink(STATE)
            return
        os.makedirs(os.path.dirname(STATE), mode=0o755, exist_ok=True)
        with open(f"{STATE}.new", "w") as file:
            json.dump(state, file)
        os.rename(f"{STATE}.new", STATE)
    except OSError as error:
        raise AgentresError(f"cannot write {STATE}: {reason(error)}", "only root may") from error
