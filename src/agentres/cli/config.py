"""``agentres config``: checks, creates and shows the configuration files, and says where they are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from agentres.cli.parameters import Argument, Option
from agentres.cli.show import loaded
from agentres.config import dotted, dump, sections, template
from agentres.kernel import host
from agentres.model.errors import AgentresError, reason
from agentres.model.paths import configuration
from agentres.model.units import counted
from agentres.run.options import variable, with_environment


def check(
    given: Annotated[
        list[str] | None,
        Argument(metavar="[FILE]...", help="Files to read instead of the default ones."),
    ] = None,
) -> None:
    """Read the configuration as a run would; each FILE overrides the one before it.

    Exits 1 if it is invalid, and says in one line where and why.
    """
    paths = given or configuration(os.environ, os.getuid())
    settings = loaded(paths)
    where = ", ".join(paths) or "no configuration file, what is built in"
    counts = (
        counted(len(settings.rules), "rule"),
        counted(len(settings.handlers), "handler"),
        counted(len(settings.philosophies), "philosophy", "philosophies"),
        counted(len(settings.limits), "limit"),
    )
    print(f"{where}: {', '.join(counts)}")


def init(
    given: Annotated[
        str | None,
        Argument(metavar="[FILE]", help="File to write instead of the default one."),
    ] = None,
) -> None:
    """Write a configuration file to start from: what is built in, and examples, commented out.

    By default it is /etc/agentres/agentres.toml for root, else your own file. An existing file is left as it is.
    """
    known = configuration(os.environ, os.getuid(), missing=True)
    path = given or known[0 if os.geteuid() == 0 else -1]
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o755, exist_ok=True)
        with open(path, "x") as file:
            file.write(template())
    except FileExistsError:
        raise AgentresError(f"{path} is there already: not touched") from None
    except OSError as error:
        raise AgentresError(f"cannot write {path}: {reason(error)}") from None
    print(path)


def show(
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of TOML.")] = False,
    origin: Annotated[bool, Option("--origin", help="Show where each key comes from.")] = False,
) -> None:
    """Print the configuration in effect as a configuration file: every key, the environment included.

    It includes the headers of webhooks, which may be secrets.
    """
    paths = configuration(os.environ, os.getuid())
    settings, beside = with_environment(loaded(paths, origin), host.read(), os.environ)
    if as_json:
        named = {"origins": dict(settings.origins)} if origin else {}
        print(json.dumps({"schema": 1, "files": paths, **named, **sections(settings)}, indent=2))
    elif origin:
        for line in _with_origins(sections(settings), settings.origins):
            print(line)
        for key, text in beside.items():
            print(f"# agentres run --{key} {text}  # {variable(key)}")
    else:
        print(dump(settings), end="")


def _with_origins(
    values: Mapping[str, Any],
    origins: Mapping[str, str],
    at: tuple[str, ...] = (),
    whole: str = "built in",
) -> Iterator[str]:
    """Yield a line for each key; ``whole`` is where the table is from, if that is known of it as a whole."""
    for key, value in values.items():
        name = dotted((*at, key))
        origin = origins.get(name, whole)
        if isinstance(value, dict):
            yield from _with_origins(value, origins, (*at, key), origin)
        else:
            yield f"{name} = {json.dumps(value)}  # {origin}"


def path() -> None:
    """Print which files are read, later ones over earlier ones, and whether they exist."""
    for one in configuration(os.environ, os.getuid(), missing=True):
        print(f"{one}\t{'read' if os.path.exists(one) else 'not there'}")
