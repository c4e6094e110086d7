"""Wires a network namespace to the host: veth, address, route, NAT.  A short-lived program, run as root.

    python -m agentres.kernel.isolate up PID      wire up the network that process PID is in
    python -m agentres.kernel.isolate down        remove the wire of our parent, and what nobody uses any more

The wire vanishes with the namespace, but a connection that is not closed yet may keep that for minutes after its last
process.  So ``down`` removes the wire itself; the wire's alias names its owner.  What stays on the host is one nftables
table that masquerades all our addresses and lets nothing from outside begin to talk to them, and IPv4 forwarding, if we had to turn it on.  ``down`` removes both when no
wire is left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from contextlib import contextmanager
from ipaddress import IPv4Network
from socket import AF_INET
from typing import Any

from agentres.kernel import libc, process
from agentres.model.errors import AgentresError
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESSES = IPv4Network("10.213.0.0/16")
"""Each agent has four of them: its own, the host end's, and the two that a network needs."""

PREFIX = "agentres-"
"""Prefix of the names of the wires' host ends, by which they are found; a number follows."""

TABLE = "agentres"
FORWARD = "/proc/sys/net/ipv4/ip_forward"
RUN = "/run/agentres"
TURNED_ON = f"{RUN}/forwarding"
"""This file exists while forwarding is on because of us."""

_CLONE_NEWNET = 0x40000000
_SRCNAT, _FILTER = 100, 0  # NF_IP_PRI_NAT_SRC, NF_IP_PRI_FILTER
_DROP, _ACCEPT = 0, 1  # verdicts of netfilter
_ESTABLISHED, _RELATED = 2, 4  # bits of a connection's state, NF_CT_STATE_BIT


def up(pid: int) -> None:
    """Wire up the network of the process.  On failure undo what was begun and raise what failed."""
    from pyroute2 import IPRoute

    with _alone(), IPRoute() as host:
        number = _free(host)
        network = IPv4Network((int(ADDRESSES.network_address) + 4 * number, 30))
        near, far = (str(address) for address in network.hosts())
        name = f"{PREFIX}{number}"
        host.link("add", ifname=name, kind="veth", peer={"ifname": "eth0", "net_ns_pid": pid})
        try:
            (index,) = host.link_lookup(ifname=name)
            host.addr("add", index=index, address=near, prefixlen=30)
            host.link("set", index=index, ifalias=_owner(), state="up")
            _make_table()
            _forward()
            _enter(pid)
            _inside(far, near)
        except BaseException:
            host.link("del", ifname=name)
            raise


def down() -> list[str]:
    """Remove our parent's wire from the host, and after the last wire what is left; return the latter in words."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    done = []
    with _alone(), IPRoute() as host:
        for link in host.get_links():
            named = link.get_attr("IFLA_IFNAME").startswith(PREFIX)
            if named and link.get_attr("IFLA_IFALIAS") == _owner():
                try:
                    host.link("del", index=link["index"])
                except NetlinkError as error:
                    if error.code != errno.ENODEV:  # it vanished with its namespace just now
                        raise
        if _taken(host):
            return []
        if has_table():
            _nft("table", "del", name=TABLE)
            done.append(f"table ip {TABLE} of nftables")
        if os.path.exists(TURNED_ON):
            _write(FORWARD, "0")
            os.unlink(TURNED_ON)
            done.append("IPv4 forwarding, which was off")
    return done


@contextmanager
def _alone() -> Iterator[None]:
    os.makedirs(RUN, mode=0o755, exist_ok=True)
    fd = os.open(f"{RUN}/isolate.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _owner() -> str:
    """Return a unique name for our parent, the supervisor: its PID and start time."""
    parent = os.getppid()
    return f"{parent} since {process.start_ticks(parent)}"


def _taken(host: Any) -> set[int]:
    names = (link.get_attr("IFLA_IFNAME") for link in host.get_links())
    return {int(n.removeprefix(PREFIX)) for n in names if n.startswith(PREFIX) and n.removeprefix(PREFIX).isdecimal()}  # fmt: skip


def _free(host: Any) -> int:
    taken = _taken(host)
    number = next((n for n in range(ADDRESSES.num_addresses // 4) if n not in taken), None)
    if number is None:
        raise AgentresError(f"all addresses of {ADDRESSES} are taken")
    return number


def _nft(kind: str, command: str, **named: Any) -> None:
    from pyroute2.nftables.main import NFTables

    with NFTables(nfgen_family=AF_INET) as tables:
        getattr(tables, kind)(command, **named)


def has_table() -> bool:
    """Whether this host has our nftables table."""
    from pyroute2.nftables.main import NFTables

    with NFTables(nfgen_family=AF_INET) as tables:
        return TABLE in [table.get_attr("NFTA_TABLE_NAME") for table in tables.get_tables()]


def _make_table() -> None:
    """Make our nftables table, or what an earlier version's has not."""
    new = not has_table()
    if new:
        _nft("table", "add", name=TABLE)
    try:
        for name, options, rule in _chains():
            if name not in _chains_with_rules():
                _nft("chain", "add", table=TABLE, name=name, hook=name, policy=_ACCEPT, **options)
                _nft("rule", "add", table=TABLE, chain=name, expressions=rule)
            # The kernel does not answer: look whether the rule is there.
            if name not in _chains_with_rules():
                raise AgentresError(f"the kernel took no rule of nftables for {name}")
    except BaseException:
        if new:
            _nft("table", "del", name=TABLE)
        raise


