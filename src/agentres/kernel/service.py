"""The protocol between a service and systemd: sd_notify(3), sd_listen_fds(3), and the watchdog."""

from __future__ import annotations

import os
import socket

from agentres.model import log
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_FIRST_FD = 3


def notify(*lines: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Send systemd ``READY=1``, ``STATUS=…`` or ``WATCHDOG=1``, if it has started us."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(address.replace("@", "\0", 1))
            sock.send("\n".join(lines).encode())
        except OSError as error:  # if systemd misses it, it ends us and says so
            log.debug(__name__, "systemd was not told: %s", error)


def watchdog(environment: MutableMapping[str, str] = os.environ) -> float | None:
    """Return the seconds within which systemd expects each WATCHDOG=1; None: it expects none."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() and int(text) else None


def listening(environment: MutableMapping[str, str] = os.environ) -> socket.socket | None:
    """Return the listening socket that systemd passed to us; None: there is none, or it is not for us."""
    if environment.pop("LISTEN_PID", "") != str(os.getpid()):
        return None
    count = environment.pop("LISTEN_FDS", "0")
    environment.pop("LISTEN_FDNAMES", None)
    if count != "1":
        return None
    os.set_inheritable(_FIRST_FD, False)
    return socket.socket(fileno=_FIRST_FD)
