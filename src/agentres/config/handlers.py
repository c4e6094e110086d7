"""Check that what a handler or a predictor needs exists: an executable, an entry point, a callable; else Wrong."""

from __future__ import annotations

import os
import sys
from typing import Any

from agentres.config.words import Wrong, nearest


def executable(name: str) -> None:
    """Check that ``name``, an absolute path or a name in PATH, can be executed."""
    import shutil

    if "/" in name and not name.startswith("/"):
        raise Wrong("command", "expected an absolute path, or a name that PATH has")
    if shutil.which(name) is None:
        where = "" if "/" in name else f" in PATH ({os.environ.get('PATH', os.defpath)})"
        raise Wrong("command", f"expected an executable, and {name} is none{where}")


def entry_point(name: str, group: str, key: str = "entry_point") -> str:
    """Return the value of the entry point ``name`` in ``group``; ``key`` is the key that names it."""
    from importlib.metadata import entry_points

    points = entry_points(group=group)
    found = sorted({point.value for point in points if point.name == name})
    if len(found) > 1:
        raise Wrong(key, f"expected one of this name, and there are {' and '.join(found)}")
    if not found:
        known = [point.name for point in points]
        words = nearest(name, known) if known else ", and there is none"
        raise Wrong(key, f"expected an entry point of {group}{words}")
    return found[0]


def importable(key: str, target: str) -> str:
    """Return ``target``, a ``package.module:function``, if it is a callable; ``key`` is the key that names it."""
    from contextlib import redirect_stdout
    from importlib import import_module

    module, _, path = target.partition(":")
    if not all(part.isidentifier() for name in (module, path) for part in name.split(".")):
        raise Wrong(key, 'expected "package.module:function"')
    try:
        with redirect_stdout(sys.stderr):  # stdout carries the settings
            found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # third-party code, which may raise anything
        words = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise Wrong(key, f"expected {target}, and importing it failed: {words}") from error
    if not callable(found):
        raise Wrong(key, f"expected a callable, and {target} is of type {type(found).__name__}")
    return target
