"""Where things are, and what the environment says about them."""

import os
from dataclasses import dataclass
from pathlib import Path

SOURCE_TREE = Path(__file__).resolve().parents[2]

RELEASE = "trixie"  # Debian 13

# The script's own failures, so that they are not taken for the command's.
EXIT_FAILURE = 125


class VmError(Exception):
    """A failure to report in one line."""


def cache_dir() -> Path:
    """The folder of everything this script writes."""
    if own := os.environ.get("AGENTRES_VM_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "agentres" / "vm"


@dataclass(frozen=True)
class Settings:
    """What the environment may change about the machine and the build."""

    memory_mib: int
    cpus: int
    append: str
    accelerator: str | None
    mirror: str | None
    release: str
    name: str

    @classmethod
    def from_environment(cls) -> "Settings":
        """Read and check the AGENTRES_VM_* variables."""
        accelerator = os.environ.get("AGENTRES_VM_ACCEL") or None
        if accelerator not in (None, "kvm", "uml", "tcg", "stock"):
            raise VmError(f"AGENTRES_VM_ACCEL is {accelerator!r}, not kvm, uml, tcg or stock")
        return cls(
            memory_mib=_positive("AGENTRES_VM_MEMORY", 4096),
            cpus=_positive("AGENTRES_VM_CPUS", 2),
            append=os.environ.get("AGENTRES_VM_APPEND", ""),
            accelerator=accelerator,
            mirror=os.environ.get("AGENTRES_VM_MIRROR") or None,
            release=os.environ.get("AGENTRES_VM_RELEASE") or RELEASE,
            name=os.environ.get("AGENTRES_VM_NAME", ""),
        )


def _positive(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or int(text) == 0:
        raise VmError(f"{name} is {text!r}, not a positive whole number")
    return int(text)
