"""Every command of the documentation is one that the command line takes, and a test runs it or its reason stands here."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from agentres.cli import verbs
from agentres.cli.parameters import Option, of_run, parameters
from agentres.model.limits import Host
from agentres.run import options

sys.path.insert(0, str(Path(__file__).parents[1]))

from documented import ELSEWHERE, PAGES, TREE, blocks, commands, parts, spans

HOST = Host(cpus=4, memory=8 * 2**30)
ALL = [(page, part) for page in PAGES for each in commands(page) for part in parts(each.line)]


def words(part: str) -> list[str]:
    """As the program gets them: without redirections and who it is run as."""
    found = shlex.split(re.sub(r"\s*\d?>\S+", "", part))
    return found[1:] if found[0] == "sudo" else found


@pytest.mark.parametrize(("page", "part"), ALL, ids=lambda text: text[:70])
def test_a_command_is_one(page: str, part: str) -> None:
    program, *rest = words(part)
    if program.startswith(("scripts/", "benchmarks/")):
        assert (TREE / program).is_file()
        assert_known(TREE / program, rest)
    if program != "agentres":
        return
    if rest[0] != "run":
        assert verbs.understand(rest) is not None
        return
    line = options.parse(rest[1:])
    assert line is not None
    options.understand(*line, HOST)


def assert_known(program: Path, words: list[str]) -> None:
    """Options before ``--`` stand in its sources."""
    sources = [program, *program.parent.glob("_*.sh"), *program.parent.glob("_[a-z]*/*.py")]
    text = "".join(source.read_text() for source in sources)
    for word in words[: words.index("--")] if "--" in words else words:
        if word.startswith("--"):
            assert word.partition("=")[0] in text, word


@pytest.mark.parametrize("page", PAGES)
def test_no_command_stands_where_no_test_looks(page: str) -> None:
    for language, text in blocks(page):
        if language in ("", "sh", "bash"):
            assert not re.findall(
                r"^(?:sudo )?(?:agentres|(?:scripts|benchmarks)/\S+) .*", text, re.M
            )


@pytest.mark.parametrize("page", PAGES)
def test_what_the_text_names_is_there(page: str) -> None:
    for span in spans(page):
        program, *rest = re.sub(
            r"^([A-Z_]+=\S+ )*(sudo |time )?(scripts/vm exec -- )?", "", span
        ).split()
        if re.match(r"(scripts|benchmarks)/\w", program):
            assert (TREE / program.rstrip("/")).exists(), span
            if (TREE / program).is_file():
                assert_known(TREE / program, rest)
        elif program == "agentres" and rest and rest[0].isalpha():
            assert_understood(span, rest)


def assert_understood(span: str, rest: list[str]) -> None:
    """The verb is one, and what it is given are its options."""
    verb = " ".join(rest[:2]) if rest[0] in verbs.GROUPS else rest[0]
    if verb == "run":
        taken = list(of_run(options.OPTIONS))
    elif verb in verbs.VERBS:
        taken = parameters(verbs.function(verb))
    else:
        assert verb in verbs.GROUPS, span
        return
    known = {name for each in taken if isinstance(each.declared, Option) for name in each.names}
    given = rest[: rest.index("--")] if "--" in rest else rest
    assert {word.partition("=")[0] for word in given if word.startswith("-")} <= {*known, "--help"}, span  # fmt: skip


def test_the_table_of_what_is_not_run_has_nothing_else() -> None:
    for pattern, how in ELSEWHERE.items():
        assert any(re.fullmatch(pattern, part) for _, part in ALL), f"no command is {pattern}"
        assert (TREE / how.shown_by).is_file(), how.shown_by
