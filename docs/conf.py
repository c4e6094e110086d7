"""The documentation as a site: sphinx-build docs build/docs (scripts/docs does it)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from _reference import write

from agentres import __version__

project = "agentres"
author = "The agentres developers"
copyright = author
version = release = __version__
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["images"]
html_theme = "furo"
html_title = f"agentres {__version__}"
html_show_sourcelink = False
myst_heading_anchors = 3
# What is not part of the site is in the sources: those links are for who reads them there.
suppress_warnings = ["myst.xref_missing"]


def setup(app: object) -> None:
    """Have what is made from the code made before anything is read."""
    write(Path(__file__).parent / "reference")
