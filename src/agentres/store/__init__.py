"""The history: runs, their last samples, alerts, actions, profiles, in one SQLite file; safe beside an agent.

``<state directory>/history.db``, mode 0600, in WAL mode: any number of processes read while one
writes.  Times are unix seconds.  Samples live in rings: the last :data:`~agentres.store.rows.RING` of a
run, none older than :data:`~agentres.store.rows.SAMPLES_KEPT` seconds.  Alerts live until
:data:`~agentres.store.rows.ALERTS_KEPT` seconds after their end, actions for as long, and profiles
until nothing was learnt for :data:`~agentres.store.rows.PROFILES_KEPT` seconds.

A :class:`Writer` is what stays beside an agent, a :class:`Store` reads as well; either belongs to the
thread that opened it.  Whatever goes wrong is a :class:`StoreError` of one line, and nothing of the
failed call was written.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING
from agentres.store.run import NoHistory, Run, StoreError

if TYPE_CHECKING:
    from agentres.store.reading import ActionRow, AlertRow, Store
    from agentres.store.writing import Writer
else:

    def __getattr__(name: str) -> type:
        """Load no more than is asked for: SQLite is a megabyte, and reading is not for residents."""
        if name in ("ActionRow", "AlertRow", "Store"):
            from agentres.store import reading as module
        elif name == "Writer":
            from agentres.store import writing as module
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(module, name)


__all__ = ["ActionRow", "AlertRow", "NoHistory", "Run", "Store", "StoreError", "Writer"]
