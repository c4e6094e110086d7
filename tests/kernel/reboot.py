"""An agent that is enabled starts when the host does: systemd's soft-reboot(8), between two calls of this.

``before`` installs, enables and restarts userspace, which ends the call; ``after`` looks, and takes all away.  As root, in
the project's VM only (scripts/test).
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

UNIT = "agentres@boots.service"
FILE = Path("/etc/agentres/agents.d/boots.toml")
MARK = Path("/var/tmp/agentres-reboot")
AGENTRES = [sys.executable, "-P", "-m", "agentres"]


def call(*line: str) -> str:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def before() -> None:
    call(*AGENTRES, "install-units")
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text('[agent]\ncommand = ["sleep", "100000"]\n[limits]\nmemory = "77M"\n')
    call("systemctl", "daemon-reload")
    call("systemctl", "enable", "--now", "agentres.socket", UNIT)
    MARK.write_text(f"{time.monotonic()}\n{call('systemctl', 'show', '-P', 'MainPID', UNIT)}")
    call("systemctl", "--no-block", "soft-reboot")
    signal.pause()


def after() -> None:
    marked, old = MARK.read_text().split()
    try:
        # Also where a unit that is not ours has failed.
        subprocess.run(["systemctl", "is-system-running", "--wait"], check=False)
        assert (
            int(call("systemctl", "show", "-P", "UserspaceTimestampMonotonic"))
            > float(marked) * 1e6
        )
        for unit in (UNIT, "agentres.socket"):
            assert call("systemctl", "is-active", unit) == "active"
        new = call("systemctl", "show", "-P", "MainPID", UNIT)
        assert new not in (old, "0")
        assert not Path(f"/proc/{old}").exists()
        home = Path("/sys/fs/cgroup/agentres.slice") / UNIT
        assert (home / "agent/memory.max").read_text() == f"{77 << 20}\n"
        (pid,) = (home / "agent/main/cgroup.procs").read_text().split()
        assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
        print("the agent came back with the host, inside its limits")
    finally:
        subprocess.run(["systemctl", "disable", "--now", UNIT], check=False)
        subprocess.run([*AGENTRES, "install-units", "--remove"], check=False, stdout=subprocess.DEVNULL)  # fmt: skip
        subprocess.run(["groupdel", "agentres"], check=False)
        shutil.rmtree("/etc/agentres")
        MARK.unlink()


{"before": before, "after": after}[sys.argv[1]]()
