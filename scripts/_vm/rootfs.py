"""Turns Debian's plain root file system into the image's disk.

Runs as root, or as root of an ordinary user's namespace:
`python3 -m _vm.rootfs RELEASE WORK`, where WORK holds `rootfs.tar`, `wheels` and `key.pub`.
It writes `root.img`, `vmlinuz`, `initrd.img` and `host_key.pub` there.
"""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path

from .layout import GUEST_EXEC_DIR, GUEST_SOURCE, GUEST_USER, GUEST_VENV, GUEST_WHEELS
from .recipe import ROOT_DISK

# Cost boot time, wait for what never comes, or wake up during a measurement.
_MASKED_UNITS = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "logrotate.timer",
    "man-db.timer",
    "mdcheck_start.timer",
    "mdcheck_continue.timer",
    "mdmonitor.service",
    "mdmonitor-oneshot.timer",
    "motd-news.timer",
    "systemd-tmpfiles-clean.timer",
    "xfs_scrub_all.timer",
    "lvm2-monitor.service",
    "systemd-networkd-wait-online.service",
    "systemd-networkd-persistent-storage.service",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
)

_SSHD_CONFIG = "etc/ssh/sshd_config.d/agentres.conf"

# OpenSSH 9.8 brought these penalties, and does not start with an option that it does not know.
_SSHD_OF_RELEASE = {
    # Who waits for the boot connects often without logging in: that is no attack.
    "trixie": "PerSourcePenalties no\n",
    "bookworm": "",
}

_FILES = {
    "etc/hostname": "agentres\n",
    "etc/hosts": "127.0.0.1 localhost agentres\n::1 localhost\n",
    "etc/fstab": "LABEL=root / ext4 defaults,noatime 0 0\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    # A constant address needs no exchange at boot.
    "etc/systemd/network/10-qemu.network": (
        "[Match]\nType=ether\nKind=!veth\nKernelCommandLine=agentres.vm\n\n"
        "[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n"
        "LinkLocalAddressing=no\nIPv6AcceptRA=no\n"
    ),
    "etc/systemd/network/20-other.network": "[Match]\nType=ether\nKind=!veth\n\n[Network]\nDHCP=yes\n",
    "etc/systemd/journald.conf.d/agentres.conf": (
        "[Journal]\nStorage=volatile\nRuntimeMaxUse=32M\nRateLimitIntervalSec=0\n"
    ),
    _SSHD_CONFIG: (
        "HostKey /etc/ssh/ssh_host_ed25519_key\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUseDNS no\n"
        # All commands of a clone share one connection.
        "MaxSessions 200\nMaxStartups 100\nPrintMotd no\nPrintLastLog no\n"
    ),
    "etc/tmpfiles.d/agentres.conf": f"d {GUEST_EXEC_DIR} 1777 root root -\n",
    # For logins; `exec` sets the same by itself.
    "etc/profile.d/agentres.sh": f'PATH="{GUEST_VENV}/bin:$PATH"\n',
    # The host emulates no virtualisation: loading these is seconds of boot for nothing.
    "etc/modprobe.d/agentres.conf": "blacklist kvm_amd\nblacklist kvm_intel\n",
    # The kernel patches its own code when a host's first cpuset or CPU quota comes and when the last
    # one goes (jump labels); QEMU's multi-threaded emulation at times runs what is half patched, and
    # the guest panics (int3 in the page allocator).  With one that stays, there is no first and last.
    "etc/systemd/system/systemd-journald.service.d/agentres.conf": (
        "[Service]\nAllowedCPUs=0\nCPUQuota=100%\n"
    ),
    # The disk that tests may overwrite has one name, whatever the bus calls it.
    "etc/udev/rules.d/61-agentres.rules": (
        'SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", KERNEL=="ubdb", SYMLINK+="disk/by-id/agentres-data"\n'
        'SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", ENV{ID_SERIAL}=="agentres-data", '
        'SYMLINK+="disk/by-id/agentres-data"\n'
    ),
    # An empty configuration keeps mdadm from assembling what a test did not ask for.
    "etc/mdadm/mdadm.conf": "AUTO -all\n",
}


