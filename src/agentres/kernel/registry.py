"""Which agents run on this host: what their supervisors wrote on their cgroups.

No file can be left behind that tells of an agent which is no more: the marks are extended attributes of
the cgroup that the limits stand on (``HOME/agent``, see :mod:`agentres.kernel.delegation`), and go with it.
User attributes on cgroups: Linux 5.7.

    user.agentres.name         the agent's name
    user.agentres.started      unix seconds, as text
    user.agentres.supervisor   process id, as text, in the supervisor's own PID namespace
    user.agentres.owner        user id, as text: whose agent it is, where root supervises it for somebody
    user.agentres.leased       ``1``: it ends with whoever asked the daemon for it
    user.agentres.claim        ``PRIORITY LEAST WANTS SINCE MOST``: see :class:`ClaimMark`
    user.agentres.philosophy   the name of how its limits move
    user.agentres.control      the abstract socket that its supervisor listens on, without the zero byte
    user.agentres.writes       ``READ DIRTIED UNBILLED``, bytes: what no control file tells (:mod:`agentres.kernel.writeback`)
    user.agentres.idle         ``1`` while it has not run for a while, where it may use swap
    user.agentres.kept         seconds of CLOCK_BOOTTIME, as text: until then it hands no memory back, for none could be had
    user.agentres.paused       ``1`` while it is frozen to be level with its disk rates, and for nothing else
    user.agentres.cpus         the list of CPUs that it is bound to, empty: none
    user.agentres.network      ``in=RATE out=RATE loopback=…`` as we set it last; what holds is in the kernel
"""

from __future__ import annotations

import os

from agentres.model import log
from agentres.model.errors import printable
from agentres.model.record import Record
from agentres.model.units import PRIORITY_MAX

LEAF = "agent"
"""What the cgroup is called that carries the marks."""

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

_PID_MAX = 1 << 22  # PID_MAX_LIMIT in include/linux/threads.h
_YEAR_9999 = 253402300800.0
_NAME_MAX = 255
_BYTES_MAX = 1 << 60


class Found(Record):
    """A running agent: ``path`` is the cgroup with its limits, ``home`` the one around it.

    ``started`` in unix seconds; ``uid`` is whose agent it is, ``keeper`` who owns the cgroup.  All but that and the paths
    is what the keeper wrote there, and nobody else vouches for.
    """

    name: str
    path: str
    home: str
    started: float
    supervisor: int
    uid: int
    keeper: int


class ClaimMark(Record):
    """What an agent claims of the memory that all share.

    ``priority`` is a weight, 100 for most; ``least`` is the least limit that it may be given, in bytes.
    ``wants`` are the bytes that it needs and has not got, 0 for none, ``since`` when: seconds of CLOCK_BOOTTIME.
    ``most`` is the limit that it may grow to, 0 for one that is not elastic, or not known.
    """

    priority: int = 100
    least: int = 0
    wants: int = 0
    since: float = 0.0
    most: int = 0


def mark_claim(fd: int, claim: ClaimMark) -> None:
    """Say what the agent whose cgroup is open as ``fd`` claims; OSError where no mark can be made."""
    text = f"{claim.priority} {claim.least} {claim.wants} {claim.since!r} {claim.most}"
    os.setxattr(fd, _CLAIM, text.encode())


def claim_mark(path: str) -> ClaimMark | None:
    """What the agent claims whose cgroup is at ``path``; what makes no sense counts as nothing said: None."""
    try:
        priority, least, wants, since, most = os.getxattr(path, _CLAIM).split()
        found = ClaimMark(int(priority), int(least), int(wants), float(since), int(most))
    except (OSError, ValueError):
        return None
    # Whoever may make cgroups may write anything there; NaN is no time either.
    sane = (
        0 < found.priority <= PRIORITY_MAX
        and 0 <= found.least < _BYTES_MAX
        and 0 <= found.wants < _BYTES_MAX
        and 0 <= found.since < _YEAR_9999
        and 0 <= found.most < _BYTES_MAX
    )
    return found if sane else None


