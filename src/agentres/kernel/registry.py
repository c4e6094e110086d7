"""The agents that run on this host, from the marks that supervisors put on their cgroups.

The marks are extended attributes of the cgroup with the limits (``HOME/agent``, see
:mod:`agentres.kernel.delegation`).  They vanish with it, so no stale file can be left behind.
User attributes on cgroups: Linux 5.7.

    user.agentres.name         the agent's name
    user.agentres.started      unix seconds, as text
    user.agentres.supervisor   process id, as text, in the supervisor's own PID namespace
    user.agentres.owner        user id, as text: the user whose agent it is, where root supervises it
    user.agentres.leased       ``1``: it ends with the process that asked the daemon for it
    user.agentres.claim        ``PRIORITY LEAST WANTS SINCE MOST``: see :class:`ClaimMark`
    user.agentres.philosophy   the name of its philosophy: how its limits move
    user.agentres.control      the abstract socket that its supervisor listens on, without the zero byte; ``-``: it could not listen
    user.agentres.writes       ``READ DIRTIED UNBILLED``, bytes that no control file has (:mod:`agentres.kernel.writeback`)
    user.agentres.idle         ``1`` while it has not run for a while, where it may use swap
    user.agentres.kept         seconds of CLOCK_BOOTTIME, as text: until then it hands no memory back, as none could be reclaimed
    user.agentres.paused       ``1`` while it is frozen only to keep its disk rates
    user.agentres.cpus         the list of CPUs that it is bound to; empty: not bound
    user.agentres.network      ``in=RATE out=RATE loopback=…`` as we set it last; the kernel has what is in force
"""

from __future__ import annotations

import os

from agentres.model import log
from agentres.model.errors import printable
from agentres.model.record import Record
from agentres.model.units import PRIORITY_MAX

LEAF = "agent"
"""The name of the cgroup that carries the marks."""

_NAME, _STARTED, _SUPERVISOR = (
    f"user.agentres.{mark}" for mark in ("name", "started", "supervisor")
)

_LEASED = "user.agentres.leased"
_PHILOSOPHY = "user.agentres.philosophy"
_OWNER = "user.agentres.owner"
_CLAIM = "user.agentres.claim"
_CONTROL = "user.agentres.control"
_NETWORK = "user.agentres.network"
_CPUS = "user.agentres.cpus"
_WRITES = "user.agentres.writes"
_PAUSED = "user.agentres.paused"
_KEPT = "user.agentres.kept"
_IDLE = "user.agentres.idle"

NO_CONTROL = "-"
"""In place of the socket of a supervisor that could not listen: it takes no commands."""

_PID_MAX = 1 << 22  # PID_MAX_LIMIT in include/linux/threads.h
_YEAR_9999 = 253402300800.0
_NAME_MAX = 255
_BYTES_MAX = 1 << 60


class RunningAgent(Record):
    """A running agent.

    Trust only the paths and ``cgroup_uid``: that user wrote the rest, and nobody else vouches for it.
    """

    name: str
    # The cgroup with its limits, and the one around it.
    path: str
    home: str
    # Unix seconds.
    started: float
    # The PID of its supervisor.
    supervisor: int
    # The user whose agent it is.
    uid: int
    # The owner of the cgroup: the user whose process supervises it.
    cgroup_uid: int


class ClaimMark(Record):
    """What an agent claims of the memory that all agents share."""

    # A weight, mostly 100.
    priority: int = 100
    # The lowest limit that it may be given, in bytes.
    least: int = 0
    # The limit that it was refused, in bytes; 0: none.
    wants: int = 0
    # Since when it was refused, in seconds of CLOCK_BOOTTIME.
    since: float = 0.0
    # The limit that it may grow to, in bytes; 0: not elastic, or not known.
    most: int = 0


def mark_claim(fd: int, claim: ClaimMark) -> None:
    """Mark the claim of the agent with the open cgroup ``fd``; OSError where no mark can be made."""
    text = f"{claim.priority} {claim.least} {claim.wants} {claim.since!r} {claim.most}"
    os.setxattr(fd, _CLAIM, text.encode())


def claim_mark(path: str) -> ClaimMark | None:
    """Return the claim of the agent at ``path``; None: no mark, or one that makes no sense."""
    try:
        priority, least, wants, since, most = os.getxattr(path, _CLAIM).split()
        found = ClaimMark(int(priority), int(least), int(wants), float(since), int(most))
    except (OSError, ValueError):
        return None
    # Any user who may make cgroups may write anything there, NaN for a time too.
    sane = (
        0 < found.priority <= PRIORITY_MAX
        and 0 <= found.least < _BYTES_MAX
        and 0 <= found.wants < _BYTES_MAX
        and 0 <= found.since < _YEAR_9999
        and 0 <= found.most < _BYTES_MAX
    )
    return found if sane else None


