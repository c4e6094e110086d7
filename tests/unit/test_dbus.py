"""D-Bus: signatures, marshalling, and a connection to a fake bus on a UNIX socket."""

from __future__ import annotations

import _socket
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentres.kernel import dbus
from agentres.kernel.dbus import (
    ERROR,
    METHOD_CALL,
    METHOD_RETURN,
    SIGNAL,
    Connection,
    marshal,
    unmarshal,
)
from agentres.model.errors import SystemdError


@pytest.mark.parametrize(
    ("signature", "types"),
    [
        ("", []),
        ("s", ["s"]),
        ("su", ["s", "u"]),
        ("as", ["as"]),
        ("aas", ["aas"]),
        ("a(sv)", ["a(sv)"]),
        ("ssa(sv)a(sa(sv))", ["s", "s", "a(sv)", "a(sa(sv))"]),
        ("(s(iu))x", ["(s(iu))", "x"]),
        ("a{sv}as", ["a{sv}", "as"]),
        ("uoss", ["u", "o", "s", "s"]),
    ],
)
def test_a_signature_is_split_into_complete_types(signature: str, types: list[str]) -> None:
    assert dbus.split(signature) == types


# Values.


@pytest.mark.parametrize(
    ("kind", "value", "data"),
    [
        ("y", 7, "07"),
        ("b", True, "01000000"),
        ("n", -2, "feff"),
        ("q", 258, "0201"),
        ("i", -2, "feffffff"),
        ("u", 258, "02010000"),
        ("x", -2, "feffffffffffffff"),
        ("t", 2**64 - 1, "ffffffffffffffff"),
        ("d", 1.0, "000000000000f03f"),
        ("s", "ab", "02000000616200"),
        ("s", "é", "02000000c3a900"),
        ("s", "", "0000000000"),
        ("o", "/a", "020000002f6100"),
        ("g", "a(sv)", "056128737629" + "00"),
        ("v", ("u", 5), "017500" + "00" + "05000000"),
        ("as", [], "00000000"),
        ("as", ["a", "b"], "0e000000" + "010000006100" + "0000" + "010000006200"),
        # The padding before the first element is not part of the array's size.
        ("at", [1], "08000000" + "00000000" + "0100000000000000"),
        ("at", [], "00000000" + "00000000"),
        ("(yu)", (1, 2), "01" + "000000" + "02000000"),
        ("a(yy)", [(1, 2), (3, 4)], "0a000000" + "00000000" + "0102" + "000000000000" + "0304"),
        ("a{sv}", [("a", ("y", 9))], "0a000000" + "00000000" + "010000006100" + "017900" + "09"),
    ],
)
def test_a_value_is_these_bytes(kind: str, value: Any, data: str) -> None:
    out = bytearray()
    marshal(out, kind, value)
    assert out.hex() == data
    assert unmarshal(bytes.fromhex(data), kind, 0, "<") == (value, len(data) // 2)


INTEGERS = {
    "y": (0, 2**8 - 1), "n": (-(2**15), 2**15 - 1), "q": (0, 2**16 - 1), "i": (-(2**31), 2**31 - 1),
    "u": (0, 2**32 - 1), "x": (-(2**63), 2**63 - 1), "t": (0, 2**64 - 1),
}  # fmt: skip
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
BASIC: dict[str, st.SearchStrategy[Any]] = {
    **{kind: st.integers(*bounds) for kind, bounds in INTEGERS.items()},
    "b": st.sampled_from([0, 1]),
    "d": st.floats(allow_nan=False),
    "s": TEXT,
    "o": TEXT.map(lambda text: f"/{text}"),
    "g": st.sampled_from(["", "s", "a(sv)", "aau"]),
}


def kinds() -> st.SearchStrategy[str]:
    """One complete type."""
    return st.recursive(
        st.sampled_from([*BASIC, "v"]),
        lambda inner: st.one_of(
            inner.map(lambda kind: f"a{kind}"),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({''.join(parts)})"),
            st.tuples(st.sampled_from([*BASIC]), inner).map(
                lambda pair: f"a{{{pair[0]}{pair[1]}}}"
            ),
        ),
        max_leaves=5,
    )


def values(kind: str) -> st.SearchStrategy[Any]:
    """Values of one complete type."""
    if kind in BASIC:
        return BASIC[kind]
    if kind == "v":
        simple = st.sampled_from(["y", "u", "t", "s", "as", "(sy)"])
        return simple.flatmap(lambda inner: st.tuples(st.just(inner), values(inner)))
    if kind[0] == "a":
        return st.lists(values(kind[1:]), max_size=3)
    return st.tuples(*map(values, dbus.split(kind[1:-1])))


TYPED = kinds().flatmap(lambda kind: st.tuples(st.just(kind), values(kind)))


@given(st.lists(TYPED, max_size=3), st.binary(max_size=9))
def test_what_was_marshalled_is_unmarshalled(typed: list[tuple[str, Any]], before: bytes) -> None:
    out = bytearray(before)
    for kind, value in typed:
        marshal(out, kind, value)
    at, found = len(before), []
    for kind, _ in typed:
        value, at = unmarshal(bytes(out), kind, at, "<")
        found.append((kind, value))
    assert found == typed
    assert at == len(out)


@given(st.lists(TYPED, min_size=1, max_size=3))
def test_a_signature_of_many_types_is_split_into_them(typed: list[tuple[str, Any]]) -> None:
    assert dbus.split("".join(kind for kind, _ in typed)) == [kind for kind, _ in typed]


def test_alignment_counts_from_the_start_of_the_message() -> None:
    # The same bytes mean another value where they stand at another place.
    data = b"\1\0\0\0\2\0\0\0\3\0\0\0"
    assert unmarshal(data, "(yu)", 0, "<", offset=0) == ((1, 2), 8)
    assert unmarshal(data, "(yu)", 0, "<", offset=4) == ((2, 3), 12)


def test_big_endian_values_are_read() -> None:
    assert unmarshal(bytes.fromhex("00000002" + "616200"), "s", 0, ">") == ("ab", 7)


# The bytes of libdbus and dbus-daemon at the start of every connection.

HELLO_FIELDS = (
    b"\x6e\0\0\0"
    b"\1\1o\0\x15\0\0\0/org/freedesktop/DBus\0\0\0"
    b"\6\1s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0"
    b"\2\1s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0"
    b"\3\1s\0\5\0\0\0Hello\0"
)
HELLO_REPLY = (
    b"l\2\1\1\x0a\0\0\0\1\0\0\0\x3d\0\0\0"
    b"\6\1s\0\5\0\0\0:1.42\0\0\0"
    b"\5\1u\0\1\0\0\0"
    b"\x08\1g\0\1s\0\0"
    b"\7\1s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0"
    b"\5\0\0\0:1.42\0"
)
OUR_HELLO = (
    b"l\1\0\1\0\0\0\0\1\0\0\0\x6d\0\0\0"
    b"\1\1o\0\x15\0\0\0/org/freedesktop/DBus\0\0\0"
    b"\2\1s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0"
    b"\3\1s\0\5\0\0\0Hello\0\0\0"
    b"\6\1s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0"
)


def test_the_header_of_a_real_message_is_read() -> None:
    fields, end = unmarshal(HELLO_FIELDS, "a(yv)", 0, "<", offset=12)
    assert fields == [
        (1, ("o", "/org/freedesktop/DBus")),
        (6, ("s", "org.freedesktop.DBus")),
        (2, ("s", "org.freedesktop.DBus")),
        (3, ("s", "Hello")),
    ]
    assert end == len(HELLO_FIELDS)


# A fake bus.


class Peer:
    """The bus's end of one connection; it encodes by itself, not by what is tested here."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.stream = connection.makefile("rb")

    def authenticate(self, answer: bytes = b"OK 1234deadbeef\r\n") -> bytes:
        said = self.stream.readline() + self.stream.readline()
        self.connection.sendall(answer)
        return said

    def receive(self) -> bytes:
        start = self.stream.read(16)
        body, _, fields = struct.unpack("<III", start[4:])
        return start + self.stream.read((fields + 7) // 8 * 8 + body)

    def hello(self) -> None:
        self.authenticate()
        self.receive()
        self.connection.sendall(HELLO_REPLY)

    def send(
        self,
        kind: int,
        *strings: str,
        reply: int = 0,
        member: str = "",
        error: str = "",
        order: str = "<",
    ) -> None:
        """A message whose body is strings."""

        def string(text: str) -> bytes:
            return struct.pack(order + "I", len(text)) + text.encode() + b"\0"

        def pad(data: bytes, to: int) -> bytes:
            return data + b"\0" * (-len(data) % to)

        body = b""
        for text in strings:
            body = pad(body, 4) + string(text)
        fields = b""
        for code, text in ((3, member), (4, error)):
            if text:
                fields = pad(fields, 8) + bytes([code]) + b"\1s\0" + string(text)
        if reply:
            fields = pad(fields, 8) + b"\5\1u\0" + struct.pack(order + "I", reply)
        if strings:
            fields = (
                pad(fields, 8) + b"\x08\1g\0" + bytes([len(strings)]) + b"s" * len(strings) + b"\0"
            )
        endian = b"l" if order == "<" else b"B"
        start = (
            endian + bytes([kind, 1, 1]) + struct.pack(order + "III", len(body), 77, len(fields))
        )
        self.connection.sendall(pad(start + fields, 8) + body)


Script = Callable[[Peer], None]
Serve = Callable[[Script], str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a bus that plays a script to its first caller; gives the socket's path."""
    threads = []
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Relative to /proc, because the path of a UNIX socket may have no more than 107 bytes.
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    path = f"/proc/self/fd/{directory}/bus"
    failures: list[BaseException] = []

    def start(script: Script) -> str:
        listening.bind(path)
        listening.listen()
        listening.settimeout(10)

        def play() -> None:
            try:
                connection, _ = listening.accept()
                connection.settimeout(10)
                with connection:
                    peer = Peer(connection)
                    script(peer)
                    peer.stream.close()
            except BaseException as error:
                failures.append(error)

        threads.append(threading.Thread(target=play))
        threads[-1].start()
        return path

    yield start
    for thread in threads:
        thread.join()
    listening.close()
    os.close(directory)
    assert failures == []


def until_closed(peer: Peer) -> None:
    assert peer.stream.read() == b""


def call(connection: Connection, member: str = "Ask", *strings: str) -> tuple[Any, ...]:
    return connection.call(
        "org.example", "/org/example", "org.example.I", member, "s" * len(strings), *strings
    )


def test_a_connection_authenticates_by_uid_and_says_hello(serve: Serve) -> None:
    heard: list[bytes] = []

    def script(peer: Peer) -> None:
        heard.append(peer.authenticate())
        heard.append(peer.receive())
        peer.connection.sendall(HELLO_REPLY)
        until_closed(peer)

    with Connection(serve(script)):
        pass
    uid = str(os.geteuid()).encode().hex().encode()
    assert heard == [b"\0AUTH EXTERNAL " + uid + b"\r\nBEGIN\r\n", OUR_HELLO]


def test_a_call_carries_its_arguments_and_returns_the_answer(serve: Serve) -> None:
    heard: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.hello()
        heard.append(peer.receive())
        peer.send(METHOD_RETURN, "yes", "no", reply=2)
        until_closed(peer)

    with Connection(serve(script)) as connection:
        assert call(connection, "Ask", "a", "bc") == ("yes", "no")
    (message,) = heard
    assert message[:2] == bytes([ord("l"), METHOD_CALL])
    assert message.endswith(b"\1\0\0\0a\0" + b"\0\0" + b"\2\0\0\0bc\0")


def test_an_answer_without_values_is_empty(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        peer.receive()
        peer.send(METHOD_RETURN, reply=2)

    with Connection(serve(script)) as connection:
        assert call(connection) == ()


def test_a_big_endian_answer_is_understood(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        peer.receive()
        peer.send(METHOD_RETURN, "yes", reply=2, order=">")

    with Connection(serve(script)) as connection:
        assert call(connection) == ("yes",)


def test_an_answer_may_come_in_pieces(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.authenticate()
        peer.receive()
        for byte in HELLO_REPLY:
            peer.connection.sendall(bytes([byte]))
        until_closed(peer)

    Connection(serve(script)).close()


def test_an_answer_to_another_call_is_not_taken(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        peer.receive()
        peer.send(METHOD_RETURN, "late", reply=1)
        peer.send(METHOD_RETURN, "mine", reply=2)

    with Connection(serve(script)) as connection:
        assert call(connection) == ("mine",)


@pytest.mark.parametrize(
    ("words", "message"), [(("no such unit",), "no such unit"), ((), "org.example.Refused")]
)
def test_an_error_is_raised_with_its_name_and_words(
    serve: Serve, words: tuple[str, ...], message: str
) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        peer.receive()
        peer.send(ERROR, *words, reply=2, error="org.example.Refused")

    with Connection(serve(script)) as connection, pytest.raises(SystemdError) as caught:
        call(connection)
    assert (caught.value.name, caught.value.message) == ("org.example.Refused", message)


def test_signals_before_the_answer_are_kept_in_order(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        peer.receive()
        for value in ("one", "two", "three"):
            peer.send(SIGNAL, value, member="JobRemoved")
        peer.send(METHOD_RETURN, "yes", reply=2)
        until_closed(peer)

    with Connection(serve(script)) as connection:
        assert call(connection) == ("yes",)
        assert connection.wait_signal("JobRemoved", lambda body: body != ("one",)).body == ("two",)
        assert connection.wait_signal("JobRemoved", lambda body: True).body == ("one",)
        assert connection.wait_signal("JobRemoved", lambda body: True).body == ("three",)


def test_a_signal_after_the_answer_is_waited_for(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        peer.send(SIGNAL, "x", member="Other")
        peer.send(SIGNAL, "x", member="JobRemoved")

    with Connection(serve(script)) as connection:
        found = connection.wait_signal("JobRemoved", lambda body: body == ("x",))
    assert (found.type, found.member, found.body) == (SIGNAL, "JobRemoved", ("x",))


def test_a_bus_that_closes_the_connection_is_told(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        peer.receive()

    with Connection(serve(script)) as connection, pytest.raises(SystemdError) as caught:
        call(connection)
    assert str(caught.value) == "the D-Bus connection broke: closed by the bus"
    assert caught.value.name == ""


def test_a_bus_that_closes_amid_an_answer_is_told(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        peer.receive()
        peer.connection.sendall(HELLO_REPLY[:30])

    with (
        Connection(serve(script)) as connection,
        pytest.raises(SystemdError, match="closed by the bus"),
    ):
        call(connection)


def test_a_bus_that_never_answers_is_given_up(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        peer.receive()
        until_closed(peer)

    with (
        Connection(serve(script), timeout=0.1) as connection,
        pytest.raises(SystemdError) as caught,
    ):
        call(connection, "StartTransientUnit")
    assert str(caught.value).startswith("no answer to StartTransientUnit in ")


def test_other_messages_do_not_prolong_the_wait(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.hello()
        peer.connection.settimeout(None)
        try:
            while True:
                peer.send(SIGNAL, "x", member="Other")
        except OSError:  # the caller has given up
            pass

    with (
        Connection(serve(script), timeout=0.1) as connection,
        pytest.raises(SystemdError, match="no answer to J"),
    ):
        connection.wait_signal("JobRemoved", lambda body: True)


def test_a_bus_that_refuses_us_is_told(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.authenticate(b"REJECTED EXTERNAL\r\n")

    with pytest.raises(SystemdError, match="the bus refused us: REJECTED EXTERNAL"):
        Connection(serve(script))


def test_a_bus_that_closes_before_it_lets_us_in_is_told(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.authenticate(b"")

    with pytest.raises(SystemdError, match=r"cannot reach the D-Bus at .*: the bus closed"):
        Connection(serve(script))


def test_a_bus_that_never_lets_us_in_is_given_up(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.authenticate(b"")
        until_closed(peer)

    with pytest.raises(SystemdError, match=r"cannot reach the D-Bus at .*: timed out"):
        Connection(serve(script), timeout=0.1)


def refuse(peer: Peer) -> None:
    peer.send(ERROR, "not now", reply=1, error="org.example.Refused")
    until_closed(peer)


def say_nothing(peer: Peer) -> None:
    until_closed(peer)


def hang_up(peer: Peer) -> None:
    pass


@pytest.mark.parametrize("answer", [refuse, say_nothing, hang_up])
def test_a_bus_that_does_not_say_hello_leaves_no_socket_open(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, answer: Script
) -> None:
    made: list[_socket.socket] = []

    class Noted(_socket.socket):
        def __new__(cls, *kind: int) -> Noted:
            found = super().__new__(cls, *kind)
            made.append(found)
            return found

    def script(peer: Peer) -> None:
        peer.authenticate()
        peer.receive()
        answer(peer)

    path = serve(script)
    monkeypatch.setattr(_socket, "socket", Noted)
    with pytest.raises(SystemdError):
        Connection(path, timeout=0.2)
    (ours,) = made
    still_open = ours.fileno() != -1
    ours.close()
    assert not still_open


def test_no_bus_is_told_with_its_path() -> None:
    with pytest.raises(SystemdError, match="cannot reach the D-Bus at /nowhere/bus: no such file"):
        Connection("/nowhere/bus")


def test_a_path_that_is_too_long_for_a_socket_is_told() -> None:
    with pytest.raises(SystemdError, match=r"/bus: .*path too long"):
        Connection(f"/{'x' * 200}/bus")
