"""Recorded agents, and what a rule makes of one of them."""

from __future__ import annotations

import gzip
import json
import math
import operator
import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

MB = 1e6


class Recording(NamedTuple):
    """One agent's life: seconds from its start, and bytes in use from each of them on."""

    name: str
    times: list[float]
    uses: list[float]

    @property
    def used(self) -> float:
        """Byte seconds, as recorded."""
        spans = zip(self.times, self.times[1:], self.uses, strict=False)
        return sum((end - begin) * use for begin, end, use in spans)

    @property
    def seconds(self) -> float:
        return self.times[-1]


class World(NamedTuple):
    """What is assumed of the host and of our speed: bytes, seconds, bytes a second."""

    start: int
    least: int
    most: int
    reaction: float
    growth: float


class Outcome(NamedTuple):
    """What became of one recording: ``limits`` are (time, limit from then on)."""

    limits: list[tuple[float, float]]
    killed: float | None = None
    throttled: float = 0.0
    looks: int = 0

    @property
    def rewrites(self) -> int:
        return len(self.limits) - 1


Rule = Callable[[Recording, World], Outcome]


def wrong(text: str) -> NoReturn:
    """End with one line that says what is wrong."""
    sys.exit(f"{os.path.basename(sys.argv[0])}: {text}")


def load(path: str, only: str = "") -> list[Recording]:
    """The recordings of a file; SystemExit tells what is wrong with it, by line."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        opener = gzip.open if packed else open
        with opener(path, "rt", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        wrong(f"cannot read the recordings: {path}: {getattr(error, 'strerror', None) or error}")
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(parse(line))
            except (ValueError, TypeError, KeyError, IndexError) as error:
                what = f"no {error}" if isinstance(error, KeyError) else error
                wrong(
                    f"{path}, line {number}: is no recording ({what}); expected a JSON object with samples: [[seconds, MB, …], …]"
                )
    chosen = [recording for recording in found if only in recording.name]
    if not chosen:
        wrong(f"{path}: holds no recording" + (f" with {only!r} in its name" if only else ""))
    return chosen


def parse(line: str) -> Recording:
    """One line: KeyError, TypeError, ValueError where it is no recording."""
    row = json.loads(line)
    samples = row["samples"]
    if len(samples) < 2:
        raise ValueError("fewer than two samples")
    times = [float(sample[0]) for sample in samples]
    uses = [float(sample[1]) * MB for sample in samples]
    if not all(map(math.isfinite, (*times, *uses))) or min(uses) < 0:
        raise ValueError("a sample is not a number, 0 or more")
    if max(uses) == 0:
        raise ValueError("nothing is in use")
    if any(map(operator.ge, times, times[1:])):
        raise ValueError("the samples are not in order of time")
    name = "/".join(str(row[key]) for key in ("model", "task", "attempt") if key in row)
    return Recording(name, [at - times[0] for at in times], uses)


def pieces(recording: Recording) -> Iterator[tuple[float, float, float, float]]:
    """(begin, end, use at the beginning, use that it grows to at once), a piece for two samples."""
    times, uses = recording.times, recording.uses
    for at in range(len(times) - 1):
        yield times[at], times[at + 1], uses[at], max(uses[at], uses[at + 1])
