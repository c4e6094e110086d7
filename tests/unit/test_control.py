"""The control protocol's lines, and the socket that takes them."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentres.kernel import listener, registry
from agentres.kernel.listener import Channel, Listener, Peer
from agentres.kernel.loop import Loop
from agentres.kernel.registry import RunningAgent
from agentres.model import control
from agentres.model.errors import AgentresError, NotEnforceable, UsageError
from agentres.model.units import NEVER
from agentres.readers import client
from agentres.run import steering

# Lines.


def test_what_is_asked_is_what_arrives() -> None:
    asked = control.parse(
        control.command("set", limits={"memory": "2G", "io_read": ["/dev/vda=1M"]})
    )
    assert asked.verb == "set"
    assert asked.fields == {"limits": {"memory": "2G", "io_read": ["/dev/vda=1M"]}}
    assert control.parse(control.command("stop")).fields == {"grace": 5.0}
    assert control.parse(control.command("stop", grace=0)).fields == {"grace": 0.0}
    assert control.parse(b'{"agentres": 1, "do": "wait"}').fields == {}
    assert control.parse(control.command("freeze")).fields == {"for": 1800.0}
    assert control.parse(control.command("freeze", **{"for": 0.5})).fields == {"for": 0.5}
    assert control.parse(control.command("freeze", **{"for": "max"})).fields == {"for": NEVER}


def test_answers() -> None:
    assert json.loads(control.success(changed=[])) == {"ok": True, "changed": []}
    refused = json.loads(control.failure(NotEnforceable("no", "try less")))
    assert refused == {"ok": False, "error": "no", "remedy": "try less"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "expected a line of JSON"),
        (b"\xff\xfe", "expected a line of JSON"),
        (b"[" * 100_000, "expected a line of JSON"),
        (b"[]", "expected an object"),
        (b"{}", 'expected "agentres": 1'),
        (b'{"agentres": true, "do": "show"}', 'expected "agentres": 1'),
        (b'{"agentres": 2, "do": "show"}', 'expected "agentres": 1'),
        (b'{"agentres": 1}', 'expected "do": one of show, set'),
        (b'{"agentres": 1, "do": ["show"]}', 'expected "do": one of'),
        (b'{"agentres": 1, "do": "show", "more": 1}', "show: no field 'more'"),
        (b'{"agentres": 1, "do": "stop", "grace": -1}', 'expected "grace"'),
        (b'{"agentres": 1, "do": "stop", "grace": NaN}', 'expected "grace"'),
        (b'{"agentres": 1, "do": "stop", "grace": true}', 'expected "grace"'),
        (b'{"agentres": 1, "do": "freeze", "for": 0}', 'expected "for"'),
        (b'{"agentres": 1, "do": "freeze", "for": "never"}', 'expected "for"'),
        (b'{"agentres": 1, "do": "freeze", "for": true}', 'expected "for"'),
        (b'{"agentres": 1, "do": "freeze", "for": Infinity}', 'expected "for"'),
        (b'{"agentres": 1, "do": "set"}', 'expected "limits"'),
        (b'{"agentres": 1, "do": "set", "limits": {}}', 'expected "limits"'),
        (b'{"agentres": 1, "do": "set", "limits": {"disk": "1"}}', "there is no limit 'disk'"),
        (b'{"agentres": 1, "do": "set", "limits": {"nofile": "9"}}', "nofile is settled when"),
        (b'{"agentres": 1, "do": "set", "limits": {"cpu": 2}}', 'expected "cpu": a text'),
        (b'{"agentres": 1, "do": "set", "limits": {"cpu": ["2"]}}', 'expected "cpu": a text'),
        (b'{"agentres": 1, "do": "set", "limits": {"io_read": []}}', 'expected "io_read": a text'),
    ],
)
def test_what_makes_no_sense_is_told(line: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("[", r"\[")):
        control.parse(line)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["agentres", "do", "limits", "grace"]), inner),
)  # fmt: skip


@given(st.binary() | _JSON.map(lambda value: json.dumps(value).encode()))
def test_no_line_does_anything_but_parse_or_be_refused(line: bytes) -> None:
    try:
        asked = control.parse(line)
    except UsageError:
        return
    assert asked.verb in control.VERBS


@given(st.dictionaries(st.sampled_from(["do", "limits", "grace", "x"]), _JSON | st.sampled_from(sorted(control.VERBS))))  # fmt: skip
def test_no_request_does_anything_but_parse_or_be_refused(fields: dict[str, object]) -> None:
    try:
        asked = control.parse(json.dumps({"agentres": 1, **fields}).encode())
    except UsageError:
        return
    assert asked.verb in control.VERBS


# Who may.


def test_who_may_command() -> None:
    me = Peer(os.getpid(), os.getuid(), os.getgid())
    assert steering.refusal(me, {os.getuid()}, "/nowhere") is None
    assert steering.refusal(me.but(uid=0), set(), "/nowhere") is None
    assert "only the agent's owner" in str(steering.refusal(me.but(uid=12345), {12}, "/nowhere"))
    gone = me.but(pid=(1 << 22) + 1)
    assert "cannot be seen" in str(steering.refusal(gone, {os.getuid()}, "/nowhere"))
    with open("/proc/self/cgroup") as file:
        own = next(line.strip()[3:] for line in file if line.startswith("0::"))
    refused = steering.refusal(me, {os.getuid()}, own.rstrip("/"))
    assert "an agent does not command itself" in str(refused)


# The socket.


class Heard:
    """A listener on a loop, which answers each line by its length; ``lines`` came, through ``channels``."""

    def __init__(self, refuse: Callable[[Peer], bytes] = lambda peer: b"") -> None:
        self.lines: list[bytes] = []
        self.channels: list[Channel] = []
        self.loop = Loop()
        self.listener = Listener(self.loop, refuse, self._heard)
        self.clients: list[socket.socket] = []

    def _heard(self, channel: Channel, line: bytes) -> None:
        self.lines.append(line)
        self.channels.append(channel)
        channel.send(b"%d\n" % len(line))

    def connect(self) -> socket.socket:
        client = self.knock()
        self.turn()
        return client

    def knock(self) -> socket.socket:
        """Connect, and wait for the next turn to be let in."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(5)
        client.connect(f"\0{self.listener.name}")
        self.clients.append(client)
        return client

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.loop.tick(wait=False)

    def close(self) -> None:
        for one in self.clients:
            one.close()
        self.listener.close()
        self.loop.close()


