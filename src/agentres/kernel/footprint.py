"""What an agent's memory consists of now; loaded only once it was full, which is rare."""

from __future__ import annotations

import os

from agentres.kernel import process
from agentres.model.figures import flat_keyed
from agentres.model.oom import KINDS, Footprint, Resident, biggest
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PAGE = os.sysconf("SC_PAGE_SIZE")


def _kinds(text: bytes) -> dict[str, int]:
    found = flat_keyed(text)
    return {key: int(found[key.encode()]) for key in KINDS if key.encode() in found}


def total(kinds: Mapping[str, int]) -> int:
    """Return the total in bytes."""
    return sum(size for key, size in kinds.items() if key != "shmem")  # shmem is part of file


def read(path: str, pids: Iterable[int], before: bytes = b"") -> Footprint:
    """Return what the cgroup at ``path`` has in memory, and which of these processes have most of it.

    ``before`` is the text of memory.stat at its last read.  If it holds more, a process has been killed since: use it instead.
    Kinds that the kernel does not report are left out, and so are processes that end meanwhile.  OSError.
    """
    with open(f"{path}/memory.stat", "rb") as file:
        kinds = max(_kinds(file.read()), _kinds(before), key=total)
    processes = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                size = int(file.read().split()[1]) * _PAGE
        except (OSError, IndexError):
            continue
        if size and (name := process.name(pid)):
            processes.append(Resident(pid, name, size))
    return Footprint(kinds, biggest(processes))
