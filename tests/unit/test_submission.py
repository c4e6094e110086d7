"""What the daemon is sent, and what it makes of what is no submission."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentres.daemon import submission
from agentres.daemon.submission import Submission
from agentres.model import control
from agentres.model.errors import UsageError

GOOD = Submission(
    "1.0", {"memory": "64M", "io_read": ["5M"], "best_effort": True}, ["sh", "-c", "é"],
    {"PATH": "/bin", "EMPTY": ""}, 0o22, {"interval": 5.0}, True, [1, 3], [10],
)  # fmt: skip

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
submissions = st.builds(
    Submission,
    texts,
    st.dictionaries(texts, st.one_of(texts, st.just(True), st.lists(texts))),
    st.lists(texts, min_size=1),
    st.dictionaries(texts.filter(lambda name: name and "=" not in name), texts),
    st.integers(0, 0o777),
    st.none() | st.dictionaries(texts, st.integers()),
    st.booleans(),
    st.lists(st.sampled_from(sorted(map(int, signal.valid_signals())))),
    st.just([]),
)


@given(submissions)
def test_what_is_sent_arrives(sent: Submission) -> None:
    assert submission.read(submission.write(sent)) == sent


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(submission.write(GOOD)), **fields}).encode()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": 1}, "makes no sense"),
        ({"command": []}, "makes no sense"),
        ({"command": "sh"}, "makes no sense"),
        ({"command": [None]}, "makes no sense"),
        ({"command": ["a\0b"]}, "zero byte"),
        ({"values": {"memory": 1}}, "makes no sense"),
        ({"values": {"quiet": False}}, "makes no sense"),
        ({"values": []}, "makes no sense"),
        ({"environment": {"A": None}}, "makes no sense"),
        ({"environment": {"A": "\0"}}, "zero byte"),
        ({"environment": {"A=B": ""}}, "without a name"),
        ({"environment": {"": ""}}, "without a name"),
        ({"umask": -1}, "makes no sense"),
        ({"umask": 0o1000}, "makes no sense"),
        ({"umask": True}, "makes no sense"),
        ({"settings": []}, "makes no sense"),
        ({"detach": 1}, "makes no sense"),
        ({"ignored": [0]}, "makes no sense"),
        ({"ignored": [65]}, "makes no sense"),
        ({"ignored": None}, "makes no sense"),
        ({"blocked": ["TERM"]}, "makes no sense"),
        ({"blocked": [True]}, "makes no sense"),
        ({"more": 1}, "fields of this version"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        submission.read(changed(**fields))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
FIELDS = list(Submission.__match_args__)


READERS = (submission.read, submission.streams, submission.asked_signal)


@example(b"")
@example(b"null")
@example(b"{}")
@example(b"\xff")
@given(st.binary(max_size=64) | json_values.map(lambda value: json.dumps(value).encode()))
def test_garbage_is_refused(data: bytes) -> None:
    for reader in READERS:
        with pytest.raises(UsageError):
            reader(data)


@example({})
@example({"umask": 0, "detach": False, "settings": None, "blocked": []})
@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_what_is_not_refused_is_as_it_was_sent(fields: dict[str, Any]) -> None:
    data = changed(**fields)
    try:
        found = submission.read(data)
    except UsageError:
        assert fields
    else:
        assert submission.write(found) == data
    for reader in (submission.streams, submission.asked_signal):
        with pytest.raises(UsageError):
            reader(data)


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(UsageError):
        submission.read(b"[" * 1_000_000)


def test_streams() -> None:
    assert submission.streams(submission.request([0, 2], events=False)) == ([0, 2], False)
    assert submission.streams(submission.request([], events=True)) == ([], True)
    for named in ([2, 0], [0, 0], [3], ["0"], None, [[0]]):
        line = control.line(agentres=1, do="run", streams=named)
        with pytest.raises(UsageError, match="streams"):
            submission.streams(line)
    with pytest.raises(UsageError, match='"do"'):
        submission.streams(control.line(agentres=2, do="run", streams=[0]))


def test_signals() -> None:
    line = submission.signal_line(signal.SIGTERM, to_all=True)
    assert submission.asked_signal(line) == (15, True)
    for number in (0, 65, -9, True, "15", None, 1.0):
        with pytest.raises(UsageError, match="signal"):
            submission.asked_signal(control.line(signal=number))
