"""A socket that takes lines from permitted peers, on the supervisor's loop; it never blocks.

It is in the abstract namespace (unix(7)): it vanishes with its process, however that ends, and can be reached
only from the same network namespace.  The kernel tells who connects (SO_PEERCRED).
"""

from __future__ import annotations

import _socket  # socket imports enum and selectors, which would stay loaded
import os
import select
import struct
import time

from agentres.kernel.loop import Loop, Timer
from agentres.model import log
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

LINE_MAX = 1 << 16
"""The most bytes of a line, including its end."""

CONNECTIONS = 32
"""The most connections at once."""

PATIENCE = 10.0
"""Seconds within which a peer must send a line, unless it waits for an answer."""

_UCRED = struct.Struct("iII")


class Peer(Record):
    """The process at the other end, as of its connect(2) (SO_PEERCRED in unix(7))."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, sock: _socket.socket) -> Peer:
        """Return the peer of a connected socket.  OSError."""
        return cls(*_UCRED.unpack(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)))  # fmt: skip


class Channel:
    """A connection to one peer; ``send`` takes whole lines."""

    def __init__(self, listener: Listener, sock: _socket.socket, peer: Peer) -> None:
        self.peer = peer
        self.waits = False
        """Whether the peer has asked for something that takes a while."""
        self._listener = listener
        self._sock = sock
        self._received = b""
        self.said = False
        """Whether the peer has sent a line."""
        self._timer: Timer | None = None
        self.listen()

    @property
    def fd(self) -> int:
        return self._sock.fileno()

    def listen(self) -> None:
        """Give the peer time for another line."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._listener.loop.call_at(time.monotonic() + PATIENCE, self._too_slow)

    def send(self, line: bytes) -> None:
        """Send an answer; disconnect a peer that does not read its answers."""
        if self.fd < 0:
            return
        try:
            if self._sock.send(line, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL) == len(line):
                return
        except OSError as error:
            log.debug(__name__, "not told: %s", error)
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            if self._timer is not None:
                self._timer.cancel()
            self._listener.forget(self)
            self._sock.close()

    def readable(self) -> None:
        """Read what has come and handle the complete lines."""
        try:
            data = self._sock.recv(LINE_MAX, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            log.debug(__name__, "lost: %s", error)
            data = b""
        if not data:
            self.close()
            return
        *lines, self._received = (self._received + data).split(b"\n")
        if len(self._received) >= LINE_MAX:
            self.close()
        for line in lines:
            if self.fd >= 0:
                self.said = True
                self._listener.heard(self, line)
        if lines and self.fd >= 0:
            self.listen()

    def _too_slow(self) -> None:
        if not self.waits:
            self.close()


class Listener:
    """Calls ``heard`` with every line.  ``refuse`` returns the answer to a peer that is not permitted; empty: it is.

    Raises OSError where no socket can be made.
    """

    def __init__(
        self,
        loop: Loop,
        refuse: Callable[[Peer], bytes],
        heard: Callable[[Channel, bytes], None],
    ) -> None:
        self.loop = loop
        self.heard = heard
        self._refuse = refuse
        self._channels: dict[int, Channel] = {}
        self.name = f"agentres/{os.urandom(8).hex()}"
        """Its name in the abstract namespace, without the zero byte."""
        self._sock = _socket.socket(
            _socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        )
        try:
            self._sock.bind(b"\0" + self.name.encode())
            self._sock.listen(CONNECTIONS)
        except BaseException:
            self._sock.close()
            raise
        loop.watch(self._sock.fileno(), self._accept)

    def hear_the_last(self, patience: float) -> None:
        """Take the first line of each peer that has connected by now; wait at most ``patience`` seconds in all."""
        for _ in range(CONNECTIONS + 1):  # as many as listen(2) queues; later ones are too late
            if not self._accept():
                break
        deadline = time.monotonic() + patience
        while silent := [each for each in self._channels.values() if not each.said]:
            poll = select.poll()
            for each in silent:
                poll.register(each.fd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
            if not ready:
                return
            for each in silent:
                if each.fd in ready:
                    each.readable()

    def close(self) -> None:
        """Disconnect all peers and close the socket."""
        for channel in list(self._channels.values()):
            channel.close()
        self.loop.unwatch(self._sock.fileno())
        self._sock.close()

    def forget(self, channel: Channel) -> None:
        """Stop listening to a channel; the channel calls this."""
        self.loop.unwatch(channel.fd)
        del self._channels[channel.fd]

    def _accept(self) -> bool:
        """Accept or refuse the next peer.  Return False where none waits."""
        try:
            fd, _ = self._sock._accept()  # type: ignore[attr-defined]  # what socket.accept() is made of
        except BlockingIOError:
            return False
        except OSError as error:  # out of descriptors: it stays queued and is reported again
            log.debug(__name__, "not accepted: %s", error)
            return False
        sock = _socket.socket(fileno=fd)
        try:
            peer = Peer.of(sock)
            answer = self._refuse(peer)
            if answer:
                sock.send(answer, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except OSError as error:
            log.debug(__name__, "not let in: %s", error)
            answer = b"\n"
        if answer or len(self._channels) >= CONNECTIONS:
            sock.close()
            return True
        channel = Channel(self, sock, peer)
        self._channels[fd] = channel
        self.loop.watch(fd, channel.readable)
        return True
