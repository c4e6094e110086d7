"""Machines of User Mode Linux: a kernel that is an ordinary process, for hosts where KVM boots nothing.

What runs in it runs at the processor's own speed; only its system calls are dear.  It lives in a network
namespace of its own, where a pair of veths is its cable: both end with its process.
"""

import contextlib
import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from . import host
from .config import Settings, VmError
from .image import Image
from .kernel import ensure_kernel, is_patched
from .machine import KERNEL_LINE, Place

_PACKAGES = {"ip": "iproute2", "ethtool": "ethtool", "nsenter": "util-linux"}
_MEMORY = Path("/dev/shm")
_GUEST = "10.0.2.15"

# What the offloads leave to the card that is not there would be lost: frames without their checksums.
_CABLE = """\
set -e
ip link add veth0 type veth peer name veth1
for end in veth0 veth1; do
  ethtool -K $end tx off rx off gso off tso off gro off sg off >/dev/null
  ip link set $end up
done
ip address add 10.0.2.2/24 dev veth1
exec "$@"
"""

# ssh gets the connected socket itself: nothing of ours stays between.
_CONNECT = (
    "import socket; there = socket.create_connection(('{guest}', 22), 2); "
    "socket.send_fds(socket.socket(fileno=1), [b'0'], [there.fileno()])"
)

# Each stretch of a guest's memory is a mapping of the host's process, and a process that may have no
# more of them spins for ever.
_MAPPINGS = Path("/proc/sys/vm/max_map_count")
_MAPPINGS_WANTED = 8388608
_NOTE = Path("/run/agentres-vm-max_map_count")  # the sysctl is the host's: so is what it was before

_UMID = "umid="


class Uml:
    """A machine of User Mode Linux."""

    name = "uml"
    boot_seconds = 120.0

    def __init__(self) -> None:
        self._kernel = Path()

    def prepare(self, settings: Settings) -> None:
        """Have the namespaces, the memory and the kernel."""
        host.ensure_packages(_PACKAGES)
        if subprocess.run([*_own_network(), "true"], capture_output=True).returncode:
            raise VmError(
                "User Mode Linux wants a network namespace, which this host does not give you; "
                "run as root, or allow user namespaces"
            )
        room = os.statvfs(_MEMORY)
        if room.f_bavail * room.f_frsize < settings.memory_mib << 20:
            raise VmError(
                f"the guest's memory is a file: {_MEMORY} has no {settings.memory_mib} MiB free"
            )
        self._kernel = ensure_kernel(settings)
        if not is_patched(self._kernel):
            host.say(
                "uml.patch does not fit this kernel's source: the machine is slower without it, and may hang"
            )

    def start(self, place: Place, image: Image, settings: Settings) -> int:
        """Start the kernel; it makes its overlays by itself."""
        command = [*_own_network(), "sh", "-c", _CABLE, "sh", str(self._kernel)]
        command += [f"mem={settings.memory_mib}M", f"ncpus={settings.cpus}", "seccomp=on"]
        command += ["root=/dev/ubda", *KERNEL_LINE.split(), *shlex.split(settings.append)]
        for number, disk in enumerate(("root", "data")):
            overlay, backing = place.folder / f"{disk}.cow", image.path(f"{disk}.img")
            # c: without locks on these files; with them no machine of QEMU's starts that has the image as well.
            command.append(f"ubd{number}c={overlay},{backing}")
        command += ["vec0:transport=raw,ifname=veth0,depth=64", "con=null", "con0=null,fd:1"]
        # The last word: by its end the process is recognised.
        command += [f"uml_dir={place.sockets}", f"{_UMID}{place.name}"]
        with _mappings_locked():
            _raise_mappings()
            return place.start(command, host.ENVIRONMENT | {"TMPDIR": str(_MEMORY)})

    def reach(self, pid: int) -> str:
        """By a socket that is made in the machine's namespace."""
        enter = ["nsenter", f"--target={pid}", "--net"]
        if os.geteuid() != 0:
            enter += ["--user", "--preserve-credentials"]
        python = [sys.executable, "-I", "-S", "-c", _CONNECT.format(guest=_GUEST)]
        command = shlex.join([*enter, *python]).replace("%", "%%")
        return f"    HostName {_GUEST}\n    ProxyCommand {command}\n    ProxyUseFdpass yes\n"


def _own_network() -> list[str]:
    prefix = ["unshare", "--net"]
    if os.geteuid() != 0:
        prefix += ["--user", "--map-root-user"]
    return [*prefix, "--"]


def lower_mappings() -> None:
    """Put vm.max_map_count back when no machine is left that it was raised for."""
    if os.geteuid() != 0 or not _NOTE.exists():
        return
    with _mappings_locked():
        if (before := _NOTE.read_text()) and not _any_runs():
            _MAPPINGS.write_text(before)
            _NOTE.write_text("")  # it stays: others may wait for its lock


def _raise_mappings() -> None:
    before = _MAPPINGS.read_text()
    if int(before) >= _MAPPINGS_WANTED:
        return
    try:
        if os.geteuid() == 0:
            if not _NOTE.read_text():
                _NOTE.write_text(before)  # first: whoever ends us in between must not make it stay
            _MAPPINGS.write_text(str(_MAPPINGS_WANTED))
            return
    except OSError:  # root, but not of this host
        pass
    host.say(
        f"vm.max_map_count is {before.strip()}: a process of the guest that touches more than 250 MB may hang "
        f"(as root: sysctl vm.max_map_count={_MAPPINGS_WANTED})"
    )


@contextlib.contextmanager
def _mappings_locked() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    with _NOTE.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _any_runs() -> bool:
    """Whether a machine of anybody's does, on this host."""
    mark = f"\0{_UMID}agentres-vm-".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes():
                return True
    return False
