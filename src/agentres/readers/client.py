"""The client of the control sockets: finds a running agent by name, and sends commands to its supervisor (:mod:`agentres.model.control`)."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from agentres.kernel import delegation, registry
from agentres.kernel.listener import Peer
from agentres.kernel.process import start_ticks
from agentres.kernel.registry import RunningAgent
from agentres.model import control
from agentres.model.errors import AgentresError, UsageError, reason

PATIENCE = 10.0
"""Seconds to wait for the answer to a command that takes no time."""

BEGINNING = 60.0
"""Seconds that an agent may take from its launch until it accepts commands: it took more than 5 where twenty began at once."""

_LOOK_AGAIN = 0.02


class NoSupervisor(AgentresError):
    """Nobody takes commands for the agent: its supervisor was killed, or could not listen."""


def whoever() -> str:
    """Return the name of the user who runs this; under sudo, also of the user who ran sudo."""
    name = registry.user_name(os.getuid())
    behind = os.environ.get("SUDO_USER")
    return f"{behind} as {name}" if behind and behind != name else name


def find(name: str, uid: int | None = None) -> RunningAgent:
    """Return the agent of this name: that of user ``uid`` if given, else our own before others'.  UsageError."""
    found = [
        agent for agent in registry.running(delegation.hierarchy().mount) if agent.name == name
    ]
    if uid is not None:
        found = [agent for agent in found if agent.uid == uid]
    elif len(found) > 1:
        found = [agent for agent in found if agent.uid == os.geteuid()] or found
    if not found:
        raise UsageError(f"no agent {name!r} runs here", "`agentres ps` lists them")
    if len(found) > 1:
        users = {agent.uid for agent in found}
        if len(users) > 1:
            which = ", ".join(str(uid) for uid in sorted(users))
            raise UsageError(f"several users have an agent {name!r}: {which}", "say --user")
        raise UsageError(f"several agents are called {name!r}: {', '.join(a.path for a in found)}")
    return found[0]


def ask(
    agent: RunningAgent,
    verb: str,
    patience: float | None = PATIENCE,
    beginning: float = BEGINNING,
    **fields: object,
) -> dict[str, Any]:
    """Send a command to the agent's supervisor, and return the answer.

    ``patience`` is in seconds; None waits for ever.  ``beginning`` is how many seconds a supervisor gets that does not listen
    yet.  NoSupervisor if there is none; AgentresError, with the supervisor's message, if it refuses.
    """
    with _connected(agent, beginning) as sock:
        sock.settimeout(patience)
        try:
            # A supervisor that refuses us does not read the command, but its answer is there all the same.
            with suppress(BrokenPipeError):
                sock.sendall(control.command(verb, **fields))
            answer = _line(sock)
        except TimeoutError:
            raise AgentresError(f"the supervisor of {agent.name} does not answer") from None
        except OSError as error:
            raise AgentresError(f"lost the supervisor of {agent.name}: {reason(error)}") from error
    if not answer.get("ok"):
        raise AgentresError(str(answer.get("error")), str(answer.get("remedy") or ""))
    return answer


def wait_until_gone(agent: RunningAgent, patience: float = 10.0) -> None:
    """Wait until its cgroup is removed and the name is free again; AgentresError after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while os.path.exists(agent.home):  # kernfs does not notify of a removed directory
        if time.monotonic() > deadline:
            raise AgentresError(f"{agent.home} is still there after {patience:g} s")
        time.sleep(_LOOK_AGAIN)


def _connected(agent: RunningAgent, beginning: float) -> socket.socket:
    deadline = time.monotonic() + beginning
    while not (address := registry.control(agent.path)):
        # An agent that has just been launched soon has one.
        if start_ticks(agent.supervisor) is None:
            raise NoSupervisor(f"nobody supervises {agent.name}: it takes no commands")
        if time.monotonic() > deadline:
            raise NoSupervisor(f"the supervisor of {agent.name} does not listen yet, after {beginning:g} s")  # fmt: skip
        time.sleep(_LOOK_AGAIN)
    if address == registry.NO_CONTROL:
        raise NoSupervisor(f"the supervisor of {agent.name} could not listen: it takes no commands")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(f"\0{address}")
        if Peer.of(sock).uid != agent.cgroup_uid:
            # The agent's owner wrote the mark: it must not direct root's commands to another user.
            raise AgentresError(
                f"what is marked as the supervisor of {agent.name} is another user's"
            )
    except OSError as error:
        sock.close()
        raise NoSupervisor(f"nobody supervises {agent.name}: {reason(error)}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _line(sock: socket.socket) -> dict[str, Any]:
    text = b"".join(_received(sock))
    if not text.endswith(b"\n"):
        raise AgentresError("the supervisor ended before it answered")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise AgentresError("the supervisor's answer makes no sense")
    return found


def _received(sock: socket.socket) -> Iterator[bytes]:
    while data := sock.recv(1 << 16):
        yield data
        if data.endswith(b"\n"):
            return
