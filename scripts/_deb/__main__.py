"""The program behind `scripts/build-deb`: lays out the package's tree and writes its copyright file."""

import argparse
import sys
from pathlib import Path

from . import layout


def main() -> int:
    """Lay out; 0 where that is done."""
    parser = argparse.ArgumentParser(prog="_deb", description=__doc__)
    parser.add_argument("--python", action="append", required=True, metavar="3.N")
    parser.add_argument("tree", type=Path, help="becomes the package's root")
    parser.add_argument("copyright", type=Path, help="the file to write")
    parser.add_argument("archives", type=Path, nargs="+", help="wheels and sources")
    options = parser.parse_args()
    try:
        layout.lay_out(options.tree, options.python, options.archives)
        options.copyright.write_text(layout.copyright_of(options.tree))
    except layout.NotLaidOut as error:
        print(f"build-deb: {error}", file=sys.stderr)
        return 125
    return 0


if __name__ == "__main__":
    sys.exit(main())
