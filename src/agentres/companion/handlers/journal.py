r"""The journal handler, in the native protocol: a datagram per entry (systemd.io/JOURNAL_NATIVE_PROTOCOL).

A field is ``NAME=value\n``.  If the value has a newline, it is the name, a newline, the length as 64
bits little-endian, the value, a newline.  An entry too large for a datagram is sent as a sealed memfd.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

from agentres.companion.handlers.base import NotDelivered, Once, variables
from agentres.model.errors import reason
from agentres.policy.alerts import Severity

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"

MESSAGE_ID = "0a9597bcbe0341b0918da341c10091d0"
"""The same for all alerts: ``journalctl MESSAGE_ID=…``."""

# EMERGENCY is not 0 (emerg): journald writes that to every terminal of the host.
_PRIORITIES = {
    Severity.INFO: 6,
    Severity.WARNING: 4,
    Severity.CRITICAL: 2,
    Severity.EMERGENCY: 1,
}
_NOTICE = 5

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class JournalHandler(Once):
    """Writes entries with the fields ``AGENTRES_ALERT_*``."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path

    def deliver(self, event: dict[str, Any], timeout: float) -> None:
        entry = serialize(fields(event))
        try:
            # A new socket each time: journald may have been restarted since.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
                journal.settimeout(timeout)
                journal.connect(self._path)
                _send(journal, entry)
        except TimeoutError as error:
            raise NotDelivered(f"the journal took nothing for {timeout:g} s") from error
        except OSError as error:
            raise NotDelivered(f"{self._path}: {reason(error)}") from error


def fields(event: dict[str, Any]) -> dict[str, str]:
    """Return the entry's fields; journald adds the sender and the time."""
    resolved = event["event"] == "resolved"
    priority = _NOTICE if resolved else _PRIORITIES[Severity[event["severity"]]]
    return {
        "MESSAGE": f"resolved: {event['message']}" if resolved else event["message"],
        "PRIORITY": str(priority),
        "MESSAGE_ID": MESSAGE_ID,
        "SYSLOG_IDENTIFIER": "agentres",
        **variables(event),
        "AGENTRES_RUN": str(event["run"]),
    }


def serialize(entry: Mapping[str, str]) -> bytes:
    """Encode an entry in the native protocol."""
    parts = []
    for name, text in entry.items():
        value = text.encode(errors="backslashreplace")
        if b"\n" in value:
            parts.append(b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), value))
    return b"".join(parts)


def _send(journal: socket.socket, entry: bytes) -> None:
    try:
        journal.send(entry)
    except OSError as error:
        if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
            raise
    else:
        return
    file = os.memfd_create("agentres-alert", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        left = entry
        while left:
            left = left[os.write(file, left) :]
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))
        journal.sendmsg([b""], [rights])
    finally:
        os.close(file)
