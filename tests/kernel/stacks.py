"""Block devices to write through: each kind of stack that hosts have, on the VM's spare disk."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SPARE_DISK = Path("/dev/disk/by-id/agentres-data")
"""An empty disk that the tests may overwrite: the VM's second one."""

PART_MB = 200


@dataclass
class Stack:
    """A mounted file system, and how to undo it."""

    mount: Path
    undo: list[list[str]] = field(default_factory=list)

    def remove(self) -> None:
        for command in reversed(self.undo):
            subprocess.run(command, check=True, capture_output=True)


def sh(*command: str | Path, **kwargs: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **kwargs)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return str(done.stdout).strip()


class _Maker:
    def __init__(self, where: Path) -> None:
        self.where = where
        self.made = Stack(where / "mount")
        self.made.mount.mkdir()

    def parts(self, number: int) -> list[str]:
        """So many partitions of the spare disk, without anything on them."""
        disk = str(SPARE_DISK.resolve())
        sh("sfdisk", "-q", "--wipe=always", disk, input=f",{PART_MB}M\n" * number)
        self.made.undo.append(["sfdisk", "-q", "--delete", disk])
        sh("udevadm", "settle")
        parts = [f"{disk}{part + 1}" for part in range(number)]
        for part in parts:
            sh("wipefs", "-q", "-a", part)
        return parts

    def filesystem(self, device: str, kind: str = "ext4", *more: str, options: str = "rw") -> None:
        force = ["-q"] if kind == "ext4" else ["-q", "-f"]
        sh(f"mkfs.{kind}", *force, device, *more)
        sh("mount", "-o", options, device, self.made.mount)
        self.made.undo.append(["umount", str(self.made.mount)])

    def partition(self) -> None:
        self.filesystem(*self.parts(1))

    def loop(self) -> None:
        self.filesystem(self.in_memory())

    def project(self) -> None:
        features = ("-O", "project,quota", "-E", "quotatype=prjquota")
        self.filesystem(self.in_memory(), "ext4", *features, options="prjquota")

    def project_xfs(self) -> None:
        self.filesystem(self.in_memory(320), "xfs", options="prjquota")  # it has 300 MB at least

    def few_inodes(self) -> None:
        sh("mount", "-t", "tmpfs", "-o", "size=10m,nr_inodes=200", "tmpfs", self.made.mount)
        self.made.undo.append(["umount", str(self.made.mount)])

    def in_memory(self, size: int = PART_MB) -> str:
        """A loop device, of so many MB."""
        # In memory: on a disk the rate would hold there as well, for as much of what the loop driver
        # writes as the kernel charges to the agent.
        image = Path(sh("mktemp", "/dev/shm/agentres-XXXXXX"))
        self.made.undo.append(["rm", str(image)])
        sh("fallocate", "-l", f"{size}M", image)
        loop = sh("losetup", "--find", "--show", image)
        self.made.undo.append(["losetup", "--detach", loop])
        return loop

    def lvm(self) -> None:
        (part,) = self.parts(1)
        sh("vgcreate", "-q", "agentres", part)
        self.made.undo.append(["vgremove", "-q", "-f", "agentres"])
        sh("lvcreate", "-q", "-y", "-l", "100%FREE", "-n", "data", "agentres")
        self.filesystem("/dev/agentres/data")

    def luks(self) -> None:
        (part,) = self.parts(1)
        key = self.where / "key"
        key.write_text("secret")
        quick = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
        sh("cryptsetup", "luksFormat", "-q", *quick, part, key)
        sh("cryptsetup", "open", "--key-file", key, part, "agentres")
        self.made.undo.append(["cryptsetup", "close", "agentres"])
        self.filesystem("/dev/mapper/agentres")

    def _md(self, level: str, disks: int) -> None:
        members = self.parts(disks)
        device = "/dev/md/agentres"
        command = ["mdadm", "--create", device, "--run", "--quiet", "--level", level]
        sh(*command, "--raid-devices", str(disks), "--assume-clean", "--metadata", "1.2", *members)
        self.made.undo.append(["mdadm", "--stop", "--quiet", device])
        self.filesystem(device)

    def md_raid1(self) -> None:
        self._md("1", 2)

    def md_raid5(self) -> None:
        self._md("5", 3)

    def btrfs(self) -> None:
        one, two = self.parts(2)
        self.filesystem(one, "btrfs", two, "-d", "raid0", "-m", "raid1")

    def overlay(self) -> None:
        lower = self.made.mount
        self.filesystem(*self.parts(1))
        merged = self.where / "merged"
        for directory in (merged, lower / "lower", lower / "upper", lower / "work"):
            directory.mkdir()
        options = f"lowerdir={lower}/lower,upperdir={lower}/upper,workdir={lower}/work"
        sh("mount", "-t", "overlay", "overlay", "-o", options, merged)
        self.made.undo.append(["umount", str(merged)])
        self.made.mount = merged


def stack(kind: str, where: Path) -> Stack:
    """Make a stack of this kind below ``where``; what was made is undone when making it fails."""
    maker = _Maker(where)
    make: Callable[[], None] = getattr(maker, kind.replace("-", "_"))
    try:
        make()
    except BaseException:
        maker.made.remove()
        raise
    return maker.made
