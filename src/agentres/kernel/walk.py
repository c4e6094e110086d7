"""Walk a directory tree as root, safely though its owner may put anything into it."""

from __future__ import annotations

import errno
import os
import stat

from agentres.kernel import libc
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEEPEST = 250
"""The most nested directories: each takes two of the 1024 descriptors that a process may have by default."""

_GONE = (errno.ENOENT, errno.ELOOP, errno.EXDEV, errno.ENOTDIR, errno.ENXIO)
"""The entry was removed or replaced meanwhile, or is another mount."""


def everything(_: os.stat_result) -> bool:
    """Want every entry."""
    return True


def below(
    top: int,
    failed: Callable[[OSError], None],
    early: Callable[[], None] = lambda: None,
    wanted: Callable[[os.stat_result], bool] = everything,
) -> Iterator[tuple[int, bool]]:
    """Yield a directory, and each directory and regular file below it: an open fd, and whether it is a directory.

    A directory comes before its contents; one that is not ``wanted`` is skipped with all below it.  The walk follows no
    symbolic link, even one put there meanwhile, and enters no mount.  ``failed`` gets the error of each entry that cannot be
    opened; if it does not raise, the walk goes on.  ``early`` is called for each entry, and may raise.
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
            # O_NONBLOCK: wait for no other process, neither the writer of a pipe nor the holder of a lease.
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
    """Yield the entries one at a time: a directory may have millions."""
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except OSError as error:
        failed(error)


def _can_be_asked(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a directory or a regular file: no link, socket, pipe or device."""
    return entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
