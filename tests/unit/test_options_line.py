"""The line of `agentres run`: both readers of it agree on what its options and its command are."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from typing import Any, Never
from unittest import mock

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.main import get_command

from agentres.cli import app
from agentres.model.units import MAX
from agentres.run import options
from agentres.run.options import OPTIONS

TYPER = get_command(app.app)


class _Executed(Exception):
    pass


def typer_runs(line: Sequence[str]) -> list[str] | None:
    """The line that the Typer command would run instead; None when it shows help or an error."""

    def execv(path: str, arguments: list[str]) -> Never:
        raise _Executed(arguments)

    quiet = io.StringIO()
    with mock.patch.object(os, "execv", execv), contextlib.redirect_stdout(quiet):
        try:
            TYPER.main(["run", *line], prog_name="agentres", standalone_mode=False)
        except _Executed as executed:
            _, _, _, module, verb, *arguments = executed.args[0]
            assert (module, verb) == ("agentres", "run")
            return arguments
        except typer.TyperException:
            return None
    return None


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
COMMANDS = st.lists(
    WORDS | st.sampled_from(["--", "-x", "--cpu", "--help", "-"]), min_size=1, max_size=4
)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        option.key: st.just(True)
        if not option.metavar
        else st.lists(WORDS, min_size=1, max_size=3)
        if option.repeatable
        else st.one_of(WORDS, st.just(option.alone))
        if option.alone
        else WORDS
        for option in OPTIONS
    },
)


@given(VALUES, COMMANDS)
def test_a_line_made_of_values_and_a_command_gives_them_back(
    values: dict[str, Any], command: list[str]
) -> None:
    assert options.parse(options.to_arguments(values, command)) == (values, command)


@given(VALUES, COMMANDS)
def test_typer_reads_a_line_as_the_small_parser_does(
    values: dict[str, Any], command: list[str]
) -> None:
    executed = typer_runs(options.to_arguments(values, command))
    assert executed is not None
    assert options.parse(executed) == (values, command)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, ["--", "a"]),
        ({"name": ""}, ["--name=", "--", "a"]),
        ({"io_read": ["", "1"]}, ["--io-read=", "--io-read=1", "--", "a"]),
        ({"quiet": True, "verbose": False, "cpu": None}, ["--quiet", "--", "a"]),
    ],
)
def test_a_line_has_what_was_given_even_where_it_is_empty(
    values: dict[str, Any], line: list[str]
) -> None:
    assert options.to_arguments(values, ["a"]) == line


@pytest.mark.parametrize("line", [["-", "x"], ["--cpu=1", "-"], ["-"], ["--", "-"]])
def test_both_parsers_take_a_dash_as_the_command(line: list[str]) -> None:
    executed = typer_runs(line)
    assert executed is not None
    parsed = options.parse(line)
    assert parsed is not None
    assert parsed == options.parse(executed)
    assert parsed[1][0] == "-"


LINES = st.lists(
    st.sampled_from(
        [
            "--cpu", "--cpu=1", "--cp", "--io-read", "--io-read=/dev/vda=1M", "--best-effort", "--quiet",
            "--quiet=1", "--quiet=", "--bogus", "--bogus=1", "--version", "--help", "-h", "-x", "-q", "-qv", "-n", "-nx", "-qh", "-q=1",
            "--wait", "--wait=1m", "--wait=", "--", "---", "-", "cmd", "1", "", "=", "a=b",
        ]
    ),
    max_size=6,
)  # fmt: skip


@settings(max_examples=150)
@given(LINES)
def test_what_the_small_parser_does_not_take_is_help_or_an_error_for_typer(line: list[str]) -> None:
    parsed = options.parse(line)
    executed = typer_runs(line)
    assert (None if executed is None else options.parse(executed)) == parsed


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        (["a"], ({}, ["a"])),
        (["--", "a"], ({}, ["a"])),
        (["--", "--", "a"], ({}, ["--", "a"])),
        (["-", "x"], ({}, ["-", "x"])),
        (["-"], ({}, ["-"])),
        (["--name=", "a"], ({"name": ""}, ["a"])),
        (["--name", "", "a"], ({"name": ""}, ["a"])),
        (["a", "--cpu", "1"], ({}, ["a", "--cpu", "1"])),
        (["a", "--", "b"], ({}, ["a", "--", "b"])),
        (["--cpu", "1", "a"], ({"cpu": "1"}, ["a"])),
        (["--cpu=1", "a"], ({"cpu": "1"}, ["a"])),
        (["--cpu=1=2", "a"], ({"cpu": "1=2"}, ["a"])),
        (["--cpu", "--", "a"], ({"cpu": "--"}, ["a"])),
        (["--cpu", "1", "--cpu", "2", "a"], ({"cpu": "2"}, ["a"])),
        (["--io-read", "1", "--io-read=2", "a"], ({"io_read": ["1", "2"]}, ["a"])),
        (["--quiet", "a"], ({"quiet": True}, ["a"])),
        (["--wait", "a"], ({"wait": MAX}, ["a"])),
        (["--wait", "5m", "a"], ({"wait": MAX}, ["5m", "a"])),
        (["--wait", "--", "5m"], ({"wait": MAX}, ["5m"])),
        (["--wait=5m", "a"], ({"wait": "5m"}, ["a"])),
        (["--wait=", "a"], ({"wait": ""}, ["a"])),
        (["--name", "--wait", "a"], ({"name": "--wait"}, ["a"])),
        (["-q", "a"], ({"quiet": True}, ["a"])),
        (
            ["-qv", "-n", "x", "a", "-q"],
            ({"quiet": True, "verbose": True, "name": "x"}, ["a", "-q"]),
        ),
        (["-qnx", "a"], ({"quiet": True, "name": "x"}, ["a"])),
        (["-n-q", "a"], ({"name": "-q"}, ["a"])),
        (["-n=x", "a"], ({"name": "=x"}, ["a"])),
        (["-qx", "a"], None),
        (["-q=1", "a"], None),
        (["-n"], None),
        (["--wait"], None),
        (["--quiet", "--quiet", "a"], ({"quiet": True}, ["a"])),
        ([], None),
        (["--"], None),
        (["--cpu"], None),
        (["--cpu", "1"], None),
        (["--bogus", "a"], None),
        (["--cp", "1", "a"], None),
        (["-c", "1", "a"], None),
        (["--quiet=1", "a"], None),
        (["--help"], None),
        (["--help", "a"], None),
        (["-h"], None),
    ],
)
def test_a_line_is_options_then_a_command(line: list[str], parsed: Any) -> None:
    assert options.parse(line) == parsed


@pytest.mark.parametrize(
    ("line", "spelt"),
    [
        (["--wait", "a"], ["--wait=max", "a"]),
        (["--wait=1s", "--wait", "--", "--wait"], ["--wait=1s", "--wait=max", "--", "--wait"]),
        (["--name", "--wait", "a", "--wait"], ["--name", "--wait", "a", "--wait"]),
        (["--quiet", "--wait"], ["--quiet", "--wait=max"]),
        (["--name"], ["--name"]),
        (["-qn", "--wait", "--wait", "a"], ["-q", "-n", "--wait", "--wait=max", "a"]),
        ([], []),
    ],
)
def test_an_option_that_stands_alone_is_spelt_out(line: list[str], spelt: list[str]) -> None:
    assert options.spell_out(line) == spelt


def test_parsing_leaves_the_line_as_it_was() -> None:
    line = ["--cpu", "1", "--", "a"]
    options.parse(line)
    assert line == ["--cpu", "1", "--", "a"]
