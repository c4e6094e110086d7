"""Every command of docs/tutorial.md, in its order, with what it says there."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

from conftest import DEADLINE, not_by_daemon

TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.md"
MARK = "the-command-has-ended"


def steps() -> list[tuple[str, str]]:
    """Each command with a pattern of what it says."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", TUTORIAL.read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return [(command, "".join(map(_pattern, said))) for command, said in found]


def _pattern(line: str) -> str:
    if line == "…":  # any lines
        return r"(?:[^\n]*\n)*?"
    return re.escape(line).replace("…", r"[^\n]*") + "\n"


class Shell:
    """A bash that commands are typed into."""

    def __init__(self, folder: Path) -> None:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "AGENTRES_STATE_DIR": str(folder / "state"),
            "COLUMNS": "200",
        }
        self.process = subprocess.Popen(
            ["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=folder, env=environment,
        )  # fmt: skip
        self._said = ""

    def run(self, command: str, pattern: str) -> None:
        """Run it; what it says, and its success, is as in the tutorial."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\necho {MARK} $?\n".encode())
        self.process.stdin.flush()
        background = command.endswith(" &")
        end = time.monotonic() + DEADLINE
        while True:
            said = re.sub(rf"{MARK} 0\n", "", self._said)
            if said != self._said and (not background or re.fullmatch(pattern, said)):
                break
            assert time.monotonic() < end, f"{command}: {self._said}"
            self._read(end)
        self._said = ""
        assert re.fullmatch(pattern, said), f"{command}\n{said}"

    def _read(self, end: float) -> None:
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        if select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            data = os.read(fd, 1 << 16)
            assert data, self._said
            self._said += data.decode()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=DEADLINE)


def test_there_are_commands() -> None:
    assert len(steps()) > 10
    assert sum("agentres run" in command for command, _ in steps()) >= 4


@not_by_daemon("the tutorial is of a host without one")
def test_the_tutorial_is_true(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    try:
        for command, pattern in steps():
            shell.run(command, pattern)
    finally:
        shell.close()