@pytest.fixture
def heard() -> Iterator[Heard]:
    made = Heard()
    yield made
    made.close()


def test_who_has_connected_when_the_end_comes_is_heard(heard: Heard) -> None:
    client = heard.knock()  # and is not let in by any turn of the loop
    client.sendall(b"wait\n")
    heard.listener.hear_the_last(0.0)
    assert heard.lines == [b"wait"]
    assert client.recv(10) == b"4\n"


def test_who_says_nothing_at_the_end_is_waited_for_a_moment(heard: Heard) -> None:
    late, silent = heard.connect(), heard.connect()
    timer = threading.Timer(0.05, late.sendall, [b"late\n"])
    timer.start()
    started = time.monotonic()
    heard.listener.hear_the_last(0.5)
    assert heard.lines == [b"late"]
    assert 0.5 <= time.monotonic() - started < 5
    timer.join()
    assert late.recv(10) == b"4\n"
    silent.close()
    heard.listener.hear_the_last(5.0)  # it has gone: there is nobody to wait for
    assert time.monotonic() - started < 5


def test_who_keeps_connecting_does_not_keep_the_end_from_coming() -> None:
    heard = Heard(lambda peer: b"not now\n" if heard.knock() else b"")  # another one each time
    heard.knock()
    heard.listener.hear_the_last(0.0)
    assert len(heard.clients) == listener.CONNECTIONS + 2
    heard.close()


@pytest.mark.parametrize(
    ("verb", "fields", "answered"),
    [
        ("set", {"limits": {"memory": "1G"}}, True), ("freeze", {}, True), ("thaw", {}, True),
        ("wait", {}, False), ("kill", {}, False), ("stop", {"grace": 1.0}, False),
    ],
)  # fmt: skip
def test_nothing_is_done_to_an_agent_that_has_ended(
    verb: str, fields: dict[str, object], answered: bool
) -> None:
    told: list[bytes] = []
    supervision = SimpleNamespace(ended=True, kill=lambda who: None, stop=lambda grace, who: None)
    monitor = SimpleNamespace(
        handover=SimpleNamespace(origins={}), elastic=None, actuator=SimpleNamespace(thaw=lambda: None)
    )  # fmt: skip
    client = SimpleNamespace(peer=Peer(1, 0, 0), send=told.append, waits=False)
    taking = steering.Steering(supervision, monitor)  # type: ignore[arg-type]
    taking.take(client, control.command(verb, **fields).rstrip(b"\n"))  # type: ignore[arg-type]
    assert bool(told) is answered
    taking.ended(7)
    answer = json.loads(told[-1])
    assert answer["error" if answered else "exit_code"] == (
        "the agent has ended" if answered else 7
    )


def test_lines_come_whole_however_they_are_sent(heard: Heard) -> None:
    client = heard.connect()
    for part in (b"on", b"e\ntw", b"o\nthree\n"):
        client.sendall(part)
        heard.turn()
    assert heard.lines == [b"one", b"two", b"three"]
    assert client.recv(100) == b"3\n3\n5\n"


def test_it_is_told_who_asks() -> None:
    seen: list[Peer] = []
    made = Heard(lambda peer: seen.append(peer) or b"go away\n")  # type: ignore[func-returns-value]
    client = made.connect()
    assert seen == [Peer(os.getpid(), os.getuid(), os.getgid())]
    assert client.recv(100) == b"go away\n"
    assert client.recv(100) == b""
    made.close()


