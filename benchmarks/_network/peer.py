"""A host to talk to: a network namespace at the other end of a veth pair, with a server in it.  Root only.

Addresses are of the blocks for benchmarks and documentation (RFC 2544, RFC 3849), and leave this machine by no route.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FLOWS = Path(__file__).with_name("flows.py")
NEAR, FAR = "198.18.0.1", "198.18.0.2"
NEAR6, FAR6 = "2001:db8:a9::1", "2001:db8:a9::2"
PORT = 5300


def ip(*words: str) -> str:
    """Have the ip command do this; what it says."""
    return _run("ip", *words)


def _run(*line: str) -> str:
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)}: {done.stderr.strip()}")
    return done.stdout


class Peer:
    """Made by entering it, gone without a trace after; ``device`` is our end of the pair."""

    def __init__(self) -> None:
        self.name = f"peer{os.getpid()}"
        self.device = f"near{os.getpid()}"[:15]
        self._servers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Peer:
        try:
            ip("netns", "add", self.name)
            far = ("netns", self.name)
            ip("link", "add", self.device, "type", "veth", "peer", "name", "far", *far)
            for address, other in ((f"{NEAR}/30", f"{FAR}/30"), (f"{NEAR6}/64", f"{FAR6}/64")):
                nodad = ["nodad"] if ":" in address else []
                ip("addr", "add", address, "dev", self.device, *nodad)
                ip("-n", self.name, "addr", "add", other, "dev", "far", *nodad)
            ip("link", "set", self.device, "up")
            ip("-n", self.name, "link", "set", "far", "up")
            ip("-n", self.name, "link", "set", "lo", "up")
            for address in (FAR, FAR6):
                self._serve(address)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.kill()
            server.communicate()
        for line in (("link", "del", self.device), ("netns", "del", self.name)):
            try:
                ip(*line)
            except RuntimeError as error:  # it was never made
                sys.stderr.write(f"{error}\n")

    def _serve(self, address: str) -> None:
        line = ["ip", "netns", "exec", self.name, sys.executable, "-S", str(FLOWS)]
        server = subprocess.Popen(
            [*line, "serve", address, str(PORT)], stdout=subprocess.PIPE, text=True
        )
        self._servers.append(server)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"

    def pace(self, fq: bool) -> None:
        """Have what we send be held back until its departure time, or not."""
        tc = ("tc", "qdisc", "replace", "dev", self.device, "root")
        _run(*tc, *(("fq",) if fq else ("pfifo", "limit", "1000")))

    def delay(self, milliseconds: float) -> None:
        """How long what comes from there takes to arrive."""
        line = ("tc", "-n", self.name, "qdisc", "replace", "dev", "far", "root", "netem")
        _run(*line, "delay", f"{milliseconds}ms", "limit", "100000")

    def counters(self) -> dict[str, int]:
        """Bytes and packets of our end: ``tx_bytes`` and so on, with link headers."""
        folder = Path("/sys/class/net", self.device, "statistics")
        return {n: int((folder / n).read_text()) for n in ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")}  # fmt: skip
