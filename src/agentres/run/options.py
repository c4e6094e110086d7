"""The options of ``agentres run``: one table, and its translation into a request.

The process that parses them stays in memory with the agent, so it cannot afford Typer (50 MB of imports
with Rich and pydantic, half a second on a slow machine).  The table :data:`OPTIONS` therefore has two
readers: :func:`parse` understands every well-formed command line with the standard library alone;
:mod:`agentres.cli.app` builds the Typer command from it for ``--help``, completion and the messages about
a malformed line.
"""

from __future__ import annotations

import os
from types import MappingProxyType

from agentres.model.errors import UsageError
from agentres.model.limits import (
    DISKS,
    LIMIT_SPECS,
    NETWORK,
    NETWORKS,
    ON_OFF,
    PRIORITIES,
    SHARE,
    Host,
    LimitError,
    defaults,
    parse_priority,
    read_limits,
)
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import MAX, UnitError, parse_choice, parse_duration, parse_size
from agentres.run.agent import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from agentres.policy.settings import Settings

    Values = Mapping[str, Any]
    """RunOption key -> its text, a list of texts if it is repeatable, True for a flag."""

LIMITS, AGENT, OUTPUT = "Limits", "The agent", "What agentres says and does"


class RunOption(Record):
    """One option: its name, its metavar (empty: a flag), its panel and text in ``--help``.

    ``alone`` is its value if it is given without one; a value must then follow after ``=``.  ``short`` is its short form: ``-q``.
    """

    name: str
    metavar: str
    panel: str
    help: str
    repeatable: bool = False
    alone: str = ""
    short: str = ""

    @property
    def key(self) -> str:
        """The name as an identifier: ``io_read``."""
        return self.name.replace("-", "_")


