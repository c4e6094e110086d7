"""The history: runs, their last samples, alerts, actions and profiles, in one SQLite file.

The file is ``<state directory>/history.db``, mode 0600, in WAL mode: any number of processes read while
one writes.  Times are Unix seconds.  Samples are in rings: the last :data:`~agentres.store.rows.RING` of a
run, none older than :data:`~agentres.store.rows.SAMPLES_KEPT` seconds.  Alerts are kept until
:data:`~agentres.store.rows.ALERTS_KEPT` seconds after their end, actions for that time, and profiles until
nothing was learnt for :data:`~agentres.store.rows.PROFILES_KEPT` seconds.

A :class:`Writer` is light enough to stay beside an agent; a :class:`Store` reads as well.  Each belongs to
the thread that opened it.  Every failure is a :class:`StoreError` of one line; a failed call writes nothing.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING
from agentres.store.run import NoHistory, Run, StoreError

if TYPE_CHECKING:
    from agentres.store.reading import ActionRow, AlertRow, Store
    from agentres.store.writing import Writer
else:

    def __getattr__(name: str) -> type:
        """Import only what is asked for: SQLite is a megabyte, and a supervisor does not read."""
        if name in ("ActionRow", "AlertRow", "Store"):
            from agentres.store import reading as module
        elif name == "Writer":
            from agentres.store import writing as module
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(module, name)


__all__ = ["ActionRow", "AlertRow", "NoHistory", "Run", "Store", "StoreError", "Writer"]
