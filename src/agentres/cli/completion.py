"""Shell completion without Typer: verbs, options, values of options, names of agents.

The shells use Typer's scripts (``agentres --show-completion``), and this module speaks their protocol.  Shells that it
does not know are left to Typer.  What declares parameters is imported where a verb's are completed: it takes longer than the verbs' names.
"""

from __future__ import annotations

from agentres.cli import verbs
from agentres.cli.verbs import GROUPS, VERBS
from agentres.model.errors import AgentresError
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from agentres.cli.parameters import Argument, Option, Parameter

VARIABLE = "_AGENTRES_COMPLETE"
"""The environment variable that names the shell."""

_HELP = ("--help", "Show this message and exit.")
_ALWAYS = [("--version", "Show the version."), _HELP]

Candidate = tuple[str, str]
"""A possible word, and its description."""


def answer(environment: Mapping[str, str]) -> tuple[int, str] | None:
    """Return the exit status and the text for the shell that asks; None for an unknown shell."""
    shell = environment.get(VARIABLE, "").removeprefix("complete_")
    try:
        if shell == "bash":
            words, begun = _of_bash(environment)
        elif shell in ("zsh", "fish"):
            line = environment.get("_TYPER_COMPLETE_ARGS", "")
            words = _split(line)[1:]
            begun = words.pop() if words and not line.endswith(" ") else ""
        else:
            return None
    except ValueError:  # a quote is still open
        return 0, ""
    name, equals, value = begun.partition("=")
    prefix = f"{name}=" if equals and name.startswith("--") else ""
    if prefix:
        words, begun = [*words, name], value
    known = candidates(words, begun, shell != "bash")
    found = sorted({f"{prefix}{value}": help for value, help in known if value.startswith(begun)}.items())  # fmt: skip
    if shell == "bash":
        return 0, "\n".join(value for value, _ in found)
    if shell == "zsh":
        text = "\n".join(f'"{_escaped(value)}":"{_escaped(help)}"' for value, help in found)
        return 0, f"_arguments '*: :(({text}))'" if found else "_files"
    if environment.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        return int(not found), ""
    return 0, "\n".join(f"{value}\t{help}" for value, help in found)


def _of_bash(environment: Mapping[str, str]) -> tuple[list[str], str]:
    """Return the words before, and the one being typed; bash splits at ``=``, and makes it a word of its own."""
    words = _split(environment.get("COMP_WORDS", ""))
    at = int(environment.get("COMP_CWORD", "0"))
    begun = words[at] if at < len(words) else ""
    return [word for word in words[1:at] if word != "="], "" if begun == "=" else begun


def _split(line: str) -> list[str]:
    """Split a line into words, as a shell does; ValueError where a quote is still open."""
    if not {"'", '"', "\\"} & set(line):
        return line.split()
    import shlex  # it loads re

    return shlex.split(line)


def candidates(words: Sequence[str], begun: str, helps: bool = True) -> Iterator[Candidate]:
    """Yield what may follow the words; ``begun`` is the start of it.  Without ``helps``, some have no description."""
    if not words:
        yield from _ALWAYS if begun.startswith("-") else _first_words(helps)
        return
    verb, *rest = words
    if (group := GROUPS.get(verb)) is not None:
        below = {name.partition(" ")[2]: name for name in VERBS if name.startswith(f"{verb} ")}
        if not rest and not begun.startswith("-"):
            yield from ((name, _summary(whole)) for name, whole in below.items())
            return
        verb = f"{verb} {rest.pop(0) if rest and rest[0] in below else group.standard}"
    if verb == "run":
        from agentres.cli.parameters import of_run
        from agentres.run.options import OPTIONS

        yield from _of_verb(list(of_run(OPTIONS)), rest, begun, ends=True)
    elif verb in VERBS:
        from agentres.cli.parameters import parameters

        yield from _of_verb(parameters(verbs.function(verb)), rest, begun)


def _of_verb(
    known: list[Parameter], words: Sequence[str], begun: str, ends: bool = False
) -> Iterator[Candidate]:
    """Yield what may follow a verb; ``ends``: everything after the first word that is no option belongs to another command."""
    from agentres.cli.parameters import Argument, Option

    options = {name: each for each in known if isinstance(each.declared, Option) for name in each.names}  # fmt: skip
    given, placed, takes = set[str](), 0, None
    for word in words:
        if takes is not None:
            takes = None
        elif word.startswith("-") and word not in ("-", "--"):
            option = options.get(word.partition("=")[0])
            given.add(option.key if option else "")
            takes = option if option and option.of is not bool and "=" not in word else None
        elif ends:
            return
        else:
            placed += 1
    if takes is not None:
        assert isinstance(takes.declared, Option)
        yield from _values(takes.declared)
    elif begun.startswith("-"):
        free = (each for each in known if isinstance(each.declared, Option) and (each.many or each.key not in given))  # fmt: skip
        yield from ((name, each.declared.help) for each in free for name in each.names)
        yield _HELP
    else:
        arguments = [each for each in known if isinstance(each.declared, Argument)]
        at = min(placed, len(arguments) - 1)
        if at >= 0 and (placed == at or arguments[at].many):
            yield from _names(arguments[at].declared)


def _values(option: Option) -> Iterator[Candidate]:
    """Yield the literal values that an option's metavar lists: ``host|none|isolated``."""
    for value in option.metavar.strip("[]").split("|"):
        if value.islower():
            yield value, ""


def _names(argument: Option | Argument) -> Iterable[Candidate]:
    from agentres.cli.parameters import Argument

    if not isinstance(argument, Argument) or argument.names is None:
        return []
    try:
        return [(name, "") for name in argument.names()]
    except (AgentresError, OSError):  # the names cannot be read: complete nothing
        return []


def _first_words(helps: bool) -> Iterator[Candidate]:
    yield "run", "Run COMMAND in a cgroup of its own, inside hard limits."
    yield from ((name, group.help) for name, group in GROUPS.items())
    # The descriptions require loading all the verbs' modules.
    yield from ((name, _summary(name) if helps else "") for name in VERBS if " " not in name)


def _summary(verb: str) -> str:
    return (verbs.function(verb).__doc__ or "").partition("\n")[0]


def _escaped(text: str) -> str:
    for mark, instead in (('"', '""'), ("'", "''"), ("$", "\\$"), ("`", "\\`"), (":", r"\\:")):
        text = text.replace(mark, instead)
    return text