OPTIONS = (
    RunOption("cpu", "CORES", LIMITS, "CPU time: cores (1.5), percent of one core (150%), or a range (0.5:4). Default: starts at what earlier runs used, else 1 core; moves up to 80% of the host."),
    RunOption("cpuset", "LIST|N", LIMITS, "CPUs to bind the agent to: a list (0-3,8; 3-3 is CPU 3 alone), or how many: those with the fewest other agents bound to them, then the least busy. Default: all."),
    RunOption("memory", "SIZE", LIMITS, "Memory: 512M, 2GiB, 50% of the host, or a range (256M:2G, 256M:max). Default: starts at what earlier runs used, else 256 MiB; moves up to 80% of the host."),
    RunOption("swap", "SIZE", LIMITS, "Swap, in addition to the memory. Default: 0."),
    RunOption("pids", "N", LIMITS, "Processes and threads at once, or a range (64:512). Default: 512."),
    RunOption("io-read", "[DEV=]RATE", LIMITS, "Bytes per second read from each disk, or from DEV (a device or a path on it); may be a range (10M:100M); repeatable. Default: 100MB/s.", True),
    RunOption("io-write", "[DEV=]RATE", LIMITS, "Bytes per second written, likewise. Default: 100MB/s.", True),
    RunOption("io-read-iops", "[DEV=]N", LIMITS, "Read operations per second, likewise. Default: no limit.", True),
    RunOption("io-write-iops", "[DEV=]N", LIMITS, "Write operations per second, likewise. Default: no limit.", True),
    RunOption("io-strict", "on|off", LIMITS, "Pause the agent while it is ahead of its disk rates through I/O that the kernel does not throttle. Default: on."),
    RunOption("net-in", "RATE", LIMITS, "Bytes per second received, or a range (10M:100M). Default: 100MB/s."),
    RunOption("net-out", "RATE", LIMITS, "Bytes per second sent, likewise. Default: 100MB/s."),
    RunOption("net-loopback", "free|limited", LIMITS, "Loopback traffic: exempt from these two rates (free), or held to them (limited). Default: free."),
    RunOption("net", "host|none|isolated", LIMITS, "Network: the host's (host), only a loopback of its own (none), or a network of its own behind NAT (isolated; root only). Default: host."),
    RunOption("nofile", "N", LIMITS, "Open files per process (RLIMIT_NOFILE). Default: 1000."),
    RunOption("disk-space", "[DIR=]SIZE", LIMITS, "Bytes that the agent may add below DIR, or else below the directory where it starts: a project quota, on ext4 or xfs mounted with prjquota (by root or the daemon). Default: no limit."),
    RunOption("philosophy", "NAME", LIMITS, "How ranges move: balanced, conservative, aggressive, frozen, or one that the configuration defines; see agentres philosophies. Default: the configuration's, else balanced."),
    RunOption("priority", "low|normal|high|N", LIMITS, "Rank when the host's budget is used up, and weight for CPU and disks: 1 to 1000; low is 25, high 400. Default: normal, 100."),
    RunOption("wait", "[DURATION]", LIMITS, "If the lower end of --memory does not fit the host's budget, wait for room; --wait=5m waits at most 5 minutes. Default: fail.", alone=MAX),
    RunOption("timeout", "DURATION", LIMITS, "Wall time: 90s, 5m, 1h30m; then SIGTERM, SIGKILL 5 s later, and exit status 124. Default: none."),
    RunOption("name", "NAME", AGENT, "The agent's name. Default: the command's name with a random suffix.", short="-n"),
    RunOption("user", "USER", AGENT, "Run as this user (root only); auto: as a user that no other agent has. Sets HOME, USER and LOGNAME; with --isolate=no also its supplementary groups."),
    RunOption("isolate", "[yes|no]", AGENT, "Wall the agent off from its limits, from agentres and from other agents (by root or the daemon; docs/security.md); if root names no user, as a user of its own. Default: yes with --user and by the daemon, else no.", alone="yes"),
    RunOption("detach", "", AGENT, "Leave the agent to the daemon: print its name and return once it runs; its output goes to the journal (agentres logs)."),
    RunOption("local", "", AGENT, "Supervise the agent in this process, not by the daemon. Default: by the daemon, if its socket exists."),
    RunOption("keep-caps", "", AGENT, "Let an agent that root runs as root keep the capabilities with which it can undo its limits: CAP_SYS_NICE and CAP_SYS_RESOURCE."),
    RunOption("cpu-hint", "on|off", AGENT, "Set PYTHON_CPU_COUNT, OMP_NUM_THREADS, GOMAXPROCS and RAYON_NUM_THREADS, unless they are set, to the number of CPUs that the limits allow. Default: on."),
    RunOption("orphan", "kill|keep", AGENT, "If the agent's supervisor is killed: kill the agent too, or keep it running inside its limits as they stand. Default: kill."),
    RunOption("hangup", "end|pass", AGENT, "On SIGHUP (the terminal or connection is gone): pass it to the agent and end the agent 5 s later (end), or only pass it (pass). With nohup, neither. Default: end."),
    RunOption("escaped", "kill|move|tell", AGENT, "What happens to the agent's processes outside its cgroup and limits: an alert reports them, and they are killed when the run ends (kill), moved back at once (move), or left (tell). Default: kill."),
    RunOption("cwd", "DIR", AGENT, "Start in this directory. Default: the current one."),
    RunOption("config", "FILE", OUTPUT, "Read the configuration only from FILE. Default: $AGENTRES_CONFIG, else /etc/agentres/agentres.toml and the user's own file."),
    RunOption("best-effort", "", OUTPUT, "Run even if limits cannot be enforced; those are listed on stderr. Needs a writable cgroup."),
    RunOption("summary", "FILE", OUTPUT, "Write a JSON summary to FILE at the end."),
    RunOption("events", "FD|FILE", OUTPUT, "Write events, one JSON object per line, to an open descriptor (3), or append them to FILE (docs/events.md)."),
    RunOption("progress", "", OUTPUT, "Show what the agent uses in a status line on stderr, if that is a terminal."),
    RunOption("quiet", "", OUTPUT, "Print only errors.", short="-q"),
    RunOption("verbose", "", OUTPUT, "Print every control-file write.", short="-v"),
)  # fmt: skip  # a table
"""Every option of ``agentres run``, in the order of ``--help``."""

