"""Traffic to measure by: a server, and a client that prints what got through as JSON.

    flows.py serve ADDRESS PORT
    flows.py tcp ADDRESS PORT --ways out,in --flows 4 --seconds 5 --warm 2 [--wants RATE]
    flows.py udp ADDRESS PORT --rate 20e6 --seconds 3
    flows.py echo ADDRESS PORT --seconds 5

`tcp` gives bytes a second of payload at the receiver for each way, from `warm` to `seconds` after the first byte:
before that a flow lives off the burst that it may send at once.  `udp` gives what was sent, what came, and the
errors that the sender saw.  `echo` connects, sends a byte and waits for it, again and again: milliseconds.
"""

from __future__ import annotations

import argparse
import errno
import json
import selectors
import socket
import struct
import sys
import time

CHUNK = 1 << 18
_SO_RCVBUFFORCE = 33  # socket(7)
_ORDER = struct.Struct("!4sdd")  # what is wanted of the server: kind, seconds, warm


class Flow:
    """One end of a connection that has bytes to send or to receive, as fast as they go."""

    def __init__(
        self, sock: socket.socket, sends: bool, seconds: float, warm: float, wants: float = 0
    ) -> None:
        sock.setblocking(False)
        self.sock, self.sends, self.seconds, self.warm = sock, sends, seconds, warm
        self.wants, self.sent = wants, 0  # bytes a second; 0: all that goes
        self.first = 0.0
        self.counted = 0
        self._data = memoryview(bytearray(CHUNK))

    @property
    def mask(self) -> int:
        return selectors.EVENT_WRITE if self.sends else selectors.EVENT_READ

    def turn(self) -> bool:
        """Send or receive once; False at the end."""
        now = time.monotonic()
        self.first = self.first or now
        try:
            if self.sends:
                if now >= self.first + self.seconds:
                    self.sock.shutdown(socket.SHUT_WR)
                    return False
                if self.wants and self.sent > (now - self.first) * self.wants:
                    time.sleep(0.001)
                    return True
                self.sent += self.sock.send(self._data)
                return True
            count = self.sock.recv_into(self._data)
        except BlockingIOError:
            return True
        if count == 0:
            return False
        if self.first + self.warm <= now < self.first + self.seconds:
            self.counted += count
        return True

    @property
    def rate(self) -> float:
        """Bytes a second between the warm-up and the end: what is still under way then does not count."""
        return self.counted / (self.seconds - self.warm)


def serve(address: str, port: int) -> None:
    """Serve for ever: each connection says first what it wants."""
    select = selectors.DefaultSelector()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=256)
    listener.setblocking(False)
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
    udp.bind((address, port))
    udp.setblocking(False)
    came = 0
    select.register(listener, selectors.EVENT_READ, "accept")
    select.register(udp, selectors.EVENT_READ, "udp")
    _say("ready")
    while True:
        for key, _ in select.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if key.data == "accept":
                made, _ = listener.accept()
                select.register(made, selectors.EVENT_READ, "order")
            elif key.data == "udp":
                came += _drain(udp)
            elif key.data == "order":
                order = sock.recv(_ORDER.size, socket.MSG_WAITALL)
                select.unregister(sock)
                if len(order) < _ORDER.size:
                    sock.close()
                    continue
                kind, seconds, warm = _ORDER.unpack(order)
                if kind == b"udp?":
                    came += _drain(udp)
                    sock.sendall(struct.pack("!Q", came))
                    came = 0
                    sock.close()
                elif kind == b"echo":
                    select.register(sock, selectors.EVENT_READ, "echo")
                else:
                    flow = Flow(sock, kind == b"in\0\0", seconds, warm)
                    select.register(sock, flow.mask, flow)
            elif key.data == "echo":
                try:
                    data = sock.recv(64)
                    sock.sendall(data)
                except OSError:  # the client was killed
                    data = b""
                if not data:
                    select.unregister(sock)
                    sock.close()
            else:
                _serve_flow(select, sock, key.data)


