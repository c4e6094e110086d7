"""A disk that boots by itself, made of an image's root file system.

Runs as root, in a mount namespace of its own: `python3 -m _vm.bootdisk ROOT_IMG WORK`.
It writes `disk.raw` there. Mounts and loop devices go with the namespace, however this ends.
"""

import subprocess
import sys
from pathlib import Path

from .machine import KERNEL_LINE

SIZE_GIB = 6
_OFFSET = 2048 * 512  # where partitions begin, by custom: the boot loader has room before it

USER = "vagrant"
# The public half of the key that Vagrant itself brings, and uses where it is told of no other.
# It is well known, and no secret: the box is for the network of one's own machine only.
_KEY = (
    "ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzIw+niNltGEFHzD8+v1I2YJ6oXevct"
    "1YeS0o9HZyN1Q9qgCgzUFtdOKLv6IedplqoPkcmF0aYet2PkEDo3MlTBckFXPITAMzF8dJSIFo9D8HfdOV0IAdx4O7PtixWKn5y2hMNG0zQPyUec"
    "p4pzC6kivAIhyfHilFR61RGL+GPXQ2MWZWFYbAGjyiYJnAmCP3NOTd0jMZEnDkbUvxhMmBYSdETk1rRgm+R4LOzFUGaHqHDLKLX+FIPKcF96hruc"
    "XzcWyLbIbEgE98OHlnVYCzRdK8jlqm8tehUc9c9WhQ== vagrant insecure public key\n"
)

MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")
_MBR_BYTES = 440  # what follows them is the partition table


def main(image: Path, work: Path) -> None:
    """Make `disk.raw` in the work folder of an image's root disk, which stays as it is."""
    disk, source, target = work / "disk.raw", work / "source", work / "target"
    source.mkdir()
    target.mkdir()
    # Its journal is clean, and must not be touched: others use the same file.
    _call("mount", "-o", "loop,ro,noload", image, source)
    _partition(disk)
    blocks = (SIZE_GIB << 30) - _OFFSET >> 10
    # Two features that extlinux does not read; nothing is left to initialise during tests.
    _call("mke2fs", "-q", "-t", "ext4", "-O", "^64bit,^metadata_csum", "-L", "root", "-m", "0", "-b", "4096",
          "-E", f"offset={_OFFSET},lazy_itable_init=0,lazy_journal_init=0",
          "-d", source, disk, f"{blocks}k")  # fmt: skip
    _call("mount", "-o", f"loop,offset={_OFFSET},sizelimit={blocks << 10}", disk, target)
    _add_user(target)
    _add_loader(target)
    _call("umount", target)


def _partition(disk: Path) -> None:
    with disk.open("wb") as file:
        file.truncate(SIZE_GIB << 30)
    table = f"start={_OFFSET // 512}, type=83, bootable\n"
    subprocess.run(
        ["sfdisk", "--quiet", "--label", "dos", str(disk)], input=table, text=True, check=True
    )
    with disk.open("r+b") as file:
        file.write(MBR.read_bytes()[:_MBR_BYTES])


def _add_user(root: Path) -> None:
    _call("chroot", root, "useradd", "--create-home", "--shell", "/bin/bash", USER)
    rule = root / "etc/sudoers.d" / USER
    rule.write_text(f"{USER} ALL=(ALL:ALL) NOPASSWD: ALL\n")
    rule.chmod(0o440)
    keys = root / f"home/{USER}/.ssh/authorized_keys"
    keys.parent.mkdir(mode=0o700)
    keys.write_text(_KEY)
    keys.chmod(0o600)
    _call("chroot", root, "chown", "-R", f"{USER}:", f"/home/{USER}/.ssh")


def _add_loader(root: Path) -> None:
    folder = root / "boot/extlinux"
    folder.mkdir()
    (folder / "extlinux.conf").write_text(loader_config())
    _call("extlinux", "--install", folder)


def loader_config() -> str:
    """The text of extlinux.conf: the kernel that Debian's links name, with the command line of scripts/vm.

    `agentres.vm` is not in it: the word asks for the address that a machine of QEMU's own network has.
    """
    line = " ".join(word for word in KERNEL_LINE.split() if word != "agentres.vm")
    return (
        "DEFAULT agentres\nPROMPT 0\nLABEL agentres\n  LINUX /vmlinuz\n  INITRD /initrd.img\n"
        f"  APPEND root=LABEL=root {line} console=ttyS0\n"
    )


def _call(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except subprocess.CalledProcessError as error:  # it has said why
        sys.exit(f"{error.cmd[0]} failed with status {error.returncode}")
