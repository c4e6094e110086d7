"""The kernel tests in a Vagrant machine, with a libvirt that is there for them alone.

libvirtd runs by itself, without systemd and D-Bus, as root, in namespaces of its own.  Its mounts hide the
host's libvirt, configuration and state; its bridge, addresses and sysctls are those of a network that
nothing leads out of.  Process 1 there waits for the end of a pipe that this process holds: when we end,
however that comes, so does it, and by that all the others, the machine included.  Only files are left
then, and the next run removes them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from _vm import host
from _vm.clone import choose
from _vm.config import Settings, VmError, cache_dir
from _vm.image import ensure_image
from _vm.recipe import Recipe

from .parts import Parts, child
from .suites import TREE

_PACKAGES = {
    "vagrant": "vagrant",
    "/usr/share/vagrant-plugins/plugins.d/vagrant-libvirt.json": "vagrant-libvirt",
    "libvirtd": "libvirt-daemon",
    "virsh": "libvirt-clients",
    "dnsmasq": "dnsmasq-base",
    "rsync": "rsync",
    "ssh": "openssh-client",
    "ip": "iproute2",
    "nsenter": "util-linux",
}
_READY_SECONDS = 60
_BOOT_SECONDS = 600  # emulated, on processors that others want too

# Where libvirt keeps what it knows.
STATE = ("/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
NOTE = "made"  # those of them that were made for this run

# Root: else QEMU's abilities would be looked at anew for each definition, and our folder be out of reach.
# The host's cgroups are not to be touched, and what the machine prints goes to a file without virtlogd.
_QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
_LIBVIRTD_CONF = 'auth_unix_rw = "none"\n'

# Process 1. /run hides systemd and D-Bus, which libvirt would ask for cgroups and firewalls of the host's.
# Debian's libvirt wants to know its two users, also where it runs nothing as either of them.
# Children that are ignored leave no zombies: libvirtd's own helpers would, and it waits 45 s for each.
_PROCESS_1 = """\
set -e
cd "$1"
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
for folder in {state}; do
  mount -t tmpfs tmpfs "$folder"
done
cp qemu.conf /etc/libvirt
printf '%s:x:64055:64055::/:/usr/sbin/nologin\\n' libvirt-qemu libvirt-dnsmasq | cat /etc/passwd - >passwd
printf '%s:x:64055:\\n' libvirt-qemu libvirt-dnsmasq | cat /etc/group - >group
mount --bind passwd /etc/passwd
mount --bind group /etc/group
ip link set lo up
libvirtd --config "$1/libvirtd.conf" --pid-file "$1/libvirtd.pid" &
exec env --ignore-signal=CHLD cat </proc/self/fd/{pipe}  # sh takes numbers of one digit alone
"""

# Addresses by DHCP, and nothing that libvirt would want iptables for: there is nowhere to go.
_NETWORK = """\
<network>
  <name>vagrant-libvirt</name>
  <forward mode='open'/>
  <bridge name='virbr0' stp='off' delay='0'/>
  <ip address='192.168.121.1' netmask='255.255.255.0'>
    <dhcp><range start='192.168.121.2' end='192.168.121.254'/></dhcp>
  </ip>
</network>
"""
_NETWORK_NAME = "vagrant-libvirt"  # Vagrant's own name for it: one that is there is taken
_POOL = "agentres"


@dataclass(frozen=True)
class Steps:
    """What is done, each by its name and command: until the machine is there, in it, and to undo it."""

    up: tuple[tuple[str, list[str]], ...]
    tests: tuple[tuple[str, list[str]], ...]
    down: tuple[tuple[str, list[str]], ...]


def steps(release: str, folder: Path, arguments: Sequence[str]) -> Steps:
    """The steps for a box of a Debian release in a folder; ``arguments`` are pytest's."""
    box = f"agentres-{release}"
    vagrant = ["vagrant", "--no-tty"]
    tests = shlex.join(["scripts/test", "--here", "--kernel", "--", *arguments])
    begin = f"net-define {folder}/network.xml; net-start {_NETWORK_NAME}; pool-create-as {_POOL} dir --target {folder}/pool"
    # The ordinary user first, by his own login; sudo would have the tests run as him a second time.
    as_user = f"cd /vagrant && {tests}"
    as_root = f"cd /vagrant && sudo env --unset=SUDO_USER PATH=$PATH {tests}"
    return Steps(
        (
            ("a network and a pool", ["virsh", begin]),
            ("vagrant box add", [*vagrant, "box", "add", "--name", box, f"{folder}/vagrant.box"]),
            ("vagrant up", [*vagrant, "up"]),
        ),
        (
            ("kernel tests in Vagrant, as vagrant", ["vagrant", "ssh", "--no-tty", "-c", as_user]),
            ("kernel tests in Vagrant, as root", ["vagrant", "ssh", "--no-tty", "-c", as_root]),
        ),
        (
            ("vagrant destroy", [*vagrant, "destroy", "--force"]),
            ("vagrant box remove", [*vagrant, "box", "remove", "--force", box]),
            # The network has gone with the machine: Vagrant sees that nobody else uses it.
            ("no pool", ["virsh", "pool-destroy", _POOL]),
        ),
    )


