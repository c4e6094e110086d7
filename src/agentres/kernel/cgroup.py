"""One cgroup: create, apply limits and read them back, kill, remove.

A :class:`Cgroup` holds a directory fd, so it stays the cgroup it was opened on even if another has
taken its path since.  Control files are opened without O_CREAT: on anything but a cgroup file system
a write fails instead of creating a file.
"""

from __future__ import annotations

import errno
import os
import select
import time

from agentres.kernel import process
from agentres.kernel.controllers import Controllers
from agentres.model import figures, log
from agentres.model.errors import ControlFileError
from agentres.model.limits import ControlLine, UnenforcedLimit
from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import RunningProcess, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

DELEGATE_XATTR = "user.delegate"
"""Extended attribute: ``1`` on a cgroup means that its subtree is delegated to the processes in it
(systemd's docs/CGROUP_DELEGATION.md)."""


class Cgroup(Controllers):
    """A cgroup by its path and an open directory fd; closed by :meth:`close`.

    Every method raises :class:`~agentres.model.errors.ControlFileError` with the path, the data and the
    kernel's answer.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ControlFileError(path, None, error.errno or 0) from error

    def __repr__(self) -> str:
        return f"Cgroup({self.path!r})"

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # The two calls that every control file goes through (cgroupspy's descriptors call them).

    def get_property(self, filename: str | bytes) -> str:
        name = os.fsdecode(filename)
        try:
            fd = os.open(name, os.O_RDONLY, dir_fd=self.fd)
            try:
                return os.pread(fd, 1 << 20, 0).decode()
            finally:
                os.close(fd)
        except OSError as error:
            raise ControlFileError(f"{self.path}/{name}", None, error.errno or 0) from error

    def set_property(self, filename: str | bytes, value: str) -> None:
        name = os.fsdecode(filename)
        log.debug(__name__, "%s/%s = %s", self.path, name, value)
        try:
            fd = os.open(name, os.O_WRONLY, dir_fd=self.fd)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise ControlFileError(f"{self.path}/{name}", value, error.errno or 0) from error

    def has(self, filename: str) -> bool:
        """Whether the control file is there."""
        try:
            os.stat(filename, dir_fd=self.fd)
        except OSError:
            return False
        return True

    # The tree.

    def create(self, name: str) -> Cgroup:
        """Make the child ``name``; the error's errno is EEXIST if it exists already."""
        path = f"{self.path}/{name}"
        log.debug(__name__, "mkdir %s", path)
        try:
            os.mkdir(name, 0o755, dir_fd=self.fd)
        except OSError as error:
            raise ControlFileError(path, None, error.errno or 0, _mkdir_detail(error)) from error
        return Cgroup(path)

    def children(self) -> list[str]:
        """The names of the child cgroups."""
        with os.scandir(self.fd) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

    @property
    def is_root(self) -> bool:
        """Whether this is the hierarchy's root, which may hold processes and enable controllers; it has no cgroup.type."""
        return not self.has("cgroup.type")

    def enable(self, controllers: Iterable[str], timeout: float = 0.0) -> None:
        """Enable ``controllers`` for the children, unless they have them already.

        Where a process of this cgroup is exiting, the kernel refuses that with EBUSY: such a process can neither be seen nor
        moved, and is there until its memory is freed.  Retry for ``timeout`` seconds, then raise that errno.
        """
        missing = [c for c in controllers if c not in self.subtree_control]
        if missing:
            words = " ".join(f"+{c}" for c in missing)
            deadline = time.monotonic() + timeout
            _while_busy(lambda: self.set_property("cgroup.subtree_control", words), deadline)

    def disable_all(self) -> None:
        """Disable all controllers for the children."""
        if enabled := self.subtree_control:
            self.subtree_control = [f"-{c}" for c in enabled]

    def move_here(self, pid: int) -> None:
        """Move a process into this cgroup; 0 is the caller."""
        self.procs = [str(pid)]

    @property
    def populated(self) -> bool:
        """Whether a live process is in this cgroup or below it."""
        return figures.is_populated(self.get_property("cgroup.events").encode())

    @property
    def delegated(self) -> bool:
        """Whether this cgroup is marked as delegated to the processes in it."""
        for name in (DELEGATE_XATTR, "trusted.delegate"):
            try:
                if os.getxattr(self.fd, name) == b"1":
                    return True
            except OSError:  # absent, unreadable for this user, or no xattrs: not delegated
                continue
        return False

    def mark_delegated(self) -> None:
        """Mark this cgroup as delegated to the processes in it, so that a run inside it nests."""
        try:
            os.setxattr(self.fd, DELEGATE_XATTR, b"1")
        except OSError as error:
            # Only nesting needs it, and a nested run reports for itself that it has no delegation.
            log.debug(__name__, "%s: no xattr: %s", self.path, error)

    def keep_from_oomd(self) -> None:
        """Have systemd-oomd kill others first (ManagedOOMPreference=avoid, systemd.resource-control(5))."""
        try:
            os.setxattr(self.fd, "user.oomd_avoid", b"1")
        except OSError as error:
            # systemd-oomd may then kill this one; the kernel's OOM killer takes agents first (agentres.kernel.trampoline).
            log.debug(__name__, "%s: no xattr: %s", self.path, error)

    def killed_by_oomd(self) -> int:
        """Return how many of this cgroup's own processes systemd-oomd says it has killed (``user.oomd_kill``)."""
        try:
            return int(os.getxattr(self.fd, "user.oomd_kill"))
        except (OSError, ValueError):  # it has killed nobody here
            return 0

    # Limits.

    def apply(self, lines: Iterable[ControlLine]) -> list[UnenforcedLimit]:
        """Write each line and read it back.  Return those that do not hold; the others stand."""
        unenforced = []
        for line in lines:
            try:
                self.set_property(line.file, line.text)
                found = self.get_property(line.file)
                held = holds(line, found)
            except ControlFileError as error:
                unenforced.append(UnenforcedLimit(line, _why(line, error)))
                continue
            except ValueError:  # garbage
                held = False
            if not held:
                unenforced.append(
                    UnenforcedLimit(line, f"{line.file} reads back {found.strip()!r}")
                )
        return unenforced

    def usage(self, leaf: str = "main") -> tuple[Usage, dict[str, str]]:
        """Return the usage of this cgroup and its descendants, and the files that hold garbage.

        ``leaf`` is the child with the processes.
        """
        files = {
            name: self.get_property(name).encode() for name in figures.USAGE_FILES if self.has(name)
        }
        # Before Linux 6.11 a refused fork counts in the cgroup of the task that forked, not at the limit.
        if files.get("pids.events") == b"max 0\n" and self.has(f"{leaf}/pids.events"):
            files["pids.events"] = self.get_property(f"{leaf}/pids.events").encode()
        return figures.usage(files)

    def processes(self) -> list[RunningProcess]:
        """Return the live processes here and below, without zombies; one that starts or ends meanwhile may be missing."""
        try:
            return [
                RunningProcess(pid, name)
                for pid in process.below(self.path)
                if (name := process.name(pid))
            ]
        except OSError as error:
            raise ControlFileError(f"{self.path}/cgroup.procs", None, error.errno or 0) from error

    # The end.

    def kill_all(self, timeout: float = 10.0) -> bool:
        """SIGKILL everything here and below and wait until it is gone; False after ``timeout`` s.

        A process in an uninterruptible wait (a dead NFS server) survives SIGKILL.
        """
        self.kill = True
        return self.wait_empty(timeout)

    def wait_empty(self, timeout: float) -> bool:
        """Wait on ``cgroup.events`` until no live process is here or below; False after ``timeout`` s."""
        try:
            fd = os.open("cgroup.events", os.O_RDONLY, dir_fd=self.fd)
        except FileNotFoundError:  # removed, which is possible only without processes
            return True
        try:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            deadline = time.monotonic() + timeout
            while figures.is_populated(os.pread(fd, 4096, 0)):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                poll.poll(left * 1000)
            return True
        except OSError as error:
            if error.errno == errno.ENODEV:  # removed since it was opened
                return True
            raise
        finally:
            os.close(fd)

    def remove_tree(self, timeout: float = 5.0) -> None:
        """Remove every cgroup below this one, deepest first, and then this one.

        ``rmdir`` fails with EBUSY for a moment after the last process has gone: retry it for
        ``timeout`` seconds, then raise the last errno.
        """
        deadline = time.monotonic() + timeout
        for path in reversed(list(_parents_first(self.path))):
            _rmdir(path, deadline)
        self.close()


