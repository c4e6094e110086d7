"""The history: runs and rings of samples, actions, profiles, and when they go."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
from collections import deque
from contextlib import closing
from typing import Any

import pytest
from history_rows import DAY, FULL_SAMPLE, HOUR, NOW, action, event, rows_in, run
from hypothesis import given, settings
from hypothesis import strategies as st

from agentres.model.stats import Sample
from agentres.policy.observer import Observation
from agentres.policy.prediction import Profile, learn
from agentres.store import ActionRow, Store, StoreError, Writer

# Runs and samples.


def test_a_run_comes_back_as_it_went(store: Store) -> None:
    odd = run(command=("sh", "-c", "echo\n$1", "", "caf\udce9"), cgroup="/agents.slice/a b")
    store.begin(odd)
    store.begin(run(name="another"))  # is there already
    assert store.runs() == [odd]
    store.end(odd.id, NOW + 9, -9)
    assert store.runs() == [odd.but(ended=NOW + 9, exit_code=-9)]


def test_runs_by_name_kind_and_time(store: Store) -> None:
    store.begin(run("r1", started=NOW))
    store.begin(run("r2", started=NOW + 1, name="writer"))
    store.begin(run("r3", started=NOW + 2, name="host", of="host"))
    store.begin(run("r4", started=NOW + 2))
    store.end("r1", NOW + 5, 0)

    def ids(**which: Any) -> list[str]:
        return [found.id for found in store.runs(**which)]

    assert ids() == ["r4", "r3", "r2", "r1"]
    assert ids(name="coder") == ["r4", "r1"]
    assert ids(of="host") == ["r3"]
    assert ids(name="coder", since=NOW + 6) == ["r4"]
    assert ids(name="nobody") == []


def test_every_field_of_a_sample_is_kept_and_none_stays_none(store: Store) -> None:
    disks = (("8:0", 1, 2, 3, 4), ("nvme 0n1", 2**62, 0, 0, 0))
    samples = [
        FULL_SAMPLE,
        Sample(),
        Sample(disks=disks, load1=0.25, cpu_limit=1.5, memory_limit=2**63 - 1),
        Sample(disks=()),
    ]
    store.add((("r1", NOW + n, sample) for n, sample in enumerate(samples)))
    assert store.samples("r1", now=NOW) == [(NOW + n, s) for n, s in enumerate(samples)]
    assert store.samples("r2", now=NOW) == []


@settings(max_examples=20)
@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 90)), max_size=60), max_size=12
    ),
    waited=st.integers(0, 4000),
    purged=st.booleans(),
)
def test_a_ring_holds_the_last_hundred_of_the_last_hour_in_order(
    batches: list[list[tuple[str, int]]], waited: int, purged: bool
) -> None:
    rings: dict[str, deque[tuple[float, Sample]]] = {name: deque(maxlen=100) for name in "abc"}
    now = NOW
    with tempfile.TemporaryDirectory() as directory:
        store = Store.open(os.path.join(directory, "history.db"))
        for batch in batches:
            rows = []
            for name, pause in batch:
                now += pause
                rows.append((name, now, Sample(usage_usec=len(rows))))
                rings[name].append(rows[-1][1:])
            store.add(rows)
            if purged:
                store.purge(now)
        now += waited
        if purged:
            store.purge(now)
        for name, ring in rings.items():
            assert store.samples(name, now=now) == [row for row in ring if row[0] >= now - HOUR]
            assert store.samples(name, since=now - 99, now=now) == [
                row for row in ring if row[0] >= now - 99
            ]
        store.close()


def test_a_clock_that_is_set_back_changes_no_order(store: Store) -> None:
    times = [NOW + n for n in range(150)] + [NOW - 60 + n for n in range(20)]
    for n, at in enumerate(times):
        store.add([("r1", at, Sample(fds=n))])
    assert [sample.fds for _, sample in store.samples("r1", now=NOW + 150)] == [*range(70, 170)]


def test_an_hour_at_speed_stays_within_its_bounds(store: Store, history_path: str) -> None:
    """An hour of samples every 5 s of 20 runs, interleaved, twice; what a supervisor does."""
    names = [f"run{n:05}" for n in range(20)]
    for name in names:
        store.begin(run(name))
    largest = 0
    for tick in range(1500):
        now = NOW + 5 * tick
        # The second hour at leisure: then it is the hour that bounds, not the hundred.
        if tick < 720 or tick % 8 == 0:
            store.add((name, now, FULL_SAMPLE) for name in names)
        if tick % 12 == 0:
            store.purge(now)
        if tick % 240 == 0:
            largest = max(
                largest, os.path.getsize(history_path) + os.path.getsize(history_path + "-wal")
            )
            for name in names:
                found = store.samples(name, now=now)
                assert len(found) == {0: 1, 1440: 91}.get(tick, 100)
                assert found[0][0] >= now - HOUR
    ((kept, oldest),) = rows_in(history_path, "SELECT count(*), min(time) FROM samples")
    assert kept == 20 * 92  # the last purge was at 1488, its hour began at 768
    assert oldest >= now - HOUR - 60
    assert largest < 6_000_000  # 4 MiB of it are the write-ahead log
    for name in names:
        store.end(name, now, 0)
    store.purge(now + HOUR + 1)
    assert store.runs() == []
    assert rows_in(history_path, "SELECT count(*) FROM samples") == [(0,)]
    assert rows_in(history_path, "SELECT count(*) FROM rings") == [(0,)]
    store.close()
    assert os.path.getsize(history_path) < 200_000


def test_nothing_older_than_an_hour_is_returned_even_before_a_purge(store: Store) -> None:
    store.add([("r1", NOW, Sample(fds=1)), ("r1", NOW + 1, Sample(fds=2))])
    assert len(store.samples("r1", now=NOW + HOUR)) == 2
    assert len(store.samples("r1", now=NOW + HOUR + 0.5)) == 1
    assert store.samples("r1", since=0, now=NOW + 2 * HOUR) == []


def test_two_writers_at_once_lose_nothing(history_path: str) -> None:
    failures: list[BaseException] = []

    def write(name: str) -> None:
        try:
            store = Store.open(history_path)
            for n in range(50):
                store.add([(name, NOW + n, Sample(fds=n)), ("both", NOW + n, Sample(fds=n))])
                store.record(event(alert_id=f"{name}{n:04}"))
            store.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=[name]) for name in ("aaaa", "bbbb")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    store = Store.open(history_path, write=False)
    for name in ("aaaa", "bbbb"):
        assert [s.fds for _, s in store.samples(name, now=NOW)] == [*range(50)]
    assert sorted(s.fds or 0 for _, s in store.samples("both", now=NOW)) == sorted([*range(50)] * 2)
    assert len(store.alerts()) == len(store.changes(0)[0]) == 100
    store.close()


def test_what_cannot_be_kept_costs_its_own_call_alone(store: Store) -> None:
    with pytest.raises(OverflowError):
        store.add([("r1", NOW, Sample(fds=1)), ("r1", NOW, Sample(fds=2**64))])
    store.add([("r1", NOW, Sample(fds=3))])
    assert [sample.fds for _, sample in store.samples("r1", now=NOW)] == [3]


# What has had its time.


def test_purge_keeps_what_has_its_time_yet(store: Store, history_path: str) -> None:
    store.begin(run("quiet"))
    store.begin(run("ended"))
    store.begin(run("sampled"))
    store.begin(run("alerted"))
    for ended in ("ended", "sampled", "alerted"):
        store.end(ended, NOW, 0)
    store.add([("sampled", NOW + 100, Sample())])
    store.record(event(run="alerted"))
    store.record(event("resolved", run="alerted", resolved=NOW + 10, updated=NOW + 10))
    store.record(event(alert_id="b2", run="quiet"))
    steps: list[tuple[float, set[str], int]] = [
        (HOUR - 1, {"quiet", "ended", "sampled", "alerted"}, 2),
        (HOUR + 1, {"quiet", "sampled", "alerted"}, 2),
        (HOUR + 101, {"quiet", "alerted"}, 2),
        (30 * DAY + 1, {"quiet", "alerted"}, 2),
        (30 * DAY + 11, {"quiet"}, 1),
        (90 * DAY, {"quiet"}, 1),
    ]
    for later, runs, alerts in steps:
        store.purge(NOW + later)
        assert {found.id for found in store.runs()} == runs
        assert len(store.alerts()) == alerts
    assert rows_in(history_path, "SELECT DISTINCT alert FROM alert_events") == [("b2",)]


def test_a_purge_without_work_waits_for_nobody(store: Store, history_path: str) -> None:
    store.add([("r1", NOW, Sample())])
    other = sqlite3.connect(history_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.purge(NOW + 60)
    other.close()


# Actions.


def test_an_action_comes_back_as_it_went(store: Store) -> None:
    store.act(action())
    frozen = action(
        kind="freeze", before=None, after=None, took=None, values="a=1", why="for caf\udce9"
    )
    store.act(frozen)
    assert store.actions() == [
        ActionRow(1, "r0000001", "coder", NOW, "memory", "raise", 100.0, 150.0, "burst",
                  "use of 76 B reached 75% of 100 B", 0.002, ""),
        ActionRow(2, "r0000001", "coder", NOW, "memory", "freeze", None, None, "burst",
                  "for caf?", None, "a=1"),
    ]  # fmt: skip


def test_an_action_without_what_it_must_say_is_refused(store: Store) -> None:
    incomplete = action()
    del incomplete["why"]
    with pytest.raises(KeyError):
        store.act(incomplete)
    with pytest.raises(StoreError):
        store.act(action(rule=None))
    assert store.actions() == []


def test_actions_by_what_is_asked_the_newest_last(store: Store) -> None:
    for n, (name, run_id) in enumerate([("a", "r1"), ("b", "r2"), ("a", "r3"), ("a", "r3")]):
        store.act(action(agent=name, run=run_id, time=NOW + n))

    def times(**which: Any) -> list[float]:
        return [row.time - NOW for row in store.actions(**which)]

    assert times() == [0, 1, 2, 3]
    assert times(name="a") == [0, 2, 3]
    assert times(name="a", limit=2) == [2, 3]
    assert times(since=NOW + 2) == [2, 3]
    assert times(run_id="r2") == [1]
    assert times(name="nobody") == []


def test_actions_are_kept_for_as_long_as_alerts_and_profiles_for_a_year(store: Store) -> None:
    store.begin(run())
    store.end("r0000001", NOW, 0)
    store.act(action())
    store.act(action(time=NOW + 60))
    store.learn("name:coder", Observation(memory=1e8), NOW)
    store.purge(NOW + 30 * DAY)
    assert store.runs() == []  # which outlives no action that is kept
    assert len(store.actions("coder")) == 2
    store.purge(NOW + 30 * DAY + 1)
    assert [row.time for row in store.actions()] == [NOW + 60]
    store.purge(NOW + 365 * DAY)
    assert store.actions() == []
    assert store.profiles() == [("name:coder", NOW)]
    store.purge(NOW + 365 * DAY + 1)
    assert store.profiles() == []


# Profiles.


def test_what_is_learnt_is_what_the_policy_makes_of_it(store: Store) -> None:
    assert store.profile("name:coder") is None
    expected = Profile.empty("name:coder")
    for n in range(5):
        observed = Observation(memory=2e8 + 1e7 * n, cpu=((0.5, 10.0), (1.5, 1.0 + n)), pids=12)
        store.learn("name:coder", observed, NOW + n * HOUR, 7200.0)
        expected = learn(expected, observed, NOW + n * HOUR, 7200.0)
    assert store.profile("name:coder") == expected
    assert store.profile("name:other", "name:coder") == expected
    assert store.profile("name:other") is None


def test_who_was_learnt_of_last_comes_first(store: Store) -> None:
    for n, key in enumerate(("name:a", "command:caf\udce9", "name:a")):
        store.learn(key, Observation(pids=1), NOW + n)
    assert store.profiles() == [("name:a", NOW + 2), ("command:caf?", NOW + 1)]
    assert store.profile("command:caf\udce9") is not None


def overwrite_profiles(history_path: str, data: str) -> None:
    with closing(sqlite3.connect(history_path)) as db, db:
        db.execute("UPDATE profiles SET data = ?", (data,))


def test_a_profile_that_cannot_be_read_is_told_and_learnt_anew(store: Store, history_path: str) -> None:  # fmt: skip
    store.learn("name:coder", Observation(memory=1e8), NOW)
    for garbage in ("", "0", "1\nruns", "1\nruns 1\n", "1\nuse memory 0 999999 1", "\0"):
        overwrite_profiles(history_path, garbage)
        with pytest.raises(StoreError, match=r"'name:coder' in .* cannot be read"):
            store.profile("name:coder")
    store.learn("name:coder", Observation(memory=2e8), NOW)
    profile = store.profile("name:coder")
    assert profile is not None
    assert profile.runs == 1


def test_a_run_goes_on_without_a_profile_that_cannot_be_read(history_path: str) -> None:
    writer = Writer.open(history_path)
    writer.learn("name:coder", Observation(memory=1e8), NOW)
    overwrite_profiles(history_path, "2\n")
    writer.learn("command:coder", Observation(memory=1e8), NOW)
    assert writer.profile("name:coder") is None
    known = writer.profile("name:coder", "command:coder")
    assert known is not None
    assert known.key == "command:coder"
    writer.learn("name:coder", Observation(memory=2e8), NOW)
    renewed = writer.profile("name:coder")
    assert renewed is not None
    assert renewed.runs == 1
    writer.close()


def test_two_that_learn_at_once_lose_nothing(history_path: str) -> None:
    failures: list[BaseException] = []

    def teach() -> None:
        try:
            store = Store.open(history_path)
            for n in range(40):
                store.learn("name:coder", Observation(memory=1e8), NOW + n)
            store.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=teach) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    store = Store.open(history_path, write=False)
    profile = store.profile("name:coder")
    assert profile is not None
    assert profile.runs == 80
    store.close()