def run(parts: Parts, arguments: Sequence[str]) -> None:
    """All of it, each step a part, on a machine that has none of it; nothing is left but packages and the cache."""
    if os.geteuid() != 0:
        raise SystemExit("test: --vagrant starts libvirtd: run it as root")
    folder = cache_dir() / "vagrant"
    try:
        host.ensure_packages(_PACKAGES)
        settings = replace(Settings.from_environment(), accelerator="stock")
        with host.locked(folder.with_suffix(".lock")), fresh_folder(folder):
            kind = choose(ensure_image(Recipe(settings.release), settings), settings).name
            box = ["scripts/build-box", "--output", str(folder / "vagrant.box")]
            if parts.command("the box", box, cwd=TREE).failed:
                return
            with _libvirt(folder) as process:
                by = _within(process, _environment(folder, "kvm" if kind == "kvm" else "qemu"))
                run_steps(parts, by, steps(settings.release, folder, arguments))
    except VmError as error:
        raise SystemExit(f"test: {error}") from None


def run_steps(parts: Parts, by: Sequence[str], steps: Steps) -> None:
    """Those in the machine where it has come up; the undoing in any case but an interruption."""
    if not any(parts.command(*step, cwd=TREE, by=by).failed for step in steps.up):
        for step in steps.tests:
            parts.command(*step, cwd=TREE, by=by)
    for step in steps.down:
        parts.command(*step, cwd=TREE, by=by)


@contextlib.contextmanager
def fresh_folder(folder: Path) -> Iterator[None]:
    """An empty folder, removed in the end; a run that was killed may have left it full."""
    _sweep(folder)
    (folder / "pool").mkdir(parents=True)
    (folder / "qemu.conf").write_text(_QEMU_CONF)
    (folder / "libvirtd.conf").write_text(_LIBVIRTD_CONF)
    (folder / "network.xml").write_text(_NETWORK)
    try:
        yield
    finally:
        _sweep(folder)


def _sweep(folder: Path) -> None:
    """Remove the folder, and those elsewhere that were made for a run."""
    note = folder / NOTE
    for path in note.read_text().split() if note.exists() else ():
        with contextlib.suppress(OSError):  # not made after all, or in use by now
            Path(path).rmdir()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _libvirt(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """libvirtd that answers, in namespaces of its own; the process that waits for their end."""
    make_mount_points(folder / NOTE)
    reading, writing = os.pipe()
    script = _PROCESS_1.format(state=" ".join(STATE), pipe=reading)
    line = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc"]
    line += ["sh", "-c", script, "sh", str(folder)]
    log = folder / "libvirtd.log"
    with (
        log.open("wb") as output,
        child(line, stdout=output, stderr=output, pass_fds=(reading,)) as process,
    ):
        os.close(reading)
        try:
            _await(process, log)
            yield process
        finally:
            os.close(writing)  # process 1 ends, and the kernel has all others end first
            process.wait()


def make_mount_points(note: Path) -> None:
    """Make the folders that something private is to hide, noting first which of them were not there."""
    missing = [path for path in STATE if not Path(path).exists()]
    note.write_text("\n".join(missing))
    for path in missing:
        Path(path).mkdir()


def _await(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    ask = [*_within(process, {}), "virsh", "--connect", "qemu:///system", "version"]
    while subprocess.run(ask, capture_output=True).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            raise VmError(f"libvirtd does not answer:\n{host.tail(log)}")
        time.sleep(0.2)


def _within(process: subprocess.Popen[bytes], environment: dict[str, str]) -> list[str]:
    """The words by which a command runs in the namespaces of a process's children."""
    spaces = f"/proc/{process.pid}/ns"
    words = ["nsenter", f"--mount={spaces}/mnt", f"--net={spaces}/net"]
    words += [f"--pid={spaces}/pid_for_children", "--", "env", f"--chdir={TREE}"]
    return [*words, *(f"{name}={value}" for name, value in environment.items())]


def _environment(folder: Path, driver: str) -> dict[str, str]:
    return {
        "LIBVIRT_DEFAULT_URI": "qemu:///system",
        "VAGRANT_HOME": f"{folder}/home",
        "VAGRANT_DOTFILE_PATH": f"{folder}/machine",
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
        "VAGRANT_CHECKPOINT_DISABLE": "1",  # it would ask its makers for a newer one
        "AGENTRES_VAGRANT_DRIVER": driver,
        "AGENTRES_VAGRANT_POOL": _POOL,
        "AGENTRES_VAGRANT_BOOT_SECONDS": str(_BOOT_SECONDS),
    }
