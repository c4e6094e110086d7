"""Files of recordings, as the benchmarks read them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path


def write(path: Path, *rows: object) -> str:
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return str(path)