def mark(fd: int, name: str, started: float, supervisor: int, owner: int | None = None) -> None:
    """Mark the open cgroup ``fd`` as this agent's, so that :func:`running` finds it."""
    # The name comes last: a cgroup with a name has the other marks too.
    values = [(_STARTED, repr(started)), (_SUPERVISOR, str(supervisor)), (_NAME, name)]
    if owner is not None:
        values.insert(0, (_OWNER, str(owner)))
    all(_set(fd, attribute, value) for attribute, value in values)


def mark_leased(fd: int) -> None:
    """Mark that the agent with the open cgroup ``fd`` ends with the process that asked for it, and so with its supervisor."""
    _set(fd, _LEASED, "1")


def leased(path: str) -> bool:
    """Whether the agent at ``path`` has the mark of :func:`mark_leased`."""
    return _get(path, _LEASED) == b"1"


def mark_philosophy(path: str, name: str) -> None:
    """Mark the philosophy by which the limits of the agent at ``path`` move."""
    _set(path, _PHILOSOPHY, name)


def philosophy(path: str) -> str:
    """Return the name of that philosophy, safe for a terminal; empty: no mark."""
    return printable((_get(path, _PHILOSOPHY) or b"")[:_NAME_MAX].decode(errors="replace"))


def is_owned(path: str) -> bool:
    """Whether the daemon runs the agent at ``path`` for a user."""
    return _get(path, _OWNER) is not None


def journal_identifier(uid: int, name: str) -> str:
    """Return the journal's identifier for the output of an agent without a terminal."""
    return f"agentres-{uid}:{name}"


def name(path: str) -> str:
    """Return the name of the agent at ``path``; empty: no mark, or the agent is gone."""
    return (_get(path, _NAME) or b"").decode(errors="backslashreplace")


def is_marked(path: str) -> bool:
    """Whether the cgroup at ``path`` carries an agent's marks."""
    return _get(path, _NAME) is not None


def mark_control(fd: int, socket: str) -> None:
    """Mark the socket on which the supervisor of the agent with the open cgroup ``fd`` takes commands, or :data:`NO_CONTROL`; OSError."""
    os.setxattr(fd, _CONTROL, socket.encode())


def control(path: str) -> str:
    """Return that socket for the agent at ``path``; empty: no mark yet; :data:`NO_CONTROL`."""
    return (_get(path, _CONTROL) or b"").decode(errors="replace")


def mark_network(fd: int, text: str) -> None:
    """Mark the network limits of the agent with the open cgroup ``fd``, where marks can be made."""
    _set(fd, _NETWORK, text)


def network(fd: int) -> str:
    """Return the network limits that the cgroup is marked with; empty: no mark."""
    return (_get(fd, _NETWORK) or b"").decode(errors="replace")


def mark_cpus(fd: int, text: str) -> None:
    """Mark the CPUs that the agent with the open cgroup ``fd`` is bound to: a list, or empty."""
    _set(fd, _CPUS, text)


def cpus(path: str) -> str:
    """Return the CPUs that the agent at ``path`` is marked with; empty: none, or a mark that makes no sense."""
    from agentres.model.cpus import format_list, parse_list

    try:
        return format_list(parse_list((_get(path, _CPUS) or b"").decode()))
    except ValueError:  # any user who may make cgroups may write anything there
        return ""


def mark_writes(fd: int, *counts: int | None) -> None:
    """Mark the bytes that the agent with the open cgroup ``fd`` has read, dirtied and written unbilled so far; None: not known."""
    _set(fd, _WRITES, " ".join("-" if n is None else str(n) for n in counts))


def writes(path: str) -> tuple[int | None, int | None, int | None]:
    """Return the bytes read, dirtied and written unbilled, as the agent at ``path`` is marked; None: not known, or no mark."""
    words = (_get(path, _WRITES) or b"").split()
    try:
        read, dirtied, unbilled = (None if word == b"-" else int(word) for word in words)
    except ValueError:  # no such mark, or one that somebody else made
        return None, None, None
    return read, dirtied, unbilled


def mark_paused(fd: int, paused: bool) -> None:
    """Mark whether the agent with the open cgroup ``fd`` is only frozen for a moment, and wants nothing from others."""
    _mark_state(fd, _PAUSED, paused)


def mark_idle(fd: int, idle: bool) -> None:
    """Mark whether the agent with the open cgroup ``fd`` has not run for a while."""
    _mark_state(fd, _IDLE, idle)


