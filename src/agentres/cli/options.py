"""The options of ``agentres run``, said once, and what they mean.

The process that parses them stays beside the agent, so it cannot afford Typer (50 MB of imports with
Rich and pydantic, half a second on a slow machine).  The table :data:`OPTIONS` is therefore read
twice: :func:`parse` understands every well-formed command line with the standard library alone;
:mod:`agentres.cli.app` builds the Typer command from it for ``--help``, completion and the words for
a line that is not well-formed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from agentres.agent import Request
from agentres.errors import UsageError
from agentres.limits import (
    DISKS,
    PRIORITIES,
    PRIORITY_MAX,
    SHARE,
    WRITTEN,
    Host,
    LimitError,
    Limits,
    defaults,
    read_limits,
)
from agentres.record import TYPE_CHECKING, Record
from agentres.units import MAX, UnitError, parse_count, parse_duration

if TYPE_CHECKING:
    from typing import Any

    from agentres.settings import Settings

    Values = Mapping[str, Any]
    """Option key -> its text, the list of texts where it is repeatable, True for a flag."""

LIMITS, AGENT, OUTPUT = "Limits", "The agent", "What agentres says and does"


class Option(Record):
    """One option: its name, what it takes (empty: a flag), where and how ``--help`` shows it.

    ``alone`` is what it stands for without a value, which is then only to be given after ``=``.
    """

    name: str
    metavar: str
    panel: str
    help: str
    repeatable: bool = False
    alone: str = ""

    @property
    def key(self) -> str:
        """The name as an identifier: ``io_read``."""
        return self.name.replace("-", "_")


OPTIONS = (
    Option("cpu", "CORES", LIMITS, "CPU: cores (1.5) or percent of one core (150%), or a range (0.5:4). Default: what earlier runs used, else 1 core, up to 80% of the host."),
    Option("memory", "SIZE", LIMITS, "Memory: 512M, 2GiB, 50% of the host, or a range (256M:2G, 256M:max). Default: what earlier runs used, else 256 MiB, up to 80% of the host."),
    Option("swap", "SIZE", LIMITS, "Swap on top of the memory. Default: 0."),
    Option("pids", "N", LIMITS, "Processes and threads at once, or a range (64:512). Default: 512."),
    Option("io-read", "[DEV=]RATE", LIMITS, "Bytes a second read from every disk, or from DEV (a device, or a path on it), or a range (10M:100M); repeatable. Default: 100MB/s.", True),
    Option("io-write", "[DEV=]RATE", LIMITS, "Bytes a second written, likewise. Default: 100MB/s.", True),
    Option("io-read-iops", "[DEV=]N", LIMITS, "Read operations a second, likewise. Default: no limit.", True),
    Option("io-write-iops", "[DEV=]N", LIMITS, "Write operations a second, likewise. Default: no limit.", True),
    Option("nofile", "N", LIMITS, "Open files of each process (RLIMIT_NOFILE). Default: 1000."),
    Option("philosophy", "NAME", LIMITS, "How limits that are ranges move: balanced, conservative, aggressive, frozen, or one of the configuration's; see agentres philosophies."),
    Option("priority", "low|normal|high|N", LIMITS, "Who goes first when the host's budget is gone, 1 to 1000: low is 25, high 400. Default: normal, 100."),
    Option("wait", "[DURATION]", LIMITS, "Where the least does not fit the host's budget: wait for it, at most so long with --wait=5m. Default: fail.", alone=MAX),
    Option("timeout", "DURATION", LIMITS, "Wall time: 90s, 5m, 1h30m; then SIGTERM, 5 s later SIGKILL, and exit 124. Default: none."),
    Option("name", "NAME", AGENT, "The agent's name. Default: the command's, with a random end."),
    Option("user", "USER", AGENT, "Run as this user (root only); sets HOME, USER, LOGNAME and the groups."),
    Option("cwd", "DIR", AGENT, "Start in this directory."),
    Option("config", "FILE", OUTPUT, "Read the configuration from FILE alone. Default: $AGENTRES_CONFIG, else /etc/agentres/agentres.toml and the user's own."),
    Option("best-effort", "", OUTPUT, "Run even where limits cannot be enforced; they are listed on stderr. Needs a cgroup that may be written."),
    Option("summary", "FILE", OUTPUT, "Write a JSON summary to FILE at the end."),
    Option("quiet", "", OUTPUT, "Say nothing but errors."),
    Option("verbose", "", OUTPUT, "Say every control-file write."),
)  # fmt: skip  # a table
"""Every option of ``agentres run``, in the order of ``--help``."""

_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
_NAME_MAX = 64


class RunOptions(Record):
    """What the command line asked for: the request, and how to talk about it.

    ``philosophy`` is a name, or None for the configuration's; ``priority`` a weight such as ``cpu.weight``
    (100 is normal); ``wait`` the seconds to wait for room in the budget: None is not at all, infinite without
    end.
    """

    request: Request
    summary: str | None
    quiet: bool
    verbose: bool
    config: str | None = None
    philosophy: str | None = None
    priority: int = PRIORITIES["normal"]
    wait: float | None = None


def parse(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]] | None:
    """The values and the command of a well-formed line; None for any other (``--help`` too)."""
    by_flag = {f"--{option.name}": option for option in OPTIONS}
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        flag, equals, text = word.partition("=")
        option = by_flag.get(flag)
        if option is None or (equals and not option.metavar):
            return None
        if not option.metavar:
            values[option.key] = True
            continue
        if not equals and option.alone:
            text = option.alone
        elif not equals:
            if not rest:
                return None
            text = rest.pop(0)
        if option.repeatable:
            values.setdefault(option.key, []).append(text)
        else:
            values[option.key] = text
    return (values, rest) if rest else None


def spell_out(arguments: Sequence[str]) -> list[str]:
    """The line with a value for each option that was given alone, as Typer wants it."""
    by_flag = {f"--{option.name}": option for option in OPTIONS}
    line, rest = list[str](), list(arguments)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
        word = rest.pop(0)
        option = by_flag.get(word)
        if option is not None and option.alone:
            line.append(f"{word}={option.alone}")
            continue
        line.append(word)
        if option is not None and option.metavar:
            line += rest[:1]
            del rest[:1]
    return line + rest


def to_arguments(values: Values, command: Sequence[str]) -> list[str]:
    """The line that :func:`parse` takes apart into these values."""
    line = []
    for option in OPTIONS:
        given = values.get(option.key)
        if given is True:
            line.append(f"--{option.name}")
        elif given is not None and given is not False:
            line += [
                f"--{option.name}={text}" for text in ([given] if isinstance(given, str) else given)
            ]
    return [*line, "--", *command]


def understand(
    values: Values, command: Sequence[str], host: Host, settings: Settings | None = None
) -> RunOptions:
    """The request that the options stand for.  UsageError names the option, value and remedy.

    ``settings`` is what the configuration says: its limits hold where no option says otherwise, and it has
    the philosophies; None is what is built in.
    """
    timeout = _value("timeout", values, parse_duration)
    if timeout == 0:
        raise UsageError(f"--timeout {values['timeout']}: must be above 0")
    name = values.get("name")
    if name is None:
        name = default_name(command[0])
    if not (
        name and set(name) <= _NAME_CHARACTERS and name[0].isalnum() and len(name) <= _NAME_MAX
    ):
        raise UsageError(
            f"--name {name}: expected at most 64 letters, digits and _.-, a letter or digit first"
        )
    if values.get("config") == "":
        raise UsageError("--config: expected a file")
    texts = _texts(values, settings)
    limits = _limits(
        values, texts, defaults(host, settings.budget_share if settings else SHARE), host
    )
    asked = [key for key in DISKS if key in texts]
    asked_rates = [rate for key in asked for rate in getattr(limits, key).values()]
    request = Request(
        command=tuple(command),
        limits=limits,
        name=name,
        # Nobody asked for the rates that hold by default.
        tolerated=frozenset({"io.max"} if set(asked_rates) <= {MAX} else ()),
        every_disk_asked=any("=" not in text for key in asked for text in texts[key]),
        best_effort=bool(values.get("best_effort")),
        timeout=timeout,
        user=values.get("user"),
        cwd=values.get("cwd"),
    )
    return RunOptions(
        request,
        values.get("summary"),
        bool(values.get("quiet")),
        bool(values.get("verbose")),
        values.get("config"),
        _philosophy(values, settings),
        _value("priority", values, parse_priority, PRIORITIES["normal"]),
        _value("wait", values, parse_wait),
    )


def default_name(command: str) -> str:
    """The command's name with a random end: two agents of one command can live side by side."""
    base = "".join(c if c in _NAME_CHARACTERS else "_" for c in os.path.basename(command))
    return f"{base.lstrip('_.-')[:48] or 'agent'}-{os.urandom(3).hex()}"


