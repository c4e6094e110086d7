"""The example, as ``scripts/try`` runs it for a newcomer."""

from __future__ import annotations

import subprocess
from pathlib import Path

from conftest import DEADLINE, ROOT, not_by_daemon

TRY = Path(__file__).parents[2] / "scripts/try"


@not_by_daemon("it is the same program")
def test_a_well_behaved_agent_stays_clear_of_all_limits(tmp_path: Path) -> None:
    done = subprocess.run([TRY, "--here"], capture_output=True, text=True, timeout=DEADLINE, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tool calls in" in done.stdout
    assert "agentres: example exited 0 after" in done.stderr


@not_by_daemon("it is the same program")
def test_one_that_misbehaves_runs_into_them_and_lives_to_tell() -> None:
    done = subprocess.run([TRY, "--here", "--misbehave"], capture_output=True, text=True, timeout=DEADLINE, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Only who may read the kernel log learns which.
    victim = ": python3 (pid " if ROOT else ""
    assert f"agentres:   memory limit: 1 process was killed for memory{victim}" in done.stderr
    assert "forks were refused at --pids 64" in done.stderr
    assert "agentres:   CPU limit: throttled for " in done.stderr
