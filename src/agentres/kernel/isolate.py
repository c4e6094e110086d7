"""A network namespace that has a wire to the host: veth, address, route, NAT.  Run as a program, as root, and gone again.

    python -m agentres.kernel.isolate up PID      wire up the network that process PID is in
    python -m agentres.kernel.isolate down        remove the wire of who runs this, and what nobody uses any more

The wire goes with the namespace, which goes with its last process, or with a connection that is not closed yet: up to minutes
later.  So ``down`` takes it away itself; its alias says whose it is.  What stays on the host is one table of
nftables that masquerades all of our addresses, and forwarding, where we had to turn it on: ``down`` takes both away
when no wire is left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from socket import AF_INET
from typing import Any

from agentres.kernel import libc, process
from agentres.model.errors import AgentresError

ADDRESSES = IPv4Network("10.213.0.0/16")
"""Of which each agent has four: its own, the host's end, and those that a network needs."""

PREFIX = "agentres-"
"""What the host's ends of the wires are called, by which they are found; a number follows."""

TABLE = "agentres"
FORWARD = "/proc/sys/net/ipv4/ip_forward"
RUN = "/run/agentres"
TURNED_ON = f"{RUN}/forwarding"
"""There while it is we who turned forwarding on."""

_CLONE_NEWNET = 0x40000000
_SRCNAT = 100  # NF_IP_PRI_NAT_SRC


def up(pid: int) -> None:
    """Wire up the network of the process.  Exceptions tell what failed; what was begun is taken back."""
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
            _masquerade()
            _forward()
            _enter(pid)
            _inside(far, near)
        except BaseException:
            host.link("del", ifname=name)
            raise


def down() -> list[str]:
    """Remove from the host our parent's wire, and what the last one has left; that in words."""
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
                    if error.code != errno.ENODEV:  # it has gone with its namespace just now
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
    """The supervisor that has this run, as no other process is called."""
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
    """Whether our table of nftables stands on this host."""
    return TABLE in _names("get_tables", "NFTA_TABLE_NAME")


def _names(what: str, attribute: str) -> list[str]:
    from pyroute2.nftables.main import NFTables

    with NFTables(nfgen_family=AF_INET) as tables:
        return [one.get_attr(attribute) for one in getattr(tables, what)()]


def _masquerade() -> None:
    from pyroute2.nftables.expressions import ipv4addr, masq

    if has_table():
        return
    _nft("table", "add", name=TABLE)
    try:
        _nft(
            "chain", "add", table=TABLE, name="postrouting",
            hook="postrouting", type="nat", priority=_SRCNAT, policy=1,
        )  # fmt: skip
        rule = (ipv4addr(src=str(ADDRESSES)), masq())
        _nft("rule", "add", table=TABLE, chain="postrouting", expressions=rule)
        # It is sent, and not answered: what stands there tells.
        if TABLE not in _names("get_rules", "NFTA_RULE_TABLE"):
            raise AgentresError("the kernel took no rule of nftables that masquerades")
    except BaseException:
        _nft("table", "del", name=TABLE)
        raise


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
        # Departure times do not survive the way through the host, so packets wait here.
        inside.tc("replace", "fq", index=index, parent=0xFFFFFFFF, handle=0)


def main(arguments: list[str]) -> int:
    """The program; why it failed is its one line on stderr."""
    try:
        if arguments[:1] == ["up"]:
            up(int(arguments[1]))
        else:
            down()
    except Exception as error:  # pyroute2's own are of many kinds
        sys.stderr.write(f"{' '.join(str(error).split()) or repr(error)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
