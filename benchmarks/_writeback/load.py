"""Writes to a file in some way for as long as it takes, and prints what its disk was written meanwhile, bytes a second.

    load.py HOW FILE [PROCESSES] [SECONDS] [KIB] [SPEED]

HOW: overwrite, append, mmap, sqlite, short (a process of its own each time), new (a new file each time), direct.
KIB are written between two fsync() or fdatasync(), and no more than SPEED MB a second (0: as fast as it goes).
"""

from __future__ import annotations

import mmap
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator

BLOCK = 1 << 16

LIFE = 0.02
"""Seconds that each process of `short` lives at the least."""

ASLEEP, AWAKE = 1.3, 0.2
"""Seconds before it writes: until an agent is watched it writes as it likes, and one that sleeps is looked at less often."""


class Load:
    """The ways to write to one file."""

    def __init__(self, path: str, each: int) -> None:
        self.path = path
        self.each = each
        self.size = os.stat(path).st_size
        self.block = mmap.mmap(-1, BLOCK)  # page-aligned, as O_DIRECT wants it
        self.block.write(os.urandom(BLOCK))
        device = os.stat(path).st_dev
        self._stat = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat"

    def written(self) -> tuple[float, int]:
        """A time, and the bytes that the disk had been written then; not with a pause between the two."""
        while True:
            before = time.monotonic()
            with open(self._stat) as file:
                count = int(file.read().split()[6]) * 512
            if time.monotonic() < before + 0.02:
                return before, count

    def _some(self, fd: int, at: int) -> int:
        for n in range(self.each):
            os.pwrite(fd, self.block, (at + n * BLOCK) % self.size)
        os.fdatasync(fd)  # not the time of change: the journal's blocks are not what is measured
        return at + self.each * BLOCK

    def overwrite(self, flags: int = 0, at: int = 0) -> Iterator[None]:
        fd = os.open(self.path, os.O_WRONLY | flags)
        while True:
            at = self._some(fd, at)
            yield

    def direct(self) -> Iterator[None]:
        return self.overwrite(os.O_DIRECT)

    def append(self) -> Iterator[None]:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        while True:
            for _ in range(self.each):
                os.write(fd, self.block)
            os.fsync(fd)
            yield

    def mmap(self) -> Iterator[None]:
        fd, at = os.open(self.path, os.O_RDWR), 0
        with mmap.mmap(fd, self.size) as view:
            while True:
                for _ in range(self.each):
                    view[at : at + BLOCK] = self.block[:]
                    at = (at + BLOCK) % self.size
                view.flush()
                yield

    def sqlite(self) -> Iterator[None]:
        db = sqlite3.connect(self.path, isolation_level=None)
        db.execute("PRAGMA synchronous = FULL")
        row = 0
        while True:
            db.execute("BEGIN")
            for _ in range(self.each):
                row = (row + 1) % 256
                db.execute("UPDATE rows SET data = ? WHERE id = ?", (os.urandom(BLOCK), row))
            db.execute("COMMIT")
            yield

    def short(self) -> Iterator[None]:
        at = 0
        while True:
            if (pid := os.fork()) == 0:
                end = time.monotonic() + LIFE
                self._some(os.open(self.path, os.O_WRONLY), at)
                time.sleep(max(0.0, end - time.monotonic()))
                os._exit(0)
            os.waitpid(pid, 0)
            at += self.each * BLOCK
            yield

    def new(self) -> Iterator[None]:
        number = 0
        while True:
            own = f"{self.path}.{os.getpid()}.{number}"
            fd = os.open(own, os.O_CREAT | os.O_WRONLY)
            for _ in range(self.each):
                os.write(fd, self.block)
            os.fsync(fd)
            os.close(fd)
            os.unlink(own)
            number += 1
            yield


def make_database(path: str) -> None:
    """A database in WAL mode with 256 rows of 64 KiB, as load.py's sqlite takes it; its WAL stays."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, data BLOB)")
    for number in range(256):
        db.execute("INSERT INTO rows VALUES (?, ?)", (number, os.urandom(1 << 16)))


def main(
    how: str,
    path: str,
    processes: str = "1",
    seconds: str = "5",
    kib: str = "2048",
    speed: str = "0",
) -> None:
    """Write, and print the rate."""
    load = Load(path, (int(kib) << 10) // BLOCK)
    ways: dict[str, Callable[[], Iterator[None]]] = {
        name: getattr(load, name)
        for name in ("overwrite", "direct", "append", "mmap", "sqlite", "short", "new")
    }
    time.sleep(ASLEEP)
    awake = time.monotonic() + AWAKE
    while time.monotonic() < awake:
        pass
    for number in range(1, int(processes)):
        if os.fork() == 0:
            for _ in load.overwrite(at=number * load.each * BLOCK):
                pass
    began, before = load.written()
    for _ in ways[how]():
        if time.monotonic() > began + float(seconds):
            now, count = load.written()
            sys.stdout.write(f"{(count - before) / (now - began)}\n")
            return
        if float(speed):
            time.sleep(load.each * BLOCK / float(speed) / 1e6)


if __name__ == "__main__":
    main(*sys.argv[1:])
