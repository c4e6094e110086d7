"""Parts of ``scripts/test``: what they start goes with them, and no two calls share a clone's logs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from _tests import parts

# A shell's background job ignores interrupts.
FAMILY = ["sh", "-c", "sleep 1000 & echo $!; wait"]
TIDY = """
import time
try:
    print("up", flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    print("tidied up", flush=True)
"""


def test_what_a_block_starts_ends_with_it_and_so_does_what_that_started() -> None:
    with parts.child(FAMILY, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        grandchild = psutil.Process(int(process.stdout.readline()))
    grandchild.wait(10)
    assert not grandchild.is_running()


def test_it_is_interrupted_so_that_it_can_tidy_up() -> None:
    with parts.child([sys.executable, "-c", TIDY], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        parts._end(process)
        assert process.stdout.read() == b"tidied up\n"
    assert process.returncode == 0


def test_one_call_at_a_time(tmp_path: Path) -> None:
    first = parts.Parts(tmp_path / "logs")
    (tmp_path / "logs" / "kept").touch()
    with pytest.raises(SystemExit, match="this clone's tests run already"):
        parts.Parts(tmp_path / "logs")
    assert (tmp_path / "logs" / "kept").exists()
    assert first.all == []
