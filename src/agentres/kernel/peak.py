"""The highest value of a cgroup's counter between two looks, so that a peak between two samples is seen too."""

from __future__ import annotations

import os

PEAKS = {
    "memory.peak": ("memory_current", "memory_most"),
    "memory.swap.peak": ("swap_current", "swap_most"),
    "pids.peak": ("pids_current", "pids_most"),
}
"""Files with a peak, and the sample's fields for the current and for the highest value."""

_RESETS = ("memory.peak", "memory.swap.peak")
"""Those of them that a write resets, for the writing file descriptor alone (Linux 6.12)."""


class Peak:
    """One such file, open.  Raises OSError where there is none."""

    def __init__(self, folder: int, name: str) -> None:
        self._resets = name in _RESETS
        try:
            self._fd = os.open(name, os.O_RDWR if self._resets else os.O_RDONLY, dir_fd=folder)
        except PermissionError:  # read-only on older kernels
            self._resets = False
            self._fd = os.open(name, os.O_RDONLY, dir_fd=folder)
        self._before = 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def take(self, current: int) -> int:
        """Return the highest value since the last call, at least ``current``.  OSError, ValueError.

        Where the peak cannot be reset, only a peak above all earlier ones is seen.
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
