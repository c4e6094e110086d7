"""The history's file: create it for its owner alone, open it, migrate it, and explain errors."""

from __future__ import annotations

# CPython's C module.  The sqlite3 package around it adds DB-API names and date adapters, and imports
# datetime for them: 0.4 MB that is not used here.  Types, errors and constants are the same objects.
import _sqlite3
import os
import time

from agentres.model.errors import reason
from agentres.model.record import TYPE_CHECKING
from agentres.store.run import NoHistory, StoreError
from agentres.store.schema import MIGRATIONS

if TYPE_CHECKING:
    import sqlite3

BUSY_SECONDS = 2.0
"""How many seconds a call waits for another writer."""

WRITERS_CACHE = 16
READERS_CACHE = 64
"""Pages of 4 KiB.  16 write as fast as 64, with one run or a thousand; fewer save no more memory."""

_APPLICATION = 0x61677273  # "agrs": PRAGMA application_id, which file(1) shows


def connect(path: str, write: bool) -> sqlite3.Connection:
    """Open the file; to write, create what is missing and migrate the schema to the newest version."""
    if write:
        _create(path)
    elif not os.path.exists(path):
        raise NoHistory(path)
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    try:
        db = _sqlite3.connect(
            f"file:{quoted}?mode={'rw' if write else 'ro'}",
            timeout=BUSY_SECONDS,
            isolation_level=None,
            cached_statements=8,  # what add() needs, and a few more; each takes kilobytes
            uri=True,
        )
    except _sqlite3.Error as error:
        raise store_error(path, error) from error
    try:
        # Must come before the first page is read: SQLite then allocates that many pages, if fewer than 20.
        db.execute(f"PRAGMA cache_size = {WRITERS_CACHE if write else READERS_CACHE}")
        _prepare(path, db, write)
    except BaseException as error:
        db.close()
        if isinstance(error, _sqlite3.Error):
            raise store_error(path, error) from error
        raise
    return db


def inode(path: str) -> int:
    """Return the file's inode number; 0, which no file has, if there is no file."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _create(path: str) -> None:
    """Create the directory and an empty file, for their owner alone."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        # Never open an existing file: closing it would drop this process's locks on it (fcntl(2)).
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if not os.path.isdir(os.path.dirname(path)):
            raise StoreError(
                f"cannot make {path}: {os.path.dirname(path)} is no directory",
                "set AGENTRES_STATE_DIR",
            ) from None
    except OSError as error:
        raise StoreError(f"cannot make {path}: {reason(error)}", _WHERE_ELSE) from error


def _prepare(path: str, db: sqlite3.Connection, write: bool) -> None:
    known = len(MIGRATIONS)
    # One transaction: between two separate reads, another process may create the tables.
    with Transaction(path, db, "BEGIN"):
        version = _version(path, db)
    if version > known:
        raise StoreError(
            f"{path} was written by a newer agentres (schema {version}, this one knows {known})",
            f"upgrade agentres, or {_move(path)}",
        )
    if not write:
        if version == 0:
            raise NoHistory(path)
        if version < known:
            raise StoreError(
                f"{path} was written by an older agentres (schema {version}, this one knows {known})",
                "the next run brings it up to date",
            )
        return
    if version == 0:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only before the first table
    _switch_to_wal(db)
    # A power cut may lose the last commits, but does not corrupt the file.
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA journal_size_limit = 4194304")
    writing = Transaction(path, db, "BEGIN IMMEDIATE")
    while version < known:
        with writing:
            version = _version(path, db)  # another process may have migrated it
            if version < known:
                MIGRATIONS[version](db)
                version += 1
                db.execute(f"PRAGMA user_version = {version}")
                db.execute(f"PRAGMA application_id = {_APPLICATION}")


def _version(path: str, db: sqlite3.Connection) -> int:
    """Return the file's schema version, 0 if it is empty; call it within a transaction."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION and (application or version or tables):
        raise StoreError(f"{path} is a database of another program", _move(path))
    return int(version)


def _switch_to_wal(db: sqlite3.Connection) -> None:
    """Switch to WAL mode, which the file keeps.  Retry: if two processes switch at once, SQLite does not wait."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except _sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != _sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class Transaction:
    """A context manager for one transaction: all or nothing.  SQLite's errors become a StoreError."""

    __slots__ = ("_begin", "_db", "_path")

    def __init__(self, path: str, db: sqlite3.Connection, begin: str) -> None:
        self._path = path
        self._db = db
        self._begin = begin

    def __enter__(self) -> sqlite3.Connection:
        try:
            self._db.execute(self._begin)
        except _sqlite3.Error as error:
            raise store_error(self._path, error) from error
        return self._db

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            if error is None:
                self._db.execute("COMMIT")
        except _sqlite3.Error as failed:
            error = failed
        if error is None:
            return
        try:
            if self._db.in_transaction:  # some errors roll back by themselves
                self._db.execute("ROLLBACK")
        except _sqlite3.Error:  # the first error is the one to report
            pass
        if isinstance(error, _sqlite3.Error):
            raise store_error(self._path, error) from error


_WHERE_ELSE = "set AGENTRES_STATE_DIR to where it can be written"


def _move(path: str) -> str:
    return f"move {path} away with its -wal and -shm, and a new one is made"


def store_error(path: str, error: sqlite3.Error) -> StoreError:
    """Return an error that says what happened and what to do (https://sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == _sqlite3.SQLITE_FULL:
        return StoreError(f"no room for the history: the disk of {path} is full", "free some")
    if code in (_sqlite3.SQLITE_CORRUPT, _sqlite3.SQLITE_NOTADB):
        return StoreError(f"the history at {path} is corrupt ({error})", _move(path))
    if code in (_sqlite3.SQLITE_BUSY, _sqlite3.SQLITE_LOCKED):
        return StoreError(f"the history at {path} is locked by another program", "see lsof(8)")
    if code == _sqlite3.SQLITE_READONLY:
        return StoreError(f"the history at {path} is read-only here", _WHERE_ELSE)
    if code in (_sqlite3.SQLITE_CANTOPEN, _sqlite3.SQLITE_PERM):
        return StoreError(f"the history at {path} cannot be opened ({error})", _WHERE_ELSE)
    remedy = "check its file system" if code == _sqlite3.SQLITE_IOERR else ""
    return StoreError(f"the history at {path} cannot be used ({error})", remedy)
