"""All that is below a directory, for root in a directory whose owner may put anything in the way."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

from agentres.kernel import libc

DEEPEST = 250
"""Directories inside one another: each is two descriptors of the 1024 that a process may have, unless it was given more."""

_GONE = (errno.ENOENT, errno.ELOOP, errno.EXDEV, errno.ENOTDIR, errno.ENXIO)
"""It has gone meanwhile, or something else is there, or it is another mount."""


def everything(_: os.stat_result) -> bool:
    """Want all that is there."""
    return True


def below(
    top: int,
    failed: Callable[[OSError], None],
    early: Callable[[], None] = lambda: None,
    wanted: Callable[[os.stat_result], bool] = everything,
) -> Iterator[tuple[int, bool]]:
    """A directory and each directory and regular file below it: an open descriptor, and whether it is a directory.

    A directory comes before what is in it, and nothing below one that is not ``wanted`` comes.  No symbolic link is followed,
    whoever puts one in the way, and no mount entered.  ``failed`` gets the error of each that cannot be opened, and may raise;
    the rest comes all the same.  ``early`` is called for each entry, and may raise.
    """
    yield top, True
    yield from _inside(top, failed, early, wanted, DEEPEST)


def _inside(
    directory: int,
    failed: Callable[[OSError], None],
    early: Callable[[], None],
    wanted: Callable[[os.stat_result], bool],
    levels: int,
) -> Iterator[tuple[int, bool]]:
    for entry in _entries(directory, failed):
        early()
        try:
            if not _can_be_asked(entry):
                continue
            # Waits for no other process: not for who writes to a pipe, nor for who has a lease.
            fd = libc.openat2(
                directory,
                entry.name,
                os.O_RDONLY | os.O_NONBLOCK,
                libc.NO_XDEV | libc.NO_SYMLINKS | libc.BENEATH,
            )
        except OSError as error:
            if error.errno not in _GONE:
                failed(error)
            continue
        try:
            found = os.fstat(fd)
            is_directory = stat.S_ISDIR(found.st_mode)
            if (is_directory or stat.S_ISREG(found.st_mode)) and wanted(found):
                yield fd, is_directory
                if is_directory and levels:
                    yield from _inside(fd, failed, early, wanted, levels - 1)
                elif is_directory:
                    failed(OSError(0, f"more than {DEEPEST} directories inside one another", entry.name))  # fmt: skip
        finally:
            os.close(fd)


def _entries(directory: int, failed: Callable[[OSError], None]) -> Iterator[os.DirEntry[str]]:
    """One at a time: a directory may have millions."""
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except OSError as error:
        failed(error)


def _can_be_asked(entry: os.DirEntry[str]) -> bool:
    """What is no link, socket, pipe or device."""
    return entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
