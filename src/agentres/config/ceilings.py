"""The section ``[ceilings.NAME]``: the most that the daemon allows users."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from agentres.config.values import Limit, Section, Texts, whole
from agentres.config.words import Wrong
from agentres.model.limits import Host, LimitError, parse_priority
from agentres.model.units import UnitError
from agentres.policy import ceilings


class CeilingSection(Section):
    """Users and groups, the most agents at once, the highest priority, and the highest value of each limit."""

    #: Names or numbers, one or a list; with neither, it is about everybody but root.
    users: Texts = ()
    groups: Texts = ()
    #: How many at once; 100 where no ceiling says.
    agents: Annotated[int | None, whole(0, 1000)] = None
    #: The highest allowed [`--priority`](capacity.md), since other agents give way to it: `low`, `normal`, `high`, or a number; `normal` where no ceiling says.
    priority: Limit = None
    #: The most that each limit of one agent may be, of `cpuset` how many CPUs; one figure. Under a ceiling on disk rates `--io-strict off` is refused.
    cpu: Limit = None
    cpuset: Limit = None
    memory: Limit = None
    swap: Limit = None
    pids: Limit = None
    io_read: Limit = None
    io_write: Limit = None
    io_read_iops: Limit = None
    io_write_iops: Limit = None
    nofile: Limit = None
    net_in: Limit = None
    net_out: Limit = None

    def made(self, name: str, host: Callable[[], Host]) -> ceilings.Ceiling:
        """Return the ceiling; :class:`Wrong` if a text is not a ceiling on this host."""
        given = {key: getattr(self, key) for key in ceilings.CAPPED}
        texts = {key: text for key, text in given.items() if text is not None}
        try:
            if texts and (wrong := ceilings.no_ceilings(texts, host())):
                raise Wrong(wrong[0], "expected one figure, which is the most that it may be")
        except LimitError as error:
            raise Wrong(error.key, str(error)) from None
        try:
            priority = None if self.priority is None else parse_priority(self.priority)
        except UnitError as error:
            raise Wrong("priority", str(error)) from None
        users, groups = tuple(self.users), tuple(self.groups)
        return ceilings.Ceiling(name, users, groups, self.agents, priority, texts)


def section(ceiling: ceilings.Ceiling) -> Mapping[str, object]:
    """Return the ceiling as a section of a file."""
    members = {key: list(getattr(ceiling, key)) for key in ("users", "groups")}
    figures = {"agents": ceiling.agents, "priority": ceiling.priority}
    counted = {key: figure for key, figure in figures.items() if figure is not None}
    return {**{key: names for key, names in members.items() if names}, **counted, **ceiling.limits}
