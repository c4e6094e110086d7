"""Kills an agent when its supervisor dies, however it dies; or lifts its tripwire and thaws it.

Without a supervisor, ``memory.high`` would throttle the agent for ever, and a frozen agent would wait for ever.  No
handler runs after SIGKILL, so a shell waits at the other end of a pipe: the kernel closes our end, the shell
writes and ends.  A shell takes a tenth of the memory of a process of ours.
"""

from __future__ import annotations

import os

from agentres.kernel import signal

_SCRIPT = """read -r _
mark=$1 uid=$2
shift 2
while [ $# -gt 0 ]; do echo "$1" 2>/dev/null >"$2"; shift 2; done
[ -z "$mark" ] || for each in /proc/[0-9]*; do
    grep -qszxF -e "$mark" "$each/environ" || continue
    [ -z "$uid" ] || [ "$(stat -c %u "$each")" = "$uid" ] || continue
    kill -9 "${each#/proc/}" 2>/dev/null
done"""

_ours: set[int] = set()
"""Our ends of the pipes."""


def _let_go() -> None:
    """Close our ends in a forked child: a copy kept open there would hide our death from the shell."""
    for fd in _ours:
        os.close(fd)
    _ours.clear()


os.register_at_fork(after_in_child=_let_go)


class Deadman:
    """When this process ends, kills the processes in the cgroup at ``path``; without ``kill``, lifts memory.high and thaws it.

    With ``mark`` (``NAME=value``) it then kills each process outside whose environment has that, and whose user is ``uid``; None:
    whoever's it is (:class:`agentres.kernel.escapes.Escapes`).  Raises OSError where there is no /bin/sh.
    """

    def __init__(self, path: str, kill: bool, mark: str = "", uid: int | None = None) -> None:
        writes = [("max", f"{path}/memory.high"), ("0", f"{path}/cgroup.freeze")]
        if kill:
            writes = [("1", f"{path}/cgroup.kill")]
        read_end, self._write_end = os.pipe()
        try:
            self._pid = os.posix_spawn(
                "/bin/sh",
                [
                    "sh",
                    "-c",
                    _SCRIPT,
                    "agentres-deadman",
                    mark if kill else "",
                    "" if uid is None else str(uid),
                    *(word for write in writes for word in write),
                ],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, read_end, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setsid=True,  # a signal to our process group must not end it
                setsigmask=[],
            )
        except OSError:
            os.close(self._write_end)
            raise
        finally:
            os.close(read_end)
        _ours.add(self._write_end)

    def close(self) -> None:
        """Call it off: nothing is written.  A second call does nothing."""
        if self._pid < 0:
            return
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._pid = -1
        _ours.discard(self._write_end)
        os.close(self._write_end)
