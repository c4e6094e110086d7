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


def memory() -> int:
    """Physical memory, bytes: what there is now, where some can be unplugged."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
