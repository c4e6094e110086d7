"""A small client of QEMU's monitor protocol (QMP)."""

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .config import VmError


class Monitor:
    """One connection to a QEMU's monitor; QEMU serves one at a time."""

    def __init__(self, path: Path, timeout: float = 30) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
            self._lines = self._socket.makefile("r", encoding="utf-8")
            self._lines.readline()  # the greeting
            self.call("qmp_capabilities")
        except (OSError, VmError):
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._socket.close()

    def call(self, command: str, **arguments: Any) -> Any:
        """Run one command and return its answer; events in between are dropped."""
        request = json.dumps({"execute": command, "arguments": arguments})
        try:
            self._socket.sendall(request.encode() + b"\n")
            for line in self._lines:
                answer = json.loads(line)
                if "error" in answer:
                    raise VmError(f"QEMU refuses {command}: {answer['error'].get('desc')}")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise VmError(f"QEMU does not answer {command}: {error}") from None
        raise VmError(f"QEMU ended during {command}")

    def status(self) -> str:
        """QEMU's run state: running, paused, inmigrate, internal-error, ..."""
        return str(self.call("query-status")["status"])
