"""Kills an agent when its supervisor dies, however it dies; or takes its tripwire down, and thaws it.

``memory.high`` that nobody moves on throttles for ever, and who is frozen waits for ever.  No handler runs after SIGKILL, so a shell waits
at the other end of a pipe: the kernel closes our end, the shell writes and ends.  It is a shell
because it costs a tenth of the memory that any process of ours would.
"""

from __future__ import annotations

import os
import signal

_SCRIPT = """read -r _
while [ $# -gt 1 ]; do echo "$1" 2>/dev/null >"$2"; shift 2; done
[ $# -eq 0 ] || for each in /proc/[0-9]*; do
    grep -qszxF -e "$1" "$each/environ" && kill -9 "${each#/proc/}" 2>/dev/null
done"""

_ours: set[int] = set()
"""Our ends of the pipes."""


def _let_go() -> None:
    """In a process that was forked: what it kept open would hide our end from the shell."""
    for fd in _ours:
        os.close(fd)
    _ours.clear()


os.register_at_fork(after_in_child=_let_go)


class Deadman:
    """Kills what is in the cgroup at ``path`` when this process has ended; or, without ``kill``, lifts its memory.high and thaws it.

    ``mark``, as ``NAME=value``: kills each process outside whose environment has that, too; empty: none.  OSError where there is no /bin/sh.
    """

    def __init__(self, path: str, kill: bool, mark: str = "") -> None:
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
                    *(word for write in writes for word in write),
                    *([mark] if kill and mark else ()),
                ],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, read_end, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setsid=True,  # what ends our process group must not end it
                setsigmask=[],
            )
        except OSError:
            os.close(self._write_end)
            raise
        finally:
            os.close(read_end)
        _ours.add(self._write_end)

    def close(self) -> None:
        """Call it off: nothing is written.  Again: nothing is done."""
        if self._pid < 0:
            return
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._pid = -1
        _ours.discard(self._write_end)
        os.close(self._write_end)
