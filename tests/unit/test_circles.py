"""No module imports one that imports it, by any way; what functions import counts as well."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Collection, Iterator
from pathlib import Path

import agentres

ROOT = Path(agentres.__file__).parent


def modules() -> dict[str, Path]:
    """Those of the package, and where they are."""
    paths = {path: path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): path for path, name in paths.items()}


def imported(node: ast.AST, known: Collection[str]) -> Iterator[str]:
    """What a piece of code imports; what only the type checker reads is left out."""
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=otherwise):
            for each in otherwise:
                yield from imported(each, known)
        case ast.Import(names=names):
            yield from (name.name for name in names)
        case ast.ImportFrom(module=str(module), names=names):
            whole = [f"{module}.{name.name}" for name in names]
            yield from (each if each in known else module for each in whole)
        case _:
            for child in ast.iter_child_nodes(node):
                yield from imported(child, known)


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_a_circle_is_found() -> None:
    code = "def f():\n  from agentres.b import x"
    found = {*imported(ast.parse(code), ["agentres.b"])}
    assert found == {"agentres.b"}
    assert circle({"agentres.a": found, "agentres.b": {"agentres.a"}})


def test_the_modules_import_one_another_in_no_circle() -> None:
    known = modules()
    graph = {
        name: {one for one in imported(ast.parse(path.read_text()), known) if one in known} - {name}
        for name, path in known.items()
    }
    assert graph["agentres.run.launch"] > {"agentres.kernel.registry", "agentres.run.admission"}
    assert circle(graph) == []
