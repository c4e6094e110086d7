"""The documentation: it builds as a site without a warning, its links lead somewhere, and it is of this code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agentres.cli.verbs import VERBS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCS.glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("https://", "http://")):
            assert (page.parent / target).exists(), target


def test_its_tables_are_those_of_the_code() -> None:
    sys.path.insert(0, str(DOCS))
    from _tables import TABLES, filled

    stand = set()
    for page in DOCS.glob("*.md"):
        text = page.read_text()
        assert filled(text) == text, f"{page.name}: scripts/docs --write"
        stand.update(re.findall(r"<!-- table: (\w+),", text))
    assert stand == TABLES.keys()


def test_it_builds_as_a_site(tmp_path: Path) -> None:
    pytest.importorskip("myst_parser", reason="only development has what builds it")
    sources = tmp_path / "docs"
    shutil.copytree(DOCS, sources, ignore=shutil.ignore_patterns("reference", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(sources), str(tmp_path / "site")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    commands = (tmp_path / "site/reference/commands.html").read_text()
    for verb in VERBS:
        assert f"agentres {verb}" in commands, verb
    page = (tmp_path / "site/index.html").read_text()
    for name in {path.stem for path in DOCS.glob("*.md")} - {"index"}:
        assert f'href="{name}.html"' in page, f"{name} is in no list of the site"