ORPHAN, HANGUP, ESCAPED = ("kill", "keep"), ("end", "pass"), ("kill", "move", "tell")

_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
_NAME_MAX = 64


class RunOptions(Record):
    """What the command line asks for: the request, and how to report on it.

    ``philosophy`` is a name; None: the configuration's.  ``priority`` is a weight like ``cpu.weight`` (100 is normal).
    ``wait`` is the seconds to wait for room in the budget; None: not at all, infinity: for ever.
    """

    request: Request
    summary: str | None
    quiet: bool
    verbose: bool
    config: str | None = None
    philosophy: str | None = None
    priority: int = PRIORITIES["normal"]
    wait: float | None = None
    detach: bool = False
    local: bool = False
    progress: bool = False
    events: str | None = None


def parse(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]] | None:
    """Return the values and the command of a well-formed line; None for any other (also for ``--help``)."""
    values: dict[str, Any] = {}
    rest = list(arguments)
    for _, option, text in _given(rest):
        if option is None or (text is None) == bool(option.metavar):
            return None
        if option.repeatable:
            values.setdefault(option.key, []).append(text)
        else:
            values[option.key] = True if text is None else text
    if rest[:1] == ["--"]:
        del rest[0]
    return (values, rest) if rest else None


def spell_out(arguments: Sequence[str]) -> list[str]:
    """Return the line with a value for each option that was given without one, as Typer requires."""
    line, rest = list[str](), list(arguments)
    for word, option, text in _given(rest):
        if text is None or "=" in word:
            line.append(word)
        elif option is not None and option.alone:
            line.append(f"{word}={text}")
        else:
            line += [word, text]
    return line + rest


def _given(rest: list[str]) -> Iterator[tuple[str, RunOption | None, str | None]]:
    """Take each option off the front of ``rest``; yield its word, its RunOption (None: unknown) and its value (None: it has none)."""
    by_flag = {
        flag: option for option in OPTIONS for flag in (f"--{option.name}", option.short) if flag
    }
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
        word = rest.pop(0)
        if (apart := _taken_apart(word, by_flag)) is not None:
            rest[:0] = apart
            continue
        flag, equals, given = word.partition("=")
        option = by_flag.get(flag)
        text = given if equals else None
        if not equals and option is not None and option.metavar:
            text = option.alone or (rest.pop(0) if rest else None)
        yield word, option, text


def _taken_apart(word: str, by_flag: Mapping[str, RunOption]) -> list[str] | None:
    """Split ``-qv`` into ``-q -v``, ``-nNAME`` into ``-n NAME``; None for any other word."""
    if word.startswith("--") or len(word) < 3:
        return None
    words = []
    for at, letter in enumerate(word[1:], 2):
        option = by_flag.get(f"-{letter}")
        if option is None:
            return None
        words.append(f"-{letter}")
        if option.metavar and at < len(word):
            return [*words, word[at:]]
    return words


def to_arguments(values: Values, command: Sequence[str]) -> list[str]:
    """Return the line that :func:`parse` parses into these values and this command."""
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


