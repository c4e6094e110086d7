"""What a shell is told that a line may be completed with, in the protocol of Typer's scripts."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import agentres

from agentres.cli import app, live, parameters
from agentres.cli.completion import VARIABLE
from agentres.store import Run, Store


def bash(line: str) -> list[str]:
    """The candidates for what is typed, as bash would get them; it makes a word of each ``=``."""
    words = line.replace("=", " = ").split(" ")
    words = [word for at, word in enumerate(words) if word or at == len(words) - 1]
    env = {VARIABLE: "complete_bash", "COMP_WORDS": "\n".join(["agentres", *words]), "COMP_CWORD": str(len(words))}  # fmt: skip
    status, out, err = agentres(env=env)
    assert (status, err) == (0, "")
    return out.split()


def typed(shell: str, line: str, **more: str) -> tuple[int, str]:
    env = {VARIABLE: f"complete_{shell}", "_TYPER_COMPLETE_ARGS": f"agentres {line}", **more}
    status, out, err = agentres(env=env)
    assert err == ""
    return status, out.removesuffix("\n")


@pytest.mark.parametrize(
    "line",
    ["", "al", "-", "config ", "ps --", "capacity -", "alerts list --", "alerts --", "run --",
     "run --net-", "history --p", "logs --fo", "stop --gr", "unit ", "set --mem", "history planner --"],
)  # fmt: skip
def test_all_that_typer_knows_is_there(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = set(bash(line))
    words = ["agentres", *line.split(" ")]
    monkeypatch.setenv(VARIABLE, "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    with pytest.raises(SystemExit):
        raise SystemExit(app.main([]))
    theirs = set(capsys.readouterr().out.split()) - {
        "-h",
        "--install-completion",
        "--show-completion",
    }
    assert theirs
    assert ours >= theirs


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("cap", ["capacity"]),
        ("alerts ", ["ack", "list", "show", "stats"]),
        ("alerts a", ["ack"]),
        ("run --net ", ["host", "isolated", "none"]),
        ("run --net=ho", ["host"]),
        ("run --net=", ["host", "isolated", "none"]),
        ("run --priority l", ["low"]),
        ("run --isolate=", ["no", "yes"]),
        ("run --memory 2G --mem", []),  # it is given
        (
            "run --io-read 1M --io-rea",
            ["--io-read", "--io-read-iops"],
        ),  # and this may be given again
        ("run --quiet -- --", []),  # the command's
        ("run sh -", []),
        ("nonsense ", []),
        ("run --memory ", []),
        ("run 'open", []),
        ("ps ", []),
    ],
)
def test_what_may_stand_there(line: str, found: list[str]) -> None:
    assert bash(line) == found


def test_agents_that_run_are_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["planner", "plumber", "trainer"]
    for parameter in parameters.parameters(live.stop):
        if parameter.key == "names":
            monkeypatch.setattr(live.registry, "running", lambda mount: [_Found(n) for n in names])
    assert bash("stop pl") == ["planner", "plumber"]
    assert bash("stop planner ") == names  # several may be named
    assert bash("show planner ") == []  # one is all that it takes
    assert bash("stop --grace 5s t") == ["trainer"]


class _Found:
    def __init__(self, name: str) -> None:
        self.name = name


def test_what_is_in_the_history_is_known_by_name(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTRES_STATE_DIR", str(tmp_path))
    assert bash("history ") == []  # there is none
    store = Store.open(f"{tmp_path}/history.db")
    for run, name in (("a1", "planner"), ("a2", "planner"), ("a3", "fixer")):
        store.begin(Run(run, name, "agent", ("x",), 0, "/x", 42, 9, "boot", 1000.0))
    store.close()
    assert bash("history ") == ["fixer", "planner"]
    assert bash("report fixer p") == ["planner"]


def test_zsh_is_told_what_each_is() -> None:
    status, out = typed("zsh", "alerts a")
    assert status == 0
    assert (
        out
        == """_arguments '*: :(("ack":"Acknowledge an alert\\\\: say who looks after it, and why."))'"""
    )
    assert '"ps":"Show the agents that run' in typed("zsh", "p")[1]
    assert typed("zsh", "run --memory ") == (0, "_files")
    assert '"--net=host":""' in typed("zsh", "run --net=h")[1]


def test_fish_asks_twice() -> None:
    assert typed("fish", "cap", _TYPER_COMPLETE_FISH_ACTION="is-args") == (0, "")
    assert typed("fish", "nonsense ", _TYPER_COMPLETE_FISH_ACTION="is-args") == (1, "")
    status, out = typed("fish", "gc --", _TYPER_COMPLETE_FISH_ACTION="get-args")
    assert (status, out) == (0, "--help\tShow this message and exit.")


def test_another_shell_is_typers() -> None:
    env = {VARIABLE: "complete_powershell", "_TYPER_COMPLETE_ARGS": "agentres p", "_TYPER_COMPLETE_WORD_TO_COMPLETE": "p"}  # fmt: skip
    _, out, _ = agentres(env=env)
    assert "ps:::" in out


def test_a_verb_s_name_is_completed_by_little() -> None:
    code = "import sys\nbefore = {*sys.modules}\nfrom agentres.cli import line\nline.main([])\nprint(*({*sys.modules} - before))"
    env = {VARIABLE: "complete_bash", "COMP_WORDS": "agentres his", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-Ic", code], env=env, capture_output=True, text=True, check=True)  # fmt: skip
    completed, loaded = done.stdout.splitlines()
    assert completed == "history"
    assert "agentres.cli.completion" in loaded.split()
    # Without them it takes half as long.
    assert {"typing", "re", "collections", "agentres.cli.parameters"} & {*loaded.split()} == set()
