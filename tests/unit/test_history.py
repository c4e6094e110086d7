"""The history of one run as its monitor keeps it, or keeps none: what is missing from it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agentres.kernel.loop import Loop
from agentres.model.action import Action
from agentres.run.history import MOVES, History
from agentres.store import Store
from agentres.watch.recorder import new_run


@pytest.mark.parametrize("kept", [True, False])
def test_moves_that_are_too_many_are_bounded_and_missing_only_where_a_history_is_kept(
    tmp_path: Path, kept: bool
) -> None:
    path = str(tmp_path / "history.db")
    run = new_run("a", "agent", ("true",), "/agent", time.time())
    history = History(Loop(), path if kept else "", run, None, lambda *_: None)
    action = Action.now("raise", "memory", 1.0, 2.0, "rule", "why")
    assert [history.act(action) for _ in range(MOVES + 3)] == [True] * MOVES + [False] * 3
    assert history.left_out == (3 if kept else 0)
    assert history.end(0) == ""
    assert Path(path).exists() is kept
    if kept:
        store = Store.open(path, write=False)
        assert len(store.actions(run_id=run.id)) == MOVES
        store.close()
