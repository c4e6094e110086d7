"""Commands and files in the guest, over one shared ssh connection per user."""

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from . import host
from .config import VmError
from .image import Image
from .layout import GUEST_EXEC_DIR, GUEST_SOURCE, GUEST_VENV, USERS

_HOST = "agentres-vm"
_SSH_FAILED = 255
_CONNECT_ATTEMPTS = 4
_CONNECT_SECONDS = 90.0  # ssh's own limit ends with the connection, and leaves out the login
_LOOK_SECONDS = 2.0

_CONFIG = """\
# Use it with other tools too: ssh -F THIS_FILE {host}
Host {host}
{reach}    User root
    IdentityFile {key}
    IdentitiesOnly yes
    UserKnownHostsFile {known_hosts}
    StrictHostKeyChecking yes
    HostKeyAlias {host}
    BatchMode yes
    LogLevel ERROR
    # A guest under memory pressure may be silent for long: that is what the tests are about.
    ServerAliveInterval 60
    ServerAliveCountMax 10
    ControlPath {control}
"""

# What every command runs in. The shell stays: it reports a death by signal as 128+N, which
# sshd would not, and its own remarks about that go nowhere. It outlives what a terminal or
# `_ENDER` sends to the group; the command gets its own signal handling back. `exec` takes the first word as a
# program's name, never as the shell's own keyword, assignment or builtin. The process group
# and status are left in files for whoever needs to end the command or doubts ssh's 255.
_WRAPPER = """\
cd {source} || exit 125
PATH={venv}/bin:$PATH
export PATH
if [ -n "$XDG_RUNTIME_DIR" ]; then
  : "${{DBUS_SESSION_BUS_ADDRESS:=unix:path=$XDG_RUNTIME_DIR/bus}}"
  export DBUS_SESSION_BUS_ADDRESS
fi
echo $$ >{note}.group
trap : INT QUIT TERM HUP
exec 9>&2 2>/dev/null
(exec -- {command}) 2>&9 9>&-
status=$?
rm -f {note}.group
[ $status != 255 ] || echo >{note}.255
exit $status
"""

# Ends what the wrapper started, harder each time.
_ENDER = """\
group=$(cat {note}.group) || exit 0
for signal in INT TERM KILL; do
  kill -$signal -- -$group || break
  for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    kill -0 -- -$group || break 2
    sleep 0.1
  done
done 2>/dev/null
rm -f {note}.group
"""


