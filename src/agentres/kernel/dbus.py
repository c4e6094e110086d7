"""Just enough D-Bus to ask systemd for a scope; stdlib only, blocking.

The supervisor makes one request over D-Bus, once, at its start (StartTransientUnit and the signals
that follow), and may import nothing for it.  So this implements only the part of the D-Bus specification
(1.0, "Message Protocol" and "Authentication Protocol") that the request needs.

Values are marshalled by signature: integers, strings, arrays as lists, structs as tuples, a variant
as ``(signature, value)``.
"""

from __future__ import annotations

import _socket  # not socket, which makes enums of 300 constants, a quarter of a megabyte
import errno
import os
import struct
import time

from agentres.model.errors import SystemdError, reason
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _, _SIGNATURE = range(1, 9)
_FIELD_TYPES = {_REPLY_SERIAL: "u", _PATH: "o", _SIGNATURE: "g"}
_FIXED = {"y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d"}
_ALIGN = {**{k: struct.calcsize(v) for k, v in _FIXED.items()}, "s": 4, "o": 4, "g": 1, "v": 1,
          "a": 4, "(": 8, "{": 8}  # fmt: skip


class Message(Record):
    """A received message: its type, the names in its header, and its values."""

    type: int
    path: str
    member: str
    error_name: str
    reply_serial: int
    body: tuple[Any, ...]


class Connection:
    """A connection to a message bus at a UNIX socket; authenticated as the caller's uid.

    Raises :class:`~agentres.model.errors.SystemdError` when the bus cannot be reached or a call is refused; then
    its ``name`` is the D-Bus error.
    """

    def __init__(self, path: str, timeout: float = 25.0) -> None:
        self._timeout = timeout
        self._serial = 0
        self._pending: list[Message] = []
        self._asked: dict[int, str] = {}
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(path)
            self._authenticate()
        except OSError as error:
            self._socket.close()
            raise SystemdError(f"cannot reach the D-Bus at {path}: {reason(error)}") from error
        try:
            self.call(
                "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello"
            )
        except SystemdError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _authenticate(self) -> None:
        uid = str(os.geteuid()).encode().hex()
        self._socket.sendall(b"\0AUTH EXTERNAL %s\r\nBEGIN\r\n" % uid.encode())
        answer = b""
        while not answer.endswith(b"\r\n"):
            part = self._socket.recv(256)  # the bus sends nothing else before our first call
            if not part:
                raise OSError(errno.ECONNRESET, "the bus closed the connection")
            answer += part
        if not answer.startswith(b"OK "):
            raise OSError(
                errno.EACCES, f"the bus refused us: {answer.decode(errors='replace').strip()}"
            )

    def send(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *values: Any,
    ) -> int:
        """Send a method call; return its serial number, for :meth:`answer`."""
        self._serial += 1
        self._asked[self._serial] = member
        body = bytearray()
        for kind, value in zip(split(signature), values, strict=True):
            marshal(body, kind, value)
        fields = [(_PATH, path), (_INTERFACE, interface), (_MEMBER, member)]
        fields += [(_DESTINATION, destination)]
        fields += [(_SIGNATURE, signature)] if signature else []
        message = bytearray(
            struct.pack("<cBBBII", b"l", METHOD_CALL, 0, 1, len(body), self._serial)
        )
        marshal(message, "a(yv)", [(c, (_FIELD_TYPES.get(c, "s"), v)) for c, v in fields])
        _pad(message, 8)
        try:
            self._socket.sendall(message + body)
        except OSError as error:
            raise SystemdError(f"the D-Bus connection broke: {reason(error)}") from error
        return self._serial

    def answer(self, serial: int) -> tuple[Any, ...]:
        """Wait for the answer to a call.  Raises SystemdError when the call was refused."""
        answer = self._wait(
            lambda m: m.reply_serial == serial and m.type in (METHOD_RETURN, ERROR),
            self._asked.pop(serial),
        )
        if answer.type == ERROR:
            text = answer.body[0] if answer.body and isinstance(answer.body[0], str) else ""
            raise SystemdError(text or answer.error_name, name=answer.error_name)
        return answer.body

    def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *values: Any,
    ) -> tuple[Any, ...]:
        """Call a method and wait for its answer."""
        return self.answer(self.send(destination, path, interface, member, signature, *values))

    def wait_signal(self, member: str, wanted: Callable[[tuple[Any, ...]], bool]) -> Message:
        """Wait for a signal ``member`` whose values satisfy ``wanted``; other messages are kept, in order."""
        return self._wait(
            lambda m: m.type == SIGNAL and m.member == member and wanted(m.body), member
        )

    def _wait(self, wanted: Callable[[Message], bool], what: str) -> Message:
        deadline = time.monotonic() + self._timeout
        for index, message in enumerate(self._pending):
            if wanted(message):
                return self._pending.pop(index)
        while True:
            left = deadline - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError
                self._socket.settimeout(left)
                message = self._receive()
            except TimeoutError:
                raise SystemdError(f"no answer to {what} in {self._timeout:.0f} s") from None
            except OSError as error:
                raise SystemdError(f"the D-Bus connection broke: {reason(error)}") from error
            if wanted(message):
                return message
            self._pending.append(message)

    def _receive(self) -> Message:
        start = self._read(16)
        order = "<" if start[:1] == b"l" else ">"
        type_, body_size, _serial, fields_size = struct.unpack(order + "xBxxIII", start)
        padded = (fields_size + 7) // 8 * 8
        data = self._read(padded + body_size)
        fields, _ = unmarshal(start[12:16] + data[:padded], "a(yv)", 0, order, offset=12)
        header = {code: value[1] for code, value in fields}
        body, at = [], 0
        for kind in split(header.get(_SIGNATURE, "")):
            value, at = unmarshal(data[padded:], kind, at, order)
            body.append(value)
        return Message(
            type_,
            header.get(_PATH, ""),
            header.get(_MEMBER, ""),
            header.get(_ERROR_NAME, ""),
            header.get(_REPLY_SERIAL, 0),
            tuple(body),
        )

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise OSError(errno.ECONNRESET, "closed by the bus")
            data += part
        return bytes(data)


