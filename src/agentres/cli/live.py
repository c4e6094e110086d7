"""``agentres show|set|freeze|thaw|stop|kill|wait|logs``: shows and controls running agents, by name."""

from __future__ import annotations

import os
import pwd
import shutil
import time
from collections.abc import Callable
from typing import Annotated, Any

from agentres.cli import show as shown
from agentres.cli.parameters import Argument, Option, of_run, takes
from agentres.cli.stderr import say
from agentres.kernel import delegation, registry, systemd
from agentres.kernel.cgroup import Cgroup
from agentres.kernel.registry import RunningAgent
from agentres.model.control import FROZEN, GRACE, SETTABLE
from agentres.model.errors import EXIT_AGENTRES, AgentresError, UsageError, printable, reason
from agentres.model.units import MAX, UnitError, parse_duration
from agentres.readers import client, portrait
from agentres.readers.client import NoSupervisor
from agentres.run.options import LIMITS, OPTIONS, RunOption

SCHEMA = 1
"""The version of the JSON; it rises when a key is removed or changes its meaning."""


def running() -> list[str]:
    """Return the names of all users' running agents."""
    return [agent.name for agent in registry.running(delegation.hierarchy().mount)]


Name = Annotated[str, Argument(metavar="NAME", help="The agent's name.", names=running)]
Names = Annotated[list[str], Argument(metavar="NAME...", help="The agents' names.", names=running)]
User = Annotated[
    str | None,
    Option("--user", metavar="USER", help="The agent's owner, if several users have one of this name."),
]  # fmt: skip
_FOREVER = None
_AT_ONCE = 5.0
"""Seconds that a supervisor that does not listen yet gets before its agent is killed without it."""

_FREEZE_ENDS = f"Time after which they go on if nobody thaws them before; max: never. Default: {FROZEN / 60:g}m."


