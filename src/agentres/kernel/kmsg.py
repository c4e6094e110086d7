"""Finds the OOM killer's victims in /dev/kmsg.

``memory.events`` counts kills but names no process.  The kernel log names the process and what was in the cgroup
(:mod:`agentres.model.oom`), if we may read it (root, or kernel.dmesg_restrict=0).
"""

from __future__ import annotations

import errno
import os

from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from agentres.model.oom import OomReport
    from agentres.model.stats import OomKill


class KernelLog:
    """/dev/kmsg from now on.  Where the caller may not open it, there is never anything to read."""

    def __init__(self) -> None:
        self._report: OomReport | None = None
        try:
            self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self.fd, 0, os.SEEK_END)
        except OSError:  # EPERM, or no such device in a container: victims stay unnamed
            self.fd = -1

    @property
    def readable(self) -> bool:
        return self.fd >= 0

    def oom_kills(self, cgroup: str) -> list[OomKill]:
        """Return the kills since the last call whose victim was in ``cgroup`` or below it.

        ``cgroup`` is a path as /proc/self/cgroup shows it; in a cgroup namespace the log's paths
        are longer, so their end is compared.
        """
        found = []
        while self.fd >= 0:
            try:
                record = os.read(self.fd, 8192)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EPIPE:  # the ring overtook us: go on with what is left
                    continue
                break
            if not record:  # something else is in its place, as in some containers
                break
            if self._report is None:
                if b"oom" not in record:
                    continue
                try:
                    from agentres.model.oom import OomReport  # few agents are killed
                except (
                    ImportError
                ):  # agentres was upgraded or removed meanwhile: victims stay unnamed
                    continue
                self._report = OomReport(os.sysconf("SC_PAGE_SIZE"))
            kill = self._report.take(record.decode(errors="replace"))
            if kill is not None and f"{cgroup}/" in f"{kill.cgroup}/":
                own = f"{cgroup}/" in f"{kill.limit_cgroup}/"
                # If a cgroup above hit its limit, the report's footprint includes others' memory.
                found.append(kill if own else kill.but(footprint=None))
        return found

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