def is_idle(path: str) -> bool:
    """Whether the agent at ``path`` is marked idle."""
    return _get(path, _IDLE) == b"1"


def mark_kept(fd: int, until: float) -> None:
    """Mark that the agent with the open cgroup ``fd`` hands no memory back before ``until``, seconds of CLOCK_BOOTTIME."""
    _set(fd, _KEPT, repr(until))


def keeps(path: str, now: float) -> bool:
    """Whether the agent at ``path`` is marked to hand no memory back at ``now``, seconds of CLOCK_BOOTTIME."""
    try:
        return now < float(_get(path, _KEPT) or 0)
    except ValueError:
        return False


def is_paused(path: str) -> bool:
    """Whether the agent at ``path`` is marked paused."""
    return _get(path, _PAUSED) == b"1"


def _mark_state(fd: int, attribute: str, holds: bool) -> None:
    if holds:
        _set(fd, attribute, "1")
        return
    try:
        os.removexattr(fd, attribute)
    except OSError as error:
        log.debug(__name__, "%s stays: %s", attribute, error)


def _set(where: int | str, attribute: str, value: str) -> bool:
    """Mark a cgroup.  Return False where that fails: the agent runs without the mark too."""
    try:
        os.setxattr(where, attribute, os.fsencode(value))
    except OSError as error:
        log.debug(__name__, "%s cannot be set: %s", attribute, error)
        return False
    return True


def _get(where: int | str, attribute: str) -> bytes | None:
    """Return a cgroup's mark; None: no such mark, or the cgroup is gone."""
    try:
        return os.getxattr(where, attribute)
    except OSError:
        return None


def identity(path: str) -> tuple[str, float]:
    """Return the name and start (unix seconds) that the cgroup at ``path`` is marked with; OSError, ValueError.

    Other users see the name, so control characters in it are escaped.
    """
    name = os.getxattr(path, _NAME)[:_NAME_MAX].decode(errors="backslashreplace")
    started = float(os.getxattr(path, _STARTED))
    if not (name and 0 <= started < _YEAR_9999):
        raise ValueError("its marks make no sense")
    return printable(name), started


def user_name(uid: int) -> str:
    """Return the user's name, or its number where it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def running(mount: str) -> list[RunningAgent]:
    """Return the agents in the cgroup2 hierarchy at ``mount``, nested ones too, oldest first.

    Cgroups that vanish meanwhile or cannot be read are skipped: we may not open other users' cgroups.
    """
    found = []
    waiting = [mount]
    while waiting:
        path = waiting.pop()
        try:
            with os.scandir(path) as entries:
                children = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            log.debug(__name__, "not looked into: %s", error)
            continue
        for child in children:
            if child.name == LEAF and (agent := _marked(child.path, path)) is not None:
                found.append(agent)
            if _may_have_children(child):
                waiting.append(child.path)
    return sorted(found, key=lambda agent: (agent.started, agent.path))


def _may_have_children(entry: os.DirEntry[str]) -> bool:
    """Whether the link count allows child cgroups: most cgroups are leaves, with fifty files each to list."""
    try:
        return entry.stat(follow_symlinks=False).st_nlink != 2
    except OSError:  # it is gone, with its children
        return False


def _marked(path: str, home: str) -> RunningAgent | None:
    try:
        name = os.getxattr(path, _NAME).decode(errors="backslashreplace")
        started = float(os.getxattr(path, _STARTED))
        supervisor = int(os.getxattr(path, _SUPERVISOR))
        cgroup_uid = os.stat(path).st_uid
        uid = _owner(path) if cgroup_uid == 0 else cgroup_uid
    except (OSError, ValueError) as error:
        log.debug(__name__, "%s is no agent's: %s", path, error)
        return None
    # Any user who may make cgroups may write anything there, NaN for a time too.
    if not (name and 0 <= started < _YEAR_9999 and 0 < supervisor < _PID_MAX):
        log.debug(__name__, "%s is no agent's: its marks make no sense", path)
        return None
    if _deserted(home):
        log.debug(__name__, "%s was left by a run that was killed", home)
        return None
    return RunningAgent(name, path, home, started, supervisor, uid, cgroup_uid)


def _owner(path: str) -> int:
    """Return the user that root keeps the agent for; ValueError."""
    try:
        return int(os.getxattr(path, _OWNER))
    except OSError:  # no such mark: for itself
        return 0


def _deserted(home: str) -> bool:
    """Whether neither the supervisor nor any process of the agent is alive."""
    from agentres.kernel.process import populated

    try:
        return not populated(home)
    except OSError:  # it is being removed: its next reader finds that out
        return False