def variable(key: str) -> str:
    """Return the environment variable that is read if the line does not have the option."""
    return f"AGENTRES_{key.upper()}"


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of limit options from the environment; lists are split at white space."""
    found = {}
    for option in OPTIONS:
        text = environment.get(variable(option.key))
        if text and option.panel == LIMITS:
            found[option.key] = text.split() if option.repeatable else text
    return found


def understand(
    values: Values,
    command: Sequence[str],
    host: Host,
    settings: Settings | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> RunOptions:
    """Return the request that the options mean.  UsageError names the option, its value and a remedy.

    What no option says is taken from ``environment`` (:func:`from_environment`), else from ``settings``, the
    configuration; None: the built-in defaults.
    """
    around = from_environment(environment)

    def value(key: str, parse: Callable[[str], Any], standard: Any = None) -> Any:
        return _value(values, around, key, parse, standard)

    timeout = value("timeout", parse_duration_above_0)
    name = values.get("name")
    if name is None:
        name = default_name(command[0])
    if not (
        name and set(name) <= _NAME_CHARACTERS and name[0].isalnum() and len(name) <= _NAME_MAX
    ):
        raise UsageError(
            f"--name {name}: expected at most 64 letters, digits and _.-, a letter or digit first"
        )
    if values.get("detach") and values.get("local"):
        raise UsageError("--detach and --local: it is the daemon that goes on with it")
    for other in ("quiet", "detach"):
        if values.get("progress") and values.get(other):
            raise UsageError(f"--progress and --{other}: there is nobody to show it to")
    disk_space = value("disk_space", parse_disk_space)
    if disk_space and values.get("keep_caps"):
        raise UsageError("--disk-space and --keep-caps: no quota holds who has CAP_SYS_RESOURCE")
    if values.get("config") == "":
        raise UsageError("--config: expected a file")
    texts = _texts(values, around, settings)
    standard = defaults(host, settings.budget_share if settings else SHARE)
    try:
        limits = read_limits(texts, host, standard)
    except LimitError as error:
        raise UsageError(f"{_spelled(error.key, error.text, values, around)}: {error}") from None
    asked = [key for key in DISKS if key in texts]
    asked_net = [getattr(limits, key) for key in NETWORKS if key in texts]
    asked_rates = [rate for key in asked for rate in getattr(limits, key).values()]
    request = Request(
        command=tuple(command),
        limits=limits,
        name=name,
        # Nobody asked for the rates that hold by default.
        tolerated=frozenset(
            file
            for file, rates in (("io.max", asked_rates), (NETWORK, asked_net))
            if set(rates) <= {MAX}
        ),
        every_disk_asked=any("=" not in text for key in asked for text in texts[key]),
        best_effort=bool(values.get("best_effort")),
        timeout=timeout,
        user=values.get("user"),
        isolate=value("isolate", parse_yes_or_no),
        orphan_kept=value("orphan", _one_of(ORPHAN), ORPHAN[0]) == ORPHAN[1],
        keep_caps=bool(values.get("keep_caps")),
        cpu_hint=value("cpu_hint", _one_of(ON_OFF), ON_OFF[0]) == ON_OFF[0],
        hangup_passed=value("hangup", _one_of(HANGUP), HANGUP[0]) == HANGUP[1],
        escaped=value("escaped", _one_of(ESCAPED), ESCAPED[0]),
        cwd=values.get("cwd"),
        disk_space=disk_space,
        origins={key: _origin(key, values, around, settings) for key in texts},
    )
    return RunOptions(
        request=request,
        summary=values.get("summary"),
        quiet=bool(values.get("quiet")),
        verbose=bool(values.get("verbose")),
        config=values.get("config"),
        philosophy=_philosophy(values, around, settings),
        priority=value("priority", parse_priority, PRIORITIES["normal"]),
        wait=value("wait", parse_wait),
        detach=bool(values.get("detach")),
        local=bool(values.get("local")),
        progress=bool(values.get("progress")),
        events=values.get("events"),
    )


def check_kinds(values: Values) -> None:
    """Raise UsageError unless the values have the types that :func:`parse` returns: a flag True, a repeatable option a list."""
    for option in OPTIONS:
        if option.key in values:
            kind = bool if not option.metavar else list if option.repeatable else str
            value = values[option.key]
            texts = value if isinstance(value, list) else []
            if not isinstance(value, kind) or not all(isinstance(text, str) for text in texts):
                raise UsageError(f"--{option.name}: what was submitted makes no sense")
    if unknown := values.keys() - {option.key for option in OPTIONS}:
        raise UsageError(f"there is no option {min(unknown)!r}")


def with_environment(
    settings: Settings, host: Host, environment: Mapping[str, str]
) -> tuple[Settings, dict[str, Any]]:
    """Return the settings overridden by the environment, and those of its values that are no settings; UsageError."""
    around = from_environment(environment)
    found = understand({}, ["true"], host, settings, environment)
    origins = {**settings.origins}
    for key in around:
        origins["scaling.philosophy" if key == "philosophy" else f"limits.{key}"] = variable(key)
    laid = settings.but(
        limits=_texts({}, around, settings),
        philosophy=found.philosophy or settings.philosophy,
        origins=origins,
    )
    beside = set(around) - set(LIMIT_SPECS) - {"philosophy"}
    return laid, {key: around[key] for key in around if key in beside}


def default_name(command: str) -> str:
    """Return the command's name with a random suffix, so that agents of one command can run side by side."""
    base = "".join(c if c in _NAME_CHARACTERS else "_" for c in os.path.basename(command))
    return f"{base.lstrip('_.-')[:48] or 'agent'}-{os.urandom(3).hex()}"