@dataclass(frozen=True)
class Guest:
    """How to reach one running guest."""

    folder: Path
    sockets: Path

    @property
    def config(self) -> Path:
        """The ssh configuration for this guest."""
        return self.folder / "ssh_config"

    def write_config(self, image: Image, reach: str) -> None:
        """Write the ssh configuration, with the keys of the image and the lines that say where it is.

        They are copied: a forced build may replace the image below a running machine.
        """
        for name in ("key", "known_hosts"):
            shutil.copy(image.path(name), self.folder / name)
        self.config.write_text(
            _CONFIG.format(
                host=_HOST,
                reach=reach,
                key=_quoted(self.folder / "key"),
                known_hosts=_quoted(self.folder / "known_hosts"),
                control=_quoted(self.sockets / "%r.ssh"),
            )
        )

    def connect(self, user: str, attempts: int = _CONNECT_ATTEMPTS) -> None:
        """Open the user's shared connection unless it is open."""
        if self._ssh(user, "-O", "check", _HOST, capture_output=True).returncode == 0:
            return
        (self.sockets / f"{user}.ssh").unlink(missing_ok=True)
        # Started apart, with no output of ours: it outlives this run, and a caller who
        # reads our output to its end must not wait for it. Not for the terminal's Ctrl-C.
        master = ["-M", "-N", "-f", "-o", "ControlPersist=yes", "-o", "ConnectTimeout=60"]
        log = self.folder / "ssh.log"
        for attempt in range(attempts):
            with log.open("wb") as output:
                options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
                with contextlib.suppress(subprocess.TimeoutExpired):
                    done = self._ssh(
                        user,
                        *master,
                        _HOST,
                        start_new_session=True,
                        timeout=_CONNECT_SECONDS,
                        **options,
                    )
                    if done.returncode == 0:
                        return
            if attempt + 1 < attempts:
                time.sleep(attempt)
        raise VmError(f"no ssh connection to the guest as {user}: {host.tail(log, 3)}")

    def settle(self) -> None:
        """Wait until it has finished booting."""
        script = "systemctl is-system-running --wait || systemctl --failed --plain --no-legend"
        state, _, failed = self.check(script).strip().partition("\n")
        if failed:
            host.say(f"the guest is {state}: {failed}")

    def disconnect(self) -> None:
        """Close the shared connections."""
        for user in USERS:
            if (self.sockets / f"{user}.ssh").exists():
                self._ssh(user, "-O", "exit", _HOST, capture_output=True)
                (self.sockets / f"{user}.ssh").unlink(missing_ok=True)

    def check(self, script: str, stdin: bytes = b"", timeout: float = 600) -> str:
        """Run one of this tool's own scripts as root; its output, or an error."""
        self.connect("root")
        try:
            done = self._ssh(
                "root", "-T", _HOST, script, input=stdin, capture_output=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            raise VmError(f"the guest did not answer within {timeout:.0f} s") from None
        if done.returncode:
            output = (done.stdout + done.stderr).decode(errors="replace").strip()
            raise VmError(f"in the guest, status {done.returncode}: {output[-2000:]}")
        return str(done.stdout, errors="replace")

    def execute(
        self, command: Sequence[str], user: str, tty: bool, runs: Callable[[], bool]
    ) -> int:
        """Run a command with our stdin, stdout and stderr; its exit status. ``runs``: whether the machine does.

        The user is connected already, as for `shell` and `copy`: a caller does that while it
        keeps other runs out.
        """
        note = f"{GUEST_EXEC_DIR}/{secrets.token_hex(8)}"
        script = _WRAPPER.format(
            source=GUEST_SOURCE, venv=GUEST_VENV, note=note, command=shlex.join(command)
        )
        process = subprocess.Popen(self._command(user, "-tt" if tty else "-T", _HOST, script))
        try:
            status = _wait(process, runs)
            if status == _SSH_FAILED and not self._really_255(user, note):
                raise VmError("lost the connection to the guest; see `scripts/vm status`")
        except (KeyboardInterrupt, SystemExit):
            self._end(user, note, process)
            raise
        return status if status >= 0 else 128 - status

    def shell(self, user: str) -> int:
        """Run an interactive login."""
        return self._ssh(user, _HOST).returncode

    def copy(self, source: str, target: str, user: str) -> None:
        """Copy a file or folder with scp; `guest_path` names the guest's side."""
        scp = ["scp", "-q", "-r", "-p", "-s", "-F", str(self.config), "-o", f"User={user}"]
        if subprocess.run([*scp, "--", source, target]).returncode:
            raise VmError("the copy failed")

    def _end(self, user: str, note: str, process: subprocess.Popen[bytes]) -> None:
        # A second Ctrl-C must not leave the command running in the guest.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 30}
        with contextlib.suppress(subprocess.TimeoutExpired):  # a guest that hangs
            self._ssh(
                user, "-T", _HOST, _ENDER.format(note=note), start_new_session=True, **options
            )
        process.terminate()
        process.wait()

    def _really_255(self, user: str, note: str) -> bool:
        """Whether the command itself ended with the status that ssh uses for its failures."""
        test = self._ssh(user, "-T", _HOST, f"rm {note}.255", capture_output=True)
        return test.returncode == 0

    def _command(self, user: str, *arguments: str) -> list[str]:
        return ["ssh", "-F", str(self.config), "-l", user, *arguments]

    def _ssh(
        self, user: str, *arguments: str, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self._command(user, *arguments), **options)


def _wait(process: subprocess.Popen[bytes], runs: Callable[[], bool]) -> int:
    """Wait for ssh, which would wait ten minutes more for a machine that is no more."""
    while True:
        try:
            return process.wait(_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if runs():
                continue
        process.terminate()
        process.wait()
        raise VmError("the machine has ended; see `scripts/vm status`")


def guest_path(path: str) -> str:
    """A path on the guest's side of a copy; relative ones start in the source tree."""
    return f"{_HOST}:{PurePosixPath(GUEST_SOURCE, path)}"


def sockets_dir(folder: Path, name: str) -> Path:
    """A folder for sockets: the given one, or a short private one when its path is too long."""
    # ssh appends up to 25 bytes of its own while it makes a socket; the kernel's limit is 107.
    if len(os.fsencode(folder)) < 70:
        return folder
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/agentres-vm-{os.getuid()}"
    short = Path(base) / name
    short.mkdir(mode=0o700, parents=True, exist_ok=True)
    if short.parent.stat().st_uid != os.getuid() or short.stat().st_uid != os.getuid():
        raise VmError(f"{short} belongs to somebody else")
    return short


def _quoted(path: Path) -> str:
    return f'"{path}"'
