"""One session: follows the memory of a recording, and tells how long each allocation took.

A program of its own, and small, as its own memory counts.  On stdin comes a line of the bytes to hold before
the start and then ``pause:bytes`` for each step, seconds and bytes; it says ``ready``, gets the start as a second
line (time.monotonic()), and prints JSON when it is through.  All memory is free by then.
"""

import ctypes
import mmap
import sys
import time

GRAIN = 2 << 20
"""Bytes: memory is freed in whole huge pages.  A part of one would be kept until the kernel splits it."""


class Memory:
    """So many bytes of anonymous memory, at most ``most``, all of them touched."""

    def __init__(self, most: int) -> None:
        self._map = mmap.mmap(
            -1, _grains(most) + GRAIN, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._offset = -address % GRAIN
        self._start = address + self._offset
        self.held = 0

    def follow(self, size: int) -> int:
        """Hold ``size`` bytes, when freeing up to a GRAIN more; the bytes that had to be allocated."""
        before = self.held
        if size > before:
            ctypes.memset(self._start + before, 1, size - before)
            self.held = size
            return size - before
        if (keep := _grains(size)) < before:
            self._map.madvise(mmap.MADV_DONTNEED, self._offset + keep, _grains(before) - keep)
            self.held = keep
        return 0


def _grains(size: int) -> int:
    return -(-size // GRAIN) * GRAIN


def replay(
    memory: Memory, steps: list[tuple[float, int]], start: float
) -> tuple[float, list[tuple[int, float]]]:
    """Take the steps from ``start`` on: seconds until the last one's end, and (bytes, seconds) by allocation.

    A pause is the session's own work: who gets memory late goes on late.
    """
    taken = []
    time.sleep(max(0.0, start - time.monotonic()))
    for pause, size in steps:
        time.sleep(pause)
        began = time.monotonic()
        if allocated := memory.follow(size):
            taken.append((allocated, time.monotonic() - began))
    return time.monotonic() - start, taken


def main() -> None:
    """Talk to whoever started us."""
    held, *words = sys.stdin.readline().split()
    steps = [(float(pause), int(size)) for pause, _, size in (w.partition(":") for w in words)]
    memory = Memory(max(int(held), *(size for _, size in steps)))
    memory.follow(int(held))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    seconds, taken = replay(memory, steps, float(sys.stdin.readline()))
    memory.follow(0)  # the others go on, and the line below may wait for its reader
    # Lists of numbers are written alike in Python and in JSON; json would have to be in memory.
    sys.stdout.write(f'{{"seconds": {seconds}, "allocations": {[list(one) for one in taken]}}}\n')


if __name__ == "__main__":
    main()