def parse_priority(text: str) -> int:
    """A weight from ``low``, ``normal``, ``high`` or a number; UnitError."""
    if (known := PRIORITIES.get(text)) is not None:
        return known
    expected = f"expected low, normal, high, or a whole number, 1 to {PRIORITY_MAX}"
    try:
        number = parse_count(text)
    except UnitError:
        raise UnitError(expected) from None
    if not 1 <= number <= PRIORITY_MAX:
        raise UnitError(expected)
    return number


def parse_wait(text: str) -> float:
    """Seconds, infinite for ``max``; UnitError."""
    seconds = float("inf") if text == MAX else parse_duration(text)
    if seconds == 0:
        raise UnitError("must be above 0")
    return seconds


def _philosophy(values: Values, settings: Settings | None) -> str | None:
    name: str | None = values.get("philosophy")
    if name is not None:
        # Here: few ask, and it is else needed only after the launch.
        from agentres.settings import Settings

        (settings or Settings()).chosen(name)
    return name


def _texts(values: Values, settings: Settings | None) -> dict[str, str | Sequence[str]]:
    """The limits that somebody asked for, the later over the earlier: first the configuration's."""
    texts = dict(settings.limits) if settings else {}
    for key in WRITTEN:
        if (given := values.get(key)) is not None:
            texts[key] = [*texts.get(key, ()), *given] if key in DISKS else given
    return texts


def _limits(
    values: Values, texts: Mapping[str, str | Sequence[str]], standard: Limits, host: Host
) -> Limits:
    try:
        return read_limits(texts, host, standard)
    except LimitError as error:
        given = values.get(error.key, ())
        if error.text in ([given] if isinstance(given, str) else given):
            where = f"--{error.key.replace('_', '-')} {error.text}"
        else:  # the host has shrunk since the configuration was read
            where = f"limits.{error.key} = {error.text}"
        raise UsageError(f"{where}: {error}") from None


def _value(key: str, values: Values, parse_text: Callable[[str], Any], standard: Any = None) -> Any:
    text = values.get(key)
    if text is None:
        return standard
    try:
        return parse_text(text)
    except UnitError as error:
        raise UsageError(f"--{key.replace('_', '-')} {text}: {error}") from None