def _serve_flow(select: selectors.BaseSelector, sock: socket.socket, flow: Flow) -> None:
    try:
        if flow.turn():
            return
        if not flow.sends:
            sock.setblocking(True)
            sock.sendall(struct.pack("!d", flow.rate))
    except OSError:  # the client was killed: its test tells
        pass
    select.unregister(sock)
    sock.close()


def _drain(udp: socket.socket) -> int:
    """The bytes of the datagrams that wait."""
    total = 0
    for _ in range(256):
        try:
            total += len(udp.recv(65535))
        except BlockingIOError:
            break
    return total


def tcp(
    address: str,
    port: int,
    ways: list[str],
    flows: int,
    seconds: float,
    warm: float,
    wants: float = 0,
) -> dict[str, float]:
    """Bytes a second that got through, by way."""
    select = selectors.DefaultSelector()
    running: list[tuple[str, Flow]] = []
    for way in ways:
        for _ in range(flows):
            sock = socket.create_connection((address, port))
            sock.sendall(_ORDER.pack(way.encode(), seconds, warm))
            running.append((way, Flow(sock, way == "out", seconds, warm, wants)))
    for _, flow in running:
        select.register(flow.sock, flow.mask, flow)
    left = len(running)
    while left:
        for key, _ in select.select():
            if not key.data.turn():
                select.unregister(key.fileobj)
                left -= 1
    rates = dict.fromkeys(ways, 0.0)
    for way, flow in running:
        if flow.sends:
            flow.sock.setblocking(True)
            (rate,) = struct.unpack("!d", flow.sock.recv(8, socket.MSG_WAITALL))
        else:
            rate = flow.rate
        rates[way] += rate
        flow.sock.close()
    return rates


def udp(address: str, port: int, rate: float, seconds: float, size: int = 1400) -> dict[str, float]:
    """Send datagrams at this rate, whatever becomes of them."""
    _ask(address, port)  # what came before is nobody's
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.connect((address, port))
    data, sent, errors = bytes(size), 0, dict[str, int]()
    start = now = time.monotonic()
    while now < start + seconds:
        if sent <= (now - start) * rate:
            try:
                sent += sock.send(data)
            except OSError as error:
                name = errno.errorcode[error.errno or 0]
                errors[name] = errors.get(name, 0) + 1
        now = time.monotonic()
    passed = now - start
    time.sleep(1.0)  # what is paced is still under way
    return {"sent": sent / passed, "came": _ask(address, port) / passed, "errors": errors}  # type: ignore[dict-item]


def _ask(address: str, port: int) -> int:
    with socket.create_connection((address, port)) as sock:
        sock.sendall(_ORDER.pack(b"udp?", 0, 0))
        (came,) = struct.unpack("!Q", sock.recv(8, socket.MSG_WAITALL))
        return int(came)


def echo(address: str, port: int, seconds: float) -> dict[str, float]:
    """How long it takes to connect and to have a byte back."""
    taken = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        with socket.create_connection((address, port)) as sock:
            sock.sendall(_ORDER.pack(b"echo", 0, 0))
            sock.sendall(b"x")
            sock.recv(1)
        taken.append((time.monotonic() - start) * 1000)
        time.sleep(0.05)
    taken.sort()
    return {"median": taken[len(taken) // 2], "max": taken[-1], "count": len(taken)}


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("serve", "tcp", "udp", "echo"))
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--ways", default="out")
    parser.add_argument("--flows", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--warm", type=float, default=2)
    parser.add_argument("--rate", type=float, default=1e6)
    parser.add_argument("--wants", type=float, default=0)
    given = parser.parse_args()
    if given.warm >= given.seconds:
        parser.error("--warm leaves nothing of --seconds")
    at = (given.address, given.port)
    if given.kind == "serve":
        serve(*at)
    elif given.kind == "tcp":
        found = tcp(*at, given.ways.split(","), given.flows, given.seconds, given.warm, given.wants)
        _say(json.dumps(found))
    elif given.kind == "udp":
        _say(json.dumps(udp(*at, given.rate, given.seconds)))
    else:
        _say(json.dumps(echo(*at, given.seconds)))


if __name__ == "__main__":
    main()
