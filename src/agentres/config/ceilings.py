"""What a file may say about what the daemon lets users have: ``[ceilings.NAME]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from agentres.config.values import Limit, Section, Texts, whole
from agentres.config.words import Wrong
from agentres.model.limits import Host, LimitError
from agentres.policy import ceilings


class CeilingSection(Section):
    """For whom, how many agents at once, and the most that each limit may be."""

    users: Texts = ()
    groups: Texts = ()
    agents: Annotated[int | None, whole(0, 1000)] = None
    cpu: Limit = None
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
        """The ceiling; :class:`Wrong` where a text is none on this host."""
        given = {key: getattr(self, key) for key in ceilings.CAPPED}
        texts = {key: text for key, text in given.items() if text is not None}
        try:
            if texts and (wrong := ceilings.no_ceilings(texts, host())):
                raise Wrong(wrong[0], "expected one figure, which is the most that it may be")
        except LimitError as error:
            raise Wrong(error.key, str(error)) from None
        return ceilings.Ceiling(name, tuple(self.users), tuple(self.groups), self.agents, texts)


def section(ceiling: ceilings.Ceiling) -> Mapping[str, object]:
    """The same as a file has it."""
    told = {key: list(getattr(ceiling, key)) for key in ("users", "groups")}
    counted = {} if ceiling.agents is None else {"agents": ceiling.agents}
    return {**{key: names for key, names in told.items() if names}, **counted, **ceiling.limits}