def show(
    name: Name,
    user: User = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show one agent: its limits and where each comes from, what it uses, and what is wrong.

    For its owner and root.
    """
    answer = client.ask(_find(name, user), "show")["agent"]
    if as_json:
        shown.print_json({"schema": SCHEMA, **answer})
        return
    for line in portrait.facts(answer, time.time()):
        print(line)
    table = shown.Table(
        "limit",
        "holds",
        "between",
        "used",
        "from",
        right=("holds", "used"),
        whole=("limit", "between"),
    )
    for limit in portrait.limits(answer):
        table.add_row(
            shown.cell(limit.key), limit.holds, limit.between or shown.ABSENT, limit.used, shown.cell(limit.origin)
        )  # fmt: skip
    table.print()
    for alert in answer["alerts"]:
        print(f"{alert['severity']}  {printable(alert['message'])}")


@takes(lambda: of_run(options()))
def set_limits(name: Name, user: User = None, **texts: Any) -> None:
    """Change limits of a running agent: all of the given ones, or none.

    As with run, one value is fixed and a range moves. The limits hold when the command returns, until the agent ends or they are set again. For its owner and root.
    """
    limits = {key: given for key, given in texts.items() if given}
    if not limits:
        raise UsageError("nothing to set", "see agentres set --help")
    for one in client.ask(_find(name, user), "set", limits=limits)["changed"]:
        key = one["limit"]
        before, after = (portrait.quantity(key, one[when]) for when in ("before", "after"))
        # A range may have changed although the figure in it has not.
        note = f" ({one['note']})" if one.get("note") else ""
        print(f"{key}: {before} -> {after}{note}" if before != after else f"{key}: {one['text']}, stays at {after}{note}")  # fmt: skip


def freeze(
    names: Names,
    duration: Annotated[str | None, Option("--for", metavar="DURATION", help=_FREEZE_ENDS)] = None,
    user: User = None,
) -> None:
    """Pause all processes of agents for a while (--for), or until they are thawed."""
    fields: dict[str, Any] = {}
    if duration is not None:
        try:
            fields["for"] = MAX if duration == MAX else parse_duration(duration)
        except UnitError as error:
            raise UsageError(f"--for {duration}: {error}, or {MAX}") from None

    def stop_for_a_while(agent: RunningAgent) -> None:
        until = client.ask(agent, "freeze", **fields).get("until")
        end = "thawed" if until is None else time.strftime("%F %T", time.localtime(until))
        print(f"{agent.name}: frozen until {end}")

    _each(names, user, stop_for_a_while)


def thaw(names: Names, user: User = None) -> None:
    """Let frozen agents go on."""
    _each(names, user, lambda agent: client.ask(agent, "thaw"))


def stop(
    names: Names,
    grace: Annotated[
        str, Option("--grace", metavar="DURATION", help="Time between SIGTERM and SIGKILL.")
    ] = f"{GRACE:g}s",
    user: User = None,
) -> None:
    """End agents: SIGTERM, then SIGKILL for what is left after --grace; wait until they are gone."""
    try:
        seconds = parse_duration(grace)
    except UnitError as error:
        raise UsageError(f"--grace {grace}: {error}") from None

    def end(agent: RunningAgent) -> None:
        client.ask(agent, "stop", _FOREVER, grace=seconds)
        client.wait_until_gone(agent)

    _each(names, user, end)


def kill(names: Names, user: User = None) -> None:
    """Send SIGKILL to all processes of agents; wait until they are gone."""

    def end(agent: RunningAgent) -> None:
        try:
            client.ask(agent, "kill", _FOREVER, beginning=_AT_ONCE)
        except NoSupervisor:
            _kill_without(agent)
        client.wait_until_gone(agent)

    _each(names, user, end)


def wait(name: Name, user: User = None) -> int:
    """Wait until an agent ends, and exit with its status; 125 if that cannot be told."""
    try:
        agent = _find(name, user)
        status: int = client.ask(agent, "wait", _FOREVER)["exit_code"]
        client.wait_until_gone(agent)
    except AgentresError as error:
        say(str(error))
        return EXIT_AGENTRES
    except OSError as error:
        say(reason(error))
        return EXIT_AGENTRES
    return status


def logs(
    name: Name,
    follow: Annotated[bool, Option("--follow", "-f", help="Keep printing new entries.")] = False,
    lines: Annotated[int | None, Option("--lines", "-n", metavar="N", help="Only the last N entries.")] = None,
    user: User = None,
) -> None:  # fmt: skip
    """Show what the journal has of an agent: its alerts, and its output if it is a unit or detached."""
    journalctl = shutil.which("journalctl")
    if journalctl is None:
        raise UsageError(
            "there is no journalctl here", "an agent's output is where its run was started"
        )
    line = [journalctl, "--no-hostname"]
    line += ["--follow"] if follow else []
    line += [f"--lines={lines}"] if lines is not None else []
    uid = _owner(name, user)
    # Only messages of the user's own processes: any user may write an agent's name into a message.
    theirs = f"_UID={uid}"
    line += [f"SYSLOG_IDENTIFIER={registry.journal_identifier(uid, name)}", theirs]
    line += ["+", f"AGENTRES_ALERT_AGENT={name}", theirs]
    line += ["+", f"_SYSTEMD_USER_UNIT={systemd.unit_name(name)}", theirs]
    if uid == 0:
        for unit in (f"{systemd.UNIT_PREFIX}{name}.service", systemd.unit_name(name)):
            line += ["+", f"_SYSTEMD_UNIT={unit}"]
    os.execv(journalctl, line)


# Shared by the verbs.


def _find(name: str, user: str | None) -> RunningAgent:
    return client.find(name, None if user is None else _uid(user))


def _owner(name: str, user: str | None) -> int:
    """Return the uid of the agent's owner; ours, if no agent of that name runs."""
    if user is not None:
        return _uid(user)
    try:
        return client.find(name, None).uid
    except AgentresError:
        return os.geteuid()


def _uid(user: str) -> int:
    try:
        return int(user) if user.isascii() and user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise UsageError(f"--user {user}: there is no such user") from None


def _each(names: list[str], user: str | None, command: Callable[[RunningAgent], object]) -> None:
    """Run the command on all agents, even if some fail; then raise AgentresError for those."""
    failures = []
    for name in names:
        try:
            command(_find(name, user))
        except AgentresError as error:
            failures.append(f"{name}: {error}" if len(names) > 1 else str(error))
    if failures:
        raise AgentresError("; ".join(failures))


def _kill_without(agent: RunningAgent) -> None:
    """Kill an agent whose supervisor was killed, and remove its cgroups, as nobody else does."""
    left = Cgroup(agent.path)
    if not left.kill_all():
        raise AgentresError(
            f"a process in {agent.path} survives SIGKILL in an uninterruptible wait"
        )
    left.close()
    if agent.home.endswith(".scope"):  # systemd removes it, and may have done so already
        return
    home = Cgroup(agent.home)
    if not home.populated:
        home.remove_tree()
    else:
        home.close()


# The options of set.


def options() -> list[RunOption]:
    """Return the options of ``agentres run`` that :func:`set_limits` has too."""
    return [
        option.but(help=option.help.partition(" Default: ")[0])
        for option in OPTIONS
        if option.panel == LIMITS and option.key in SETTABLE
    ]