def is_let_go(client: socket.socket) -> bool:
    """Whether nothing more comes from the other end, as that is closed."""
    client.settimeout(10)
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionError:  # with something that was never read
        pass
    except TimeoutError:
        return False
    return True


def test_a_line_without_end_is_let_go(heard: Heard) -> None:
    client = heard.connect()
    client.setblocking(False)
    for _ in range(100):
        with suppress(BlockingIOError, BrokenPipeError):
            client.send(b"x" * 5000)
        heard.turn()
    assert is_let_go(client)
    assert heard.lines == []
    client = heard.connect()
    client.sendall(b"still there\n")
    heard.turn()
    assert heard.lines == [b"still there"]


def test_one_who_says_nothing_is_let_go_and_one_who_waits_is_not(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = heard.connect()
    waits.sendall(b"a\n")
    heard.turn()
    heard.channels[0].waits = True
    monkeypatch.setattr(listener, "PATIENCE", 0.0)
    waits.sendall(b"b\n")
    silent = heard.connect()
    heard.turn()
    assert silent.recv(1) == b""
    assert waits.recv(10) == b"1\n1\n"
    waits.setblocking(False)
    with pytest.raises(BlockingIOError):
        waits.recv(1)


def test_more_than_enough_are_not_let_in(heard: Heard) -> None:
    kept = [heard.connect() for _ in range(listener.CONNECTIONS)]
    assert heard.connect().recv(1) == b""
    kept[0].close()
    heard.turn()
    client = heard.connect()
    client.sendall(b"a\n")
    heard.turn()
    assert heard.lines == [b"a"]


def test_one_who_does_not_read_is_let_go(heard: Heard) -> None:
    heard.connect().sendall(b"a\n")
    heard.turn()
    (client,) = heard.channels
    for _ in range(10_000):
        client.send(b"x" * 10_000 + b"\n")
    assert client.fd < 0
    client.close()


def test_one_who_goes_at_once_harms_nobody(heard: Heard) -> None:
    before = len(os.listdir("/proc/self/fd"))
    heard.connect().close()
    heard.turn(2)
    assert len(os.listdir("/proc/self/fd")) == before
    client = heard.connect()
    client.sendall(b"a\n")
    heard.turn()
    assert heard.lines == [b"a"]


def test_errors_of_agentres_are_answers() -> None:
    error = json.loads(control.failure(AgentresError("what")))
    assert error == {"ok": False, "error": "what", "remedy": ""}


# Who asks.


def test_who_is_refused_before_it_has_asked_hears_why(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = RunningAgent("a", "/a/agent", "/a", 0.0, 1, 0, 0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as supervisor:
        supervisor.bind("")  # to a name that the kernel chooses
        supervisor.listen()

        def refusing(sock: socket.socket) -> Peer:
            its, _ = supervisor.accept()
            its.sendall(control.failure(AgentresError("not yours", "ask root")))
            its.close()
            return Peer(1, agent.cgroup_uid, 0)

        monkeypatch.setattr(registry, "control", lambda path: supervisor.getsockname()[1:].decode())
        monkeypatch.setattr(Peer, "of", refusing)
        with pytest.raises(AgentresError, match="not yours") as refused:
            client.ask(agent, "kill")
    assert refused.value.remedy == "ask root"


@pytest.fixture
def unheard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The marks that the client finds, one at each look; its agent's supervisor is this process."""
    marks: list[str] = []
    monkeypatch.setattr(
        registry, "control", lambda path: marks.pop(0) if len(marks) > 1 else marks[0]
    )
    return marks


def test_one_that_has_just_begun_is_waited_for(unheard: list[str]) -> None:
    agent = RunningAgent("a", "/a/agent", "/a", 0.0, os.getpid(), 0, os.getuid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as supervisor:
        supervisor.bind("")
        supervisor.listen()
        unheard += ["", "", supervisor.getsockname()[1:].decode()]

        def answer() -> None:
            with supervisor.accept()[0] as its:
                its.sendall(control.success(state="running"))

        answers = threading.Thread(target=answer)
        answers.start()
        assert client.ask(agent, "show")["state"] == "running"
        answers.join()
    assert len(unheard) == 1


def test_one_that_never_listens_is_told_from_one_that_is_gone(unheard: list[str]) -> None:
    agent = RunningAgent("a", "/a/agent", "/a", 0.0, os.getpid(), 0, os.getuid())
    unheard.append("")
    with pytest.raises(client.NoSupervisor, match=r"does not listen yet, after 0\.1 s"):
        client.ask(agent, "kill", beginning=0.1)
    with pytest.raises(client.NoSupervisor, match="nobody supervises a:"):
        client.ask(agent.but(supervisor=2**22 - 1), "kill")
    unheard[:] = [registry.NO_CONTROL]
    with pytest.raises(client.NoSupervisor, match="could not listen"):
        client.ask(agent, "kill")
