"""The highest that a cgroup's counter was between two looks: what no sample falls into is seen all the same."""

from __future__ import annotations

import os

PEAKS = {
    "memory.peak": ("memory_current", "memory_most"),
    "memory.swap.peak": ("swap_current", "swap_most"),
    "pids.peak": ("pids_current", "pids_most"),
}
"""Files with a peak, and the fields of a sample that have what is used now and what was at the most."""

_RESETS = ("memory.peak", "memory.swap.peak")
"""Those of them that start anew for whoever has written to its open file (Linux 6.12)."""


class Peak:
    """One such file, open; OSError where it is not there."""

    def __init__(self, folder: int, name: str) -> None:
        self._resets = name in _RESETS
        try:
            self._fd = os.open(name, os.O_RDWR if self._resets else os.O_RDONLY, dir_fd=folder)
        except PermissionError:  # older kernels let nobody write it
            self._resets = False
            self._fd = os.open(name, os.O_RDONLY, dir_fd=folder)
        self._before = 0

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def take(self, current: int) -> int:
        """The highest since the last time, ``current`` at the least.  OSError, ValueError.

        Where the peak cannot be started anew it tells only of what is above all before.
        """
        peak = int(os.pread(self._fd, 32, 0))
        if self._resets:
            try:
                os.write(self._fd, b"0")
                return max(current, peak)
            except OSError:  # before Linux 6.12
                self._resets = False
        higher, self._before = peak > self._before, peak
        return max(current, peak) if higher else current