def mark(fd: int, name: str, started: float, supervisor: int, owner: int | None = None) -> None:
    """Say whose cgroup the open directory ``fd`` is, so that :func:`running` finds it."""
    # The name comes last: who has one has the others.
    values = [(_STARTED, repr(started)), (_SUPERVISOR, str(supervisor)), (_NAME, name)]
    if owner is not None:
        values.insert(0, (_OWNER, str(owner)))
    all(_set(fd, attribute, value) for attribute, value in values)


def mark_leased(fd: int) -> None:
    """Say that the agent whose cgroup is open as ``fd`` ends with whoever asked for it, and so with its supervisor."""
    _set(fd, _LEASED, "1")


def leased(path: str) -> bool:
    """Whether that was said."""
    return _get(path, _LEASED) == b"1"


def mark_philosophy(path: str, name: str) -> None:
    """Say how the limits of the agent at ``path`` move."""
    _set(path, _PHILOSOPHY, name)


def philosophy(path: str) -> str:
    """What was said of that, fit for a terminal; empty: nothing."""
    return printable((_get(path, _PHILOSOPHY) or b"")[:_NAME_MAX].decode(errors="replace"))


def is_owned(path: str) -> bool:
    """Whether the daemon has it run for somebody."""
    return _get(path, _OWNER) is not None


def journal_identifier(uid: int, name: str) -> str:
    """As what the output of an agent is in the journal that nobody's terminal gets."""
    return f"agentres-{uid}:{name}"


def name(path: str) -> str:
    """The name of the agent at ``path``; empty: it has none any more."""
    return (_get(path, _NAME) or b"").decode(errors="backslashreplace")


def is_marked(path: str) -> bool:
    """Whether an agent's limits stand on the cgroup at ``path``."""
    return _get(path, _NAME) is not None


def mark_control(fd: int, socket: str) -> None:
    """Say where the supervisor of the agent whose cgroup is open as ``fd`` takes commands; OSError."""
    os.setxattr(fd, _CONTROL, socket.encode())


def control(path: str) -> str:
    """Where that is for the agent at ``path``; empty: nowhere that anybody knows of."""
    return (_get(path, _CONTROL) or b"").decode(errors="replace")


def mark_network(fd: int, text: str) -> None:
    """Say what the network of the agent whose cgroup is open as ``fd`` is held to, where marks can be made."""
    _set(fd, _NETWORK, text)


def network(fd: int) -> str:
    """What was said of it; empty: nothing."""
    return (_get(fd, _NETWORK) or b"").decode(errors="replace")


def mark_cpus(fd: int, text: str) -> None:
    """Say which CPUs the agent whose cgroup is open as ``fd`` is bound to: a list, or empty."""
    _set(fd, _CPUS, text)


def cpus(path: str) -> str:
    """What was said of that for the agent at ``path``; empty: nothing, or nothing that makes sense."""
    from agentres.model.cpus import format_list, parse_list

    try:
        return format_list(parse_list((_get(path, _CPUS) or b"").decode()))
    except ValueError:  # whoever may make cgroups may write anything there
        return ""


def mark_writes(fd: int, *counts: int | None) -> None:
    """Say what the agent whose cgroup is open as ``fd`` has read, dirtied and written unbilled by now: bytes, None where that is not known."""
    _set(fd, _WRITES, " ".join("-" if n is None else str(n) for n in counts))


def writes(path: str) -> tuple[int | None, int | None, int | None]:
    """What was said of that for the agent at ``path``; None: nothing."""
    words = (_get(path, _WRITES) or b"").split()
    try:
        read, dirtied, unbilled = (None if word == b"-" else int(word) for word in words)
    except ValueError:  # no such mark, or one that somebody else made
        return None, None, None
    return read, dirtied, unbilled


