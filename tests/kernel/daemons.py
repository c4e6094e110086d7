"""A daemon of a test's own, its clients, and the agents that it keeps."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil
import pytest
from conftest import AGENTRES, DEADLINE, agents_cgroup

DEV = "dev"


class Daemon:
    """One of our own, with a socket of its own, so that none that the host runs is met."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "agentres.sock"
        self.config = directory / "agentres.toml"
        self.config.write_text("")
        self.begun: list[Popen[str]] = []
        self.process = self.start()

    def start(self) -> Popen[str]:
        self.process = Popen(
            [*AGENTRES, "daemon"], env=self.environment, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        while "already" not in (line := self.process.stderr.readline()) and "yet" not in line:
            assert line, "it ended"
        return self.process

    @property
    def environment(self) -> dict[str, str]:
        named = {"AGENTRES_SOCKET": str(self.socket), "AGENTRES_CONFIG": str(self.config)}
        return {**os.environ, **named}

    def reload(self, text: str) -> None:
        self.config.write_text(text)
        self.process.send_signal(signal.SIGHUP)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert "read anew" in line, line

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(DEADLINE)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    def line(self, *options: str, command: list[str], user: str = DEV) -> list[str]:
        """The client's command line; as another user it sees nothing of root's environment."""
        asked = [*AGENTRES, "run", *options, "--", *command]
        if user == "root":
            return ["env", "-u", "AGENTRES_CONFIG", f"AGENTRES_SOCKET={self.socket}", *asked]
        home = pwd.getpwnam(user).pw_dir
        named = [f"AGENTRES_SOCKET={self.socket}", f"HOME={home}", f"PATH={os.environ['PATH']}"]
        return ["runuser", "-u", user, "--", "env", "-i", *named, *asked]

    def run(
        self, *options: str, command: list[str], user: str = DEV, **kwargs: Any
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.line(*options, command=command, user=user),
            capture_output=True, text=True, timeout=DEADLINE, check=False, cwd="/", **kwargs,
        )  # fmt: skip

    def begin(self, *options: str, command: list[str], user: str = DEV) -> Popen[str]:
        process = Popen(
            self.line(*options, command=command, user=user),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip
        self.begun.append(process)
        return process

    def close(self) -> None:
        """End what a test that failed has left."""
        for process in self.begun:
            if process.poll() is None:
                for one in reversed(psutil.Process(process.pid).children(recursive=True)):
                    one.kill()
                process.kill()
            process.communicate(timeout=DEADLINE)
        if self.process.poll() is None:
            assert self.stop() == 0


@pytest.fixture
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("daemon")
    for above in (directory, *directory.parents[:2]):
        above.chmod(0o755)
    made = Daemon(directory)
    yield made
    made.close()


def home_of(name: str, user: str = DEV) -> Path:
    uid = pwd.getpwnam(user).pw_uid
    return agents_cgroup() / f"agentres-{f'{uid}:' if uid else ''}{name}.scope"


def client_of(begun: Popen[str]) -> psutil.Process:
    """The agentres process below runuser and env."""
    process = psutil.Process(begun.pid)
    found = [process, *process.children(recursive=True)]
    return next(one for one in found if "agentres" in one.cmdline() and one.cmdline()[0] == sys.executable)  # fmt: skip


def keeper_of(name: str, user: str = DEV) -> psutil.Process:
    text = (home_of(name, user) / "supervisor" / "cgroup.procs").read_text()
    return psutil.Process(int(text.split()[0]))


def ready(process: Popen[str]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != "ready\n":
        process.wait(DEADLINE)
        assert process.stderr is not None
        pytest.fail(line + process.stderr.read())