def holds(line: ControlLine, found: str) -> bool:
    """Whether the control file's text matches what was written; pure.  ValueError for garbage."""
    if not line.key:
        return found.split() == line.text.split()
    rows, wanted = (figures.nested_keyed(text.encode()) for text in (found, line.text))
    key = line.key.encode()
    return rows.get(key) == wanted[key]


def _why(line: ControlLine, error: ControlFileError) -> str:
    if error.errno == errno.ENOENT:
        return f"there is no {line.file}: the {line.controller} controller is not available"
    if error.errno == errno.ENODEV:
        return f"device {line.key} takes no {line.file}"
    return error.message


def _mkdir_detail(error: OSError) -> str:
    if error.errno == errno.EAGAIN:
        return "no more cgroups allowed here (cgroup.max.descendants or cgroup.max.depth)"
    return ""


def _parents_first(path: str) -> Iterator[str]:
    """Yield this cgroup and all below it.  Restore the permissions of those that the agent has closed."""
    waiting = [path]
    while waiting:
        path = waiting.pop()
        yield path
        try:
            if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                os.chmod(path, 0o700)
            with os.scandir(path) as entries:
                waiting += [e.path for e in entries if e.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ControlFileError(path, None, error.errno or 0) from error


def _rmdir(path: str, deadline: float) -> None:
    log.debug(__name__, "rmdir %s", path)
    try:
        _while_busy(lambda: os.rmdir(path), deadline)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ControlFileError(path, None, error.errno or 0) from error


def _while_busy(act: Callable[[], object], deadline: float) -> None:
    """Call ``act``, again until ``deadline`` (monotonic) as long as it raises EBUSY."""
    pause = 0.001
    while True:
        try:
            act()
            return
        except (OSError, ControlFileError) as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 2, 0.1)