def mark_paused(fd: int, paused: bool) -> None:
    """Say that the agent whose cgroup is open as ``fd`` is frozen for a moment, and wants nothing of others; or no more."""
    _mark_state(fd, _PAUSED, paused)


def mark_idle(fd: int, idle: bool) -> None:
    """Say that the agent whose cgroup is open as ``fd`` has not run for a while; or that it does."""
    _mark_state(fd, _IDLE, idle)


def is_idle(path: str) -> bool:
    """Whether that was said of the agent at ``path``."""
    return _get(path, _IDLE) == b"1"


def mark_kept(fd: int, until: float) -> None:
    """Say that the agent whose cgroup is open as ``fd`` has no memory to hand back until then: seconds of CLOCK_BOOTTIME."""
    _set(fd, _KEPT, repr(until))


def keeps(path: str, now: float) -> bool:
    """Whether that was said of the agent at ``path``."""
    try:
        return now < float(_get(path, _KEPT) or 0)
    except ValueError:
        return False


def is_paused(path: str) -> bool:
    """Whether that was said of the agent at ``path``."""
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
    """Mark a cgroup; False where it cannot be: the agent runs as well without."""
    try:
        os.setxattr(where, attribute, os.fsencode(value))
    except OSError as error:
        log.debug(__name__, "%s cannot be set: %s", attribute, error)
        return False
    return True


def _get(where: int | str, attribute: str) -> bytes | None:
    """What a cgroup is marked with; None: there is no such mark, or the agent has gone."""
    try:
        return os.getxattr(where, attribute)
    except OSError:
        return None


def identity(path: str) -> tuple[str, float]:
    """The name and start (unix seconds) that the cgroup at ``path`` is marked with; OSError, ValueError.

    The name is told to other users: whatever would command their terminals is spelled out.
    """
    name = os.getxattr(path, _NAME)[:_NAME_MAX].decode(errors="backslashreplace")
    started = float(os.getxattr(path, _STARTED))
    if not (name and 0 <= started < _YEAR_9999):
        raise ValueError("its marks make no sense")
    return printable(name), started


def user_name(uid: int) -> str:
    """The user's name, or its number where it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def running(mount: str) -> list[Found]:
    """The agents in the cgroup2 hierarchy at ``mount``, agents of agents too, the oldest first.

    What vanishes meanwhile or cannot be read is passed over: others' cgroups are not ours to open.
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
    """Not where the links are its own two: most cgroups are leaves, and list fifty files each."""
    try:
        return entry.stat(follow_symlinks=False).st_nlink != 2
    except OSError:  # it has gone, and so have they
        return False


def _marked(path: str, home: str) -> Found | None:
    try:
        name = os.getxattr(path, _NAME).decode(errors="backslashreplace")
        started = float(os.getxattr(path, _STARTED))
        supervisor = int(os.getxattr(path, _SUPERVISOR))
        keeper = os.stat(path).st_uid
        uid = _owner(path) if keeper == 0 else keeper
    except (OSError, ValueError) as error:
        log.debug(__name__, "%s is no agent's: %s", path, error)
        return None
    # Whoever may make cgroups may write anything there; NaN is no time either.
    if not (name and 0 <= started < _YEAR_9999 and 0 < supervisor < _PID_MAX):
        log.debug(__name__, "%s is no agent's: its marks make no sense", path)
        return None
    if _deserted(home):
        log.debug(__name__, "%s was left by a run that was killed", home)
        return None
    return Found(name, path, home, started, supervisor, uid, keeper)


def _owner(path: str) -> int:
    """Whom root says that it keeps the agent for; ValueError."""
    try:
        return int(os.getxattr(path, _OWNER))
    except OSError:  # no such mark: for itself
        return 0


def _deserted(home: str) -> bool:
    """Whether neither the supervisor nor anything of the agent is alive."""
    from agentres.kernel.process import populated

    try:
        return not populated(home)
    except OSError:  # it goes at this moment: whoever reads it next finds that out
        return False
