"""What the host has, read without psutil: the resident process needs two numbers of it."""

from __future__ import annotations

import os
import resource

from agentres.model.limits import Host


def read() -> Host:
    """Online processors and physical memory (sysconf(3))."""
    page = os.sysconf("SC_PAGE_SIZE")
    _, nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
    if nofile == resource.RLIM_INFINITY:
        nofile = 1 << 30
    return Host(os.sysconf("SC_NPROCESSORS_ONLN"), memory(), page, nofile)


def swap_free() -> int:
    """Swap that nobody uses, bytes; 0 where that is not known."""
    try:
        with open("/proc/meminfo", "rb") as file:
            text = file.read()
        return int(text[text.index(b"SwapFree:") + 9 :].split(None, 1)[0]) << 10
    except (OSError, ValueError):
        return 0


def memory() -> int:
    """Physical memory, bytes: what there is now, where some can be unplugged."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
