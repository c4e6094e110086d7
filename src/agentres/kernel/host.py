"""Reads the host's size without psutil, as the supervisor needs only a few numbers."""

from __future__ import annotations

import os
import resource

from agentres.model.limits import Host


def read() -> Host:
    """Return the online processors, physical memory and page size (sysconf(3)), and the hard RLIMIT_NOFILE."""
    page = os.sysconf("SC_PAGE_SIZE")
    _, nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
    if nofile == resource.RLIM_INFINITY:
        nofile = 1 << 30
    return Host(os.sysconf("SC_NPROCESSORS_ONLN"), memory(), page, nofile)


def swap_free() -> int:
    """Return the free swap in bytes; 0 where that is not known."""
    try:
        with open("/proc/meminfo", "rb") as file:
            text = file.read()
        return int(text[text.index(b"SwapFree:") + 9 :].split(None, 1)[0]) << 10
    except (OSError, ValueError):
        return 0


def memory() -> int:
    """Return the physical memory in bytes, as it is now: some may be unplugged."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
