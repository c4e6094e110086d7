"""Where the sessions of one round run: in one cgroup together, each in agentres, or without limits.

Each is a context manager: it gives what makes a session's command line (by the session's number; 0 is HIGH) and a
check that the limit is really held, which raises Unheld.
"""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Place = tuple[Callable[[int, list[str]], list[str]], Callable[[], None]]

CGROUPS = Path("/sys/fs/cgroup")
SLICE = "agentres.slice"
LEAST = 64 << 20
"""Bytes: the low end of each session's range."""

_NAME = "contention-"
_numbers = itertools.count(1)


class Unheld(Exception):
    """The machine does not do what the experiment needs; the words are for people."""


def aligned(size: int) -> int:
    """``size`` in whole pages, as the kernel has limits."""
    page = os.sysconf("SC_PAGE_SIZE")
    return size // page * page


def share(total: int, host: int, page: int = 4096) -> str:
    """The percentage of ``host`` bytes that comes to ``total`` bytes (whole pages) when rounded down to pages."""
    return f"{100 * (total + page / 2) / host:.9f}%"


def configuration(total: int, host: int) -> str:
    """What agentres is told.  Runs do not learn from each other, so that all are alike."""
    return (
        f'[budget]\nshare = "{share(total, host)}"\n'
        "[scaling]\npredict = false\n"
        "[handlers.terminal]\nenabled = false\n"
    )


def run(total: int, config: Path, philosophy: str, number: int, command: list[str]) -> list[str]:
    """The ``agentres run`` of a session, by its number: 0 is HIGH."""
    priority = "low" if number else "high"
    options = [f"--name={_NAME}{number + 1}", f"--priority={priority}", "--cpu=max"]
    options += [f"--memory={LEAST}:{total}", f"--philosophy={philosophy}"]
    return ["agentres", "run", "--quiet", f"--config={config}", *options, "--", *command]


@contextmanager
def unlimited() -> Iterator[Place]:
    """As they are: no cgroup, no limit (``--dry``)."""
    yield (lambda number, command: command), (lambda: None)


@contextmanager
def together(limit: int | None) -> Iterator[Place]:
    """All in one scope of systemd's that may have ``limit`` bytes, None: any."""
    unit = f"bench-{_NAME}{os.getpid()}-{next(_numbers)}.scope"
    most = "infinity" if limit is None else str(limit)
    line = ["systemd-run", "--scope", "--quiet", f"--unit={unit}"]
    # Delegated: else systemd ends the scope when a process in it has been killed for memory.
    for each in (
        f"MemoryMax={most}",
        "MemorySwapMax=0",
        "Delegate=memory",
        "CollectMode=inactive-or-failed",
    ):
        line += ["-p", each]
    # Something small keeps it until the sessions are there, and answers when it is there itself.
    holder = subprocess.Popen(
        [*line, "cat"], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        try:
            holder.stdin.write(b"up\n")
            up = holder.stdout.readline()
        except BrokenPipeError:
            up = b""
        cgroup = CGROUPS / "system.slice" / unit
        if not up or not cgroup.is_dir():
            raise Unheld(f"systemd-run made no scope at {cgroup}")
        _expect(cgroup / "memory.max", "max" if limit is None else str(limit))
        enter = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(cgroup / "cgroup.procs")]
        yield (lambda number, command: [*enter, *command]), (lambda: None)
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()


@contextmanager
def agentres(total: int, config: Path, philosophy: str) -> Iterator[Place]:
    """Each in an ``agentres run`` of its own, all in a budget of ``total`` bytes, which ``config`` names too.

    The kernel's limit on the slice is set here beforehand.  The first run would do it else, but with the budget's
    share of the CPUs, of which there is to be no want; and it would stay for the next experiment.
    """
    if _scopes(""):
        raise Unheld(f"agents are running in {SLICE}: they would take part; end them first")
    _limit_slice(str(total))
    try:

        def check() -> None:
            _expect(CGROUPS / SLICE / "memory.max", str(total))
            _expect(CGROUPS / SLICE / "cpu.max", "max")

        yield functools.partial(run, total, config, philosophy), check
    finally:
        _wait_gone()
        _limit_slice("infinity")


def _limit_slice(most: str) -> None:
    line = ["systemctl", "set-property", "--runtime", SLICE, f"MemoryMax={most}", "CPUQuota="]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise Unheld(f"systemctl cannot limit {SLICE}: {done.stderr.strip()}")


def _expect(file: Path, text: str) -> None:
    try:
        stands = file.read_text().split()[0]
    except OSError as error:
        raise Unheld(f"{file}: {error.strerror}") from None
    if stands != text:
        raise Unheld(f"{file} is {stands}; expected {text}")


def _scopes(name: str) -> list[Path]:
    return list((CGROUPS / SLICE).glob(f"agentres-{name}*.scope"))


def _wait_gone() -> None:
    """Until systemd has removed the scopes; what a run left that did not end is killed."""
    for kill in (False, True):
        if kill:
            for scope in _scopes(_NAME):
                try:
                    (scope / "cgroup.kill").write_text("1")
                except FileNotFoundError:  # it went by itself
                    pass
        deadline = time.monotonic() + 10
        while _scopes(_NAME):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return
    raise Unheld(f"{_scopes(_NAME)[0].name} does not go away")
