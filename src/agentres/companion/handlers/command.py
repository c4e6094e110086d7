"""Command handlers: a process per event, which gets it as JSON on stdin and as ``AGENTRES_ALERT_*``."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

from agentres.companion.handlers.base import variables
from agentres.companion.handlers.runner import RunnerHandler, end_group, ending, wait
from agentres.model.errors import printable, reason

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

_KEPT = 4096
"""Bytes of stderr that are kept, for its last line."""


class CommandHandler(RunnerHandler):
    """Runs an argv, without a shell, in its own session."""

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__(CommandWork(argv))


class CommandWork:
    """Starts the command and ends it; see :class:`agentres.companion.handlers.runner.Work`."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = [str(word) for word in argv]
        self._running = 0

    def watched(self) -> Iterable[int]:
        return ()

    def tend(self) -> None:
        pass

    def deliver(self, message: Any, timeout: float, channel: socket.socket) -> str:
        # A file, not a pipe: a command that never reads its input cannot block us.
        stdin = os.memfd_create("alert", os.MFD_CLOEXEC)
        heard, stderr = os.pipe()
        os.set_blocking(heard, False)
        try:
            os.write(stdin, json.dumps(message).encode() + b"\n")
            os.lseek(stdin, 0, os.SEEK_SET)
            try:
                process = subprocess.Popen(
                    self._argv,
                    stdin=stdin,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    start_new_session=True,
                    env=_environment(message),
                )
            except OSError as error:
                return f"{printable(self._argv[0])}: {reason(error)}"
            self._running = process.pid
            os.close(stderr)
            stderr = -1
            return self._watch(process, heard, timeout, channel)
        finally:
            for fd in (stdin, heard, stderr):
                if fd >= 0:
                    os.close(fd)

    def _watch(
        self,
        process: subprocess.Popen[bytes],
        heard: int,
        timeout: float,
        channel: socket.socket,
    ) -> str:
        deadline = time.monotonic() + timeout
        said = b""
        pidfd = os.pidfd_open(process.pid)
        listening = {pidfd, heard}
        try:
            while True:
                ready = wait(channel, listening, deadline)
                if heard in ready:
                    data = _read(heard)
                    said = (said + data)[-_KEPT:]
                    if not data:
                        listening.discard(heard)
                if pidfd in ready or not ready or time.monotonic() > deadline:
                    break
        finally:
            os.close(pidfd)
        # A handler ends when its command ends: kill what the command left in its process group.
        process.returncode = self._end()
        said = (said + _read(heard))[-_KEPT:]
        if pidfd not in ready:
            return f"took longer than {timeout:g} s and was killed"
        if process.returncode == 0:
            return ""
        lines = said.decode(errors="replace").strip().splitlines()
        last = f": {printable(lines[-1].strip())}" if lines else ""
        return f"{ending(process.returncode)}{last}"

    def stop(self) -> None:
        if self._running:
            self._end()

    def _end(self) -> int:
        pid, self._running = self._running, 0
        return end_group(pid)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""


def _environment(event: dict[str, Any]) -> dict[bytes, bytes]:
    return {
        **os.environb,
        **{name.encode(): _encoded(value) for name, value in variables(event).items()},
    }


def _encoded(value: str) -> bytes:
    """Encode for the environment: NUL is escaped, and so are surrogates that cannot be encoded."""
    text = value.replace("\0", "\\0")
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace")