def _one_of(words: Sequence[str]) -> Callable[[str], str]:
    return lambda text: parse_choice(text, words)


def parse_wait(text: str) -> float:
    """Return seconds, infinity for ``max``; UnitError."""
    return float("inf") if text == MAX else parse_duration_above_0(text)


def parse_duration_above_0(text: str) -> float:
    """Return seconds; UnitError."""
    seconds = parse_duration(text)
    if seconds == 0:
        raise UnitError("must be above 0")
    return seconds


def parse_disk_space(text: str) -> tuple[str, int]:
    """Return the directory (empty: none is named) and the bytes; UnitError."""
    directory, equals, size = text.rpartition("=")
    if equals and not directory:
        raise UnitError("expected a directory before =")
    if (parsed := parse_size(size)) == 0:
        raise UnitError("must be above 0")
    return directory, parsed


def parse_yes_or_no(text: str) -> bool:
    """Return whether the text is ``yes``; UnitError unless it is ``yes`` or ``no``."""
    return parse_choice(text, ("yes", "no")) == "yes"


def _philosophy(values: Values, around: Values, settings: Settings | None) -> str | None:
    name: str | None = values.get("philosophy", around.get("philosophy"))
    if name is not None:
        # Imported here: few ask for one, and otherwise it is needed only after the launch.
        from agentres.policy.settings import Settings

        known = (settings or Settings()).philosophies
        if name not in known:
            said = _spelled("philosophy", name, values, around)
            raise UsageError(f"{said}: expected one of {', '.join(known)}")
    return name


def _origin(key: str, values: Values, around: Values, settings: Settings | None) -> str:
    if values.get(key):
        return f"--{key.replace('_', '-')}"
    if key in around:
        return variable(key)
    return (
        settings.origins.get(f"limits.{key}") if settings is not None else None
    ) or "configuration"


def _texts(
    values: Values, around: Values, settings: Settings | None
) -> dict[str, str | Sequence[str]]:
    """Return the limits asked for: the configuration's, overridden by the environment's, and those by the line's."""
    texts = dict(settings.limits) if settings else {}
    for layer in (around, values):
        for key in LIMIT_SPECS:
            if (given := layer.get(key)) is not None:
                texts[key] = [*texts.get(key, ()), *given] if key in DISKS else given
    return texts


def _spelled(key: str, text: str, values: Values, around: Values) -> str:
    """Return the value as it was given: as an option, a variable or a setting."""
    if text in _several(values.get(key)):
        return f"--{key.replace('_', '-')} {text}"
    if text in _several(around.get(key)):
        return f"{variable(key)}={text}"
    return f"limits.{key} = {text}"  # the host has shrunk since the configuration was read


def _several(given: str | Sequence[str] | None) -> Sequence[str]:
    return [given] if isinstance(given, str) else given or ()


def _value(
    values: Values,
    around: Values,
    key: str,
    parse: Callable[[str], Any],
    standard: Any,
) -> Any:
    text = values.get(key, around.get(key))
    if text is None:
        return standard
    try:
        return parse(text)
    except UnitError as error:
        raise UsageError(f"{_spelled(key, text, values, around)}: {error}") from None