def main(release: str, work: Path) -> None:
    """Make the disk image of a Debian release's work folder."""
    root = work / "rootfs"
    root.mkdir()
    _call("tar", "--extract", "--file", work / "rootfs.tar", "--directory", root,
          "--numeric-owner", "--exclude=./dev/*")  # fmt: skip
    _configure(root)
    with (root / _SSHD_CONFIG).open("a") as config:
        config.write(_SSHD_OF_RELEASE[release])
    _add_users(root, (work / "key.pub").read_text())
    _make_host_key(root, work)
    _install_python(root, work / "wheels")
    for name in ("vmlinuz", "initrd.img"):
        # Debian's links to the newest kernel are relative to the guest's root.
        shutil.copyfile(root / str((root / name).readlink()).lstrip("/"), work / name)
    _make_disk(root, work / "root.img")


def _configure(root: Path) -> None:
    for name, text in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    # A set machine id makes the first boot like every other.
    (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").touch()
    for message in (root / "etc/update-motd.d").glob("*"):
        message.unlink()  # each costs every login a process or two
    units = root / "etc/systemd/system"
    for unit in _MASKED_UNITS:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    # With Debian's defaults it would end users' agents that are at their limits for half a minute.
    for defaults in (root / "usr/lib/systemd/system").glob("*/10-oomd-*-defaults.conf"):
        defaults.unlink()
    _chroot(root, ["systemctl", "disable", "systemd-oomd.service", "systemd-oomd.socket"])
    _chroot(root, ["systemctl", "enable", "systemd-networkd.service", "ssh.service"])


def _add_users(root: Path, public_key: str) -> None:
    _chroot(root, ["useradd", "--create-home", "--shell", "/bin/bash", "--uid", "1000", GUEST_USER])
    rule = root / "etc/sudoers.d" / GUEST_USER
    rule.write_text(f"{GUEST_USER} ALL=(ALL:ALL) NOPASSWD: ALL\n")
    rule.chmod(0o440)
    linger = root / "var/lib/systemd/linger"
    linger.mkdir(parents=True, exist_ok=True)
    (linger / GUEST_USER).touch()
    for home, owner in (("root", 0), (f"home/{GUEST_USER}", 1000)):
        folder = root / home / ".ssh"
        folder.mkdir(mode=0o700, exist_ok=True)
        keys = folder / "authorized_keys"
        keys.write_text(public_key)
        keys.chmod(0o600)
        for path in (folder, keys):
            os.chown(path, owner, owner)


def _make_host_key(root: Path, work: Path) -> None:
    for old in (root / "etc/ssh").glob("ssh_host_*"):
        old.unlink()
    key = root / "etc/ssh/ssh_host_ed25519_key"
    _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "agentres-vm", "-f", key)
    shutil.copyfile(key.with_suffix(".pub"), work / "host_key.pub")


def _install_python(root: Path, wheels: Path) -> None:
    """Install the wheels natively: the same takes minutes in an emulated guest."""
    inside = root / GUEST_WHEELS.lstrip("/")  # they stay, for the test that installs as a host does
    shutil.copytree(wheels, inside)
    python = f"{GUEST_VENV}/bin/python"
    _chroot(root, ["python3", "-m", "venv", GUEST_VENV])
    names = [f"{GUEST_WHEELS}/{path.name}" for path in sorted(wheels.iterdir())]
    _chroot(root, [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
                   "--no-compile", "--root-user-action=ignore", *names])  # fmt: skip
    _chroot(root, [python, "-m", "compileall", "-q", "-j0", GUEST_VENV])
    (root / GUEST_SOURCE.lstrip("/")).mkdir(parents=True, exist_ok=True)
    (root / "usr/local/bin/agentres").symlink_to(f"{GUEST_VENV}/bin/agentres")
    _call("chmod", "-R", "a+rX", root / "opt/agentres")


def _make_disk(root: Path, disk: Path) -> None:
    # Nothing is left for the kernel to initialise in the background during tests.
    options = "lazy_itable_init=0,lazy_journal_init=0"
    _call("mke2fs", "-q", "-t", "ext4", "-L", "root", "-m", "0", "-E", options,
          "-d", root, disk, ROOT_DISK)  # fmt: skip


def _chroot(root: Path, command: Iterable[str]) -> None:
    """Run in the root file system with the host's /dev and /proc, mounted for this command only."""
    script = 'mount --rbind /dev "$1/dev" && mount --rbind /proc "$1/proc" && exec chroot "$@"'
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
    }
    mounts = ["unshare", "--mount", "sh", "-c", script, "sh", str(root)]
    subprocess.run([*mounts, *command], check=True, env=environment)


def _call(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
