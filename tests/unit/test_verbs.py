"""The verbs' own reading of a line: as Typer's, and without what makes Typer slow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
from command_line import agentres
from hypothesis import given
from hypothesis import strategies as st

from agentres.cli import app, verbs
from agentres.cli.parameters import Argument, Option, Parameter, parameters
from agentres.cli.verbs import GROUPS, VERBS

TAKEN = {verb: parameters(verbs.function(verb)) for verb in VERBS}
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).filter(
    lambda text: not text.startswith("-")
)


class _Called(BaseException):
    pass


def typer_calls(line: Sequence[str]) -> tuple[str, dict[str, Any]] | None:
    """The verb and values that a line comes to by Typer; None when it shows help or an error."""

    def call(verb: str, values: dict[str, Any]) -> int:
        raise _Called(verb, values)

    with mock.patch.object(verbs, "call", call), mock.patch.object(sys, "stderr"), mock.patch.object(sys, "stdout"):  # fmt: skip
        try:
            app.main(line)
        except _Called as called:
            return called.args[0], called.args[1]
        except SystemExit:
            return None
    return None


def value_of(parameter: Parameter) -> st.SearchStrategy[str]:
    return st.integers(1, 99).map(str) if parameter.of is int else TEXTS


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """What a verb takes, in any order, now and then with what it does not take."""
    verb = draw(st.sampled_from(list(VERBS)))
    parts = []
    for parameter in TAKEN[verb]:
        if draw(st.booleans()):
            continue
        value = draw(value_of(parameter))
        if isinstance(parameter.declared, Argument):
            parts.append([value])
            continue
        name = draw(st.sampled_from(parameter.names))
        if parameter.of is bool:
            parts.append([name])
        elif name.startswith("--") and draw(st.booleans()):
            parts.append([f"{name}={value}"])
        else:
            parts.append([name, value])
    odd = st.sampled_from(["--", "-", "--help", "-h", "-n3", "--lines=x", "--limit=0", "--json=1", "--bogus", "more", "-fn", ""])  # fmt: skip
    if draw(st.integers(0, 3)) == 0:
        parts.append([draw(odd)])
    words = [word for part in draw(st.permutations(parts)) for word in part]
    first, _, below = verb.partition(" ")
    leave_out = below and below == GROUPS[first].standard and draw(st.booleans())
    return [first, *([below] if below and not leave_out else []), *words]


@given(lines())
def test_what_we_understand_is_what_typer_understands(line: list[str]) -> None:
    found = verbs.understand(line)
    if found is not None:
        assert found == typer_calls(line)


@given(st.data())
def test_each_well_formed_line_is_understood_without_typer(data: st.DataObject) -> None:
    verb = data.draw(st.sampled_from(list(VERBS)))
    line = verb.split()
    for parameter in TAKEN[verb]:
        value = data.draw(value_of(parameter))
        if isinstance(parameter.declared, Option):
            line += [parameter.names[-1]] + [value] * (parameter.of is not bool)
    line += [data.draw(value_of(p)) for p in TAKEN[verb] if isinstance(p.declared, Argument)]
    assert verbs.understand(line) is not None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ps --bogus", "No such option: --bogus"),
        ("ps more", "Got unexpected extra argument(s) (more)"),
        ("show", "Missing argument 'NAME'"),
        ("alerts ack 3f", "Missing option '--why'"),
        ("alerts list --limit 0", "'--limit': Input should be greater than or equal to 1"),
        ("alerts list --limit x", "'--limit': Input should be a valid integer"),
        ("logs x --lines", "Option '--lines' requires an argument"),
        ("ps --json=1", "Option '--json' does not take a value"),
        ("history --plot x.gif", "Invalid value for --plot: x.gif ends in none of .png, .svg and .html"),
        ("capacities", "No such command 'capacities'"),
        ("alerts lists", "No such command 'lists'"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_told_in_one_line(line: str, words: str) -> None:
    status, out, err = agentres(*line.split())
    assert (status, out) == (2, "")
    assert err.startswith("agentres: ")
    assert words in err
    assert err.rstrip("\n").endswith("--help")
    assert err.count("\n") == 1


@pytest.mark.parametrize("line", ["", "alerts --help", "config", "show --help", "--help"])
def test_help_is_typers(line: str) -> None:
    _, out, _ = agentres(*line.split())
    assert "Usage: agentres" in out


@pytest.mark.parametrize(
    "line", ["ps", "capacity", "alerts", "alerts list --open", "history", "stop nobody"]
)  # fmt: skip
def test_what_takes_longer_to_load_than_to_answer_is_not_loaded(
    line: str, tmp_path: os.PathLike[str]
) -> None:
    script = (
        "import sys\nfrom agentres.cli import line\n"
        "status = line.main(sys.argv[1:])\nprint('loaded', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *line.split()],
        capture_output=True, text=True, check=True,
        # No configuration: what checks one is a fifth of a second to load.
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )  # fmt: skip
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "agentres.cli.parameters" in loaded
    dear = {
        "typer", "rich", "inspect", "dataclasses", "logging", "asyncio", "psutil", "pyroute2",
        "pydantic", "textual", "matplotlib",
    }  # fmt: skip
    assert loaded & dear == set()
