"""Several sessions at once, from one moment on, and what became of each."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from _replay.plans import Plan

SESSION = [sys.executable, "-I", "-S", str(Path(__file__).with_name("session.py"))]

SETTLE = 1.5
"""Seconds from when the last session is ready to the start: by then supervisors watch."""

PATIENCE = 120.0
"""Seconds until a session is ready or, beyond ten times as long as it should take, has ended."""

KILLED = (137, -9)


class SessionOutcome(NamedTuple):
    """What became of one session: seconds from the start to its end, and of each allocation.

    ``why`` it did not live, in words; it has no figures then.
    """

    why: str = ""
    seconds: float = 0.0
    taken: tuple[float, ...] = ()

    @property
    def lived(self) -> bool:
        return not self.why


class Failed(Exception):
    """A session could not even begin; what it said."""


class Session:
    """A running one."""

    def __init__(self, command: list[str], plan: Plan) -> None:
        self.plan = plan
        self.ready = False
        self._words = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
        )

    def say(self, line: str) -> None:
        """A line to its stdin; one that is gone is told by its status."""
        try:
            _pipe(self._process.stdin).write(line.encode() + b"\n")
        except BrokenPipeError:
            pass

    def wait_ready(self, deadline: float) -> None:
        """Until it holds what it is to begin with, or has ended; Failed where it was not killed."""
        stdout = _pipe(self._process.stdout)
        if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise Failed(f"was not ready within {PATIENCE:.0f} s{self.words}")
        self.ready = stdout.readline() == b"ready\n"
        if not self.ready:
            try:
                status = self._process.wait(max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise Failed(f"said something else than ready{self.words}") from None
            if status not in KILLED:
                raise Failed(f"exited {status} before it was ready{self.words}")

    def end(self, deadline: float) -> SessionOutcome:
        """Wait for it."""
        try:
            out, _ = self._process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.stop()
            return SessionOutcome("did not end")
        status = self._process.returncode
        if status in KILLED:
            return SessionOutcome("was killed" if self.ready else "was killed before the start")
        if status:
            return SessionOutcome(f"exited {status}{self.words}")
        answer = json.loads(out)
        return SessionOutcome(
            "", answer["seconds"], tuple(took for _, took in answer["allocations"])
        )

    def stop(self) -> None:
        """End it where it has not ended; agentres is given the time to end what it runs."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            _pipe(pipe).close()
        self._words.close()

    @property
    def words(self) -> str:
        """The last line that it said on stderr."""
        self._words.seek(0)
        lines = self._words.read().split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last}" if last else ""


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def play(
    line: Callable[[int, list[str]], list[str]],
    plans: Sequence[Plan],
    check: Callable[[], None] = lambda: None,
    settle: float = SETTLE,
) -> list[SessionOutcome]:
    """Replay all plans at once; ``line`` makes the command that runs a session's, by its number.

    ``check`` is called when all are ready.  Raises Failed.
    """
    sessions: list[Session] = []
    try:
        for number, plan in enumerate(plans):
            sessions.append(Session(line(number, SESSION), plan))
        for session in sessions:
            session.say(session.plan.text)
        deadline = time.monotonic() + PATIENCE
        for number, session in enumerate(sessions):
            try:
                session.wait_ready(deadline)
            except Failed as error:
                raise Failed(f"session {number + 1}, {session.plan.name}, {error}") from None
        check()
        start = time.monotonic() + settle
        for session in sessions:
            session.say(repr(start))
        deadline = start + PATIENCE + 10 * max(plan.seconds for plan in plans)
        return [session.end(deadline) for session in sessions]
    finally:
        for session in sessions:
            session.stop()