def _chains() -> tuple[tuple[str, dict[str, Any], tuple[Any, ...]], ...]:
    """Return our chains: each its name, which is its hook's, its options, its one rule.

    To the outside an agent has the host's address.  Nothing outside begins to talk to an agent, other agents included.
    """
    from pyroute2.nftables.expressions import genex, ipv4addr, masq, verdict

    follows = struct.pack("=I", _ESTABLISHED | _RELATED)
    none = struct.pack("=I", 0)
    begins = [
        genex("ct", {"dreg": 1, "key": 0}),  # NFT_CT_STATE
        genex("bitwise", {"sreg": 1, "dreg": 1, "len": 4, "mask": _data(follows), "xor": _data(none)}),
        genex("cmp", {"sreg": 1, "op": 0, "data": _data(none)}),  # NFT_CMP_EQ
    ]  # fmt: skip
    return (
        ("postrouting", {"type": "nat", "priority": _SRCNAT}, (ipv4addr(src=str(ADDRESSES)), masq())),
        ("forward", {"type": "filter", "priority": _FILTER}, (ipv4addr(dst=str(ADDRESSES)), begins, verdict(_DROP))),
    )  # fmt: skip


def _data(value: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


def _chains_with_rules() -> set[str]:
    from pyroute2.nftables.main import NFTables

    with NFTables(nfgen_family=AF_INET) as tables:
        rules = tables.get_rules()
    ours = (rule for rule in rules if rule.get_attr("NFTA_RULE_TABLE") == TABLE)
    return {rule.get_attr("NFTA_RULE_CHAIN") for rule in ours}


def _forward() -> None:
    with open(FORWARD) as file:
        if file.read().strip() != "0":
            return
    _write(TURNED_ON, "")
    _write(FORWARD, "1")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _enter(pid: int) -> None:
    """setns(2), which Python has from 3.12 on."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        libc.call("setns", fd, _CLONE_NEWNET)
    finally:
        os.close(fd)


def _inside(own: str, gateway: str) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as inside:
        (index,) = inside.link_lookup(ifname="eth0")
        inside.addr("add", index=index, address=own, prefixlen=30)
        inside.link("set", index=index, state="up")
        inside.route("add", dst="default", gateway=gateway)
        # Departure times are lost on the way through the host, so packets wait here.
        inside.tc("replace", "fq", index=index, parent=0xFFFFFFFF, handle=0)


def main(arguments: list[str]) -> int:
    """Run the program; on failure write one line with the reason to stderr."""
    try:
        if arguments[:1] == ["up"]:
            up(int(arguments[1]))
        else:
            down()
    except Exception as error:  # pyroute2 raises many kinds
        sys.stderr.write(f"{' '.join(str(error).split()) or repr(error)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
