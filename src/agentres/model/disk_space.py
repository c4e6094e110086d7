"""Text about the free space on a file system; pure."""

from __future__ import annotations

from agentres.model.units import format_size


def used(total: int, free: int) -> float:
    """Return the fraction in use; 0 if ``total`` is 0."""
    return 1 - free / total if total > 0 else 0.0


def left(path: str, size: int, free: int, inodes: int, free_inodes: int) -> str:
    """Say how many bytes or inodes are free, whichever is scarcer: ``/work: 70.0 MiB of 1.0 GiB free (6.8%)``."""
    if used(inodes, free_inodes) > used(size, free):
        share = _percent(free_inodes, inodes)
        return f"{path}: {free_inodes} of {inodes} inodes free ({share})"
    return f"{path}: {format_size(free)} of {format_size(size)} free ({_percent(free, size)})"


def growth(fell: int, dirtied: int | None, reached: int | None, shmem: int | None) -> str:
    """Say how far free space ``fell``, to which every writer contributes, and what this agent wrote.

    All in bytes: ``dirtied`` is what the agent wrote to any disk, ``reached`` the part of it that reached this disk, ``shmem``
    what it holds in tmpfs and shared memory.  None: not known, or not applicable.
    """
    less = format_size(fell) if fell > 0 else "no"
    words = f"{less} less than when this agent was first seen there"
    if shmem is not None:
        return f"{words}; it holds {format_size(shmem)} in tmpfs and shared memory"
    if dirtied is None:
        return words
    to_this = "" if reached is None else f", {format_size(reached)} of it to this disk so far"
    return f"{words}; since its start it has written {format_size(dirtied)} in all{to_this}"


def _percent(part: int, total: int) -> str:
    """Format a percentage, with more precision when small: 0.9% and 0.01% left must look different."""
    percent = 100 * part / total if total > 0 else 0.0
    return f"{percent:.{'1g' if percent < 0.95 else '1f' if percent < 9.95 else '0f'}}%"