def split(signature: str) -> list[str]:
    """Split a signature into its complete types: ``sa(sv)u`` -> ``s``, ``a(sv)``, ``u``."""
    types, start, depth = [], 0, 0
    for at, char in enumerate(signature):
        depth += (char in "({") - (char in ")}")
        if depth == 0 and char != "a":
            types.append(signature[start : at + 1])
            start = at + 1
    return types


def _pad(out: bytearray, alignment: int) -> None:
    out.extend(b"\0" * (-len(out) % alignment))


def marshal(out: bytearray, kind: str, value: Any) -> None:
    """Append ``value`` as one complete type, little-endian."""
    first = kind[0]
    _pad(out, _ALIGN[first])
    if first in _FIXED:
        out.extend(struct.pack("<" + _FIXED[first], value))
    elif first in "sog":
        text = value.encode()
        out.extend(struct.pack("<B" if first == "g" else "<I", len(text)) + text + b"\0")
    elif first == "v":
        marshal(out, "g", value[0])
        marshal(out, value[0], value[1])
    elif first == "a":
        size_at = len(out)
        out.extend(b"\0\0\0\0")
        _pad(out, _ALIGN[kind[1]])
        start = len(out)
        for item in value:
            marshal(out, kind[1:], item)
        struct.pack_into("<I", out, size_at, len(out) - start)
    else:
        for part, item in zip(split(kind[1:-1]), value, strict=True):
            marshal(out, part, item)


def unmarshal(data: bytes, kind: str, at: int, order: str, offset: int = 0) -> tuple[Any, int]:
    """Return the value of one complete type at ``at``, and where the next one starts.

    ``offset`` is the position of ``data`` in its message, for alignment.
    """

    def align(at: int, alignment: int) -> int:
        return at + (-(at + offset) % alignment)

    first = kind[0]
    at = align(at, _ALIGN[first])
    if first in _FIXED:
        code = order + _FIXED[first]
        return struct.unpack_from(code, data, at)[0], at + struct.calcsize(code)
    if first in "sog":
        code = order + ("B" if first == "g" else "I")
        size = struct.unpack_from(code, data, at)[0]
        at += struct.calcsize(code)
        return data[at : at + size].decode(), at + size + 1
    if first == "v":
        inner, at = unmarshal(data, "g", at, order, offset)
        value, at = unmarshal(data, inner, at, order, offset)
        return (inner, value), at
    items = []
    if first == "a":
        (size,) = struct.unpack_from(order + "I", data, at)
        at = align(at + 4, _ALIGN[kind[1]])
        end = at + size
        while at < end:
            item, at = unmarshal(data, kind[1:], at, order, offset)
            items.append(item)
        return items, at
    for part in split(kind[1:-1]):
        item, at = unmarshal(data, part, at, order, offset)
        items.append(item)
    return tuple(items), at
