"""fq by somebody's word, and what was there back by another: on interfaces of a namespace, and on the VM's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import AGENTRES, DEADLINE, ROOT

pytestmark = pytest.mark.skipif(not ROOT, reason="only root gives interfaces a discipline")

_IN_THE_VM = "agentres.vm" in Path("/proc/cmdline").read_text().split()
_QUEUES = 4

_TAP = f"""
import fcntl, struct, sys
IFF_TAP, IFF_NO_PI, IFF_MULTI_QUEUE, TUNSETIFF = 0x2, 0x1000, 0x100, 0x400454CA
queues = [open("/dev/net/tun", "r+b", buffering=0) for _ in range({_QUEUES})]
for queue in queues:
    fcntl.ioctl(queue, TUNSETIFF, struct.pack("16sH22x", b"card", IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE))
print("ready", flush=True)
sys.stdin.read()
"""


class Namespace:
    """A network namespace, and what is done in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._at = ["ip", "netns", "exec", name] if name else []

    def call(self, *line: str) -> str:
        return subprocess.run([*self._at, *line], capture_output=True, text=True, check=True).stdout

    def doctor(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._at, *AGENTRES, "doctor", *options], capture_output=True, text=True
        )

    def disciplines(self, device: str) -> list[tuple[str, str]]:
        """Of each, where it hangs and what it is."""
        listed = json.loads(self.call("tc", "-j", "qdisc", "show", "dev", device))
        return sorted((each.get("parent", "root").split(":")[-1], each["kind"]) for each in listed)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace("pacing")
    subprocess.run(["ip", "netns", "add", made.name], check=True)
    yield made
    subprocess.run(["ip", "netns", "del", made.name], check=True)


@pytest.fixture
def card(namespace: Namespace) -> Iterator[str]:
    """An interface with queues of its own, as a server's card has them; up."""
    with subprocess.Popen(
        ["ip", "netns", "exec", namespace.name, sys.executable, "-c", _TAP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        namespace.call("ip", "link", "set", "card", "up")
        yield "card"
        holder.stdin.close()
        assert holder.wait(DEADLINE) == 0


def test_each_queue_of_a_card_gets_its_own_and_the_kernels_choice_comes_back(
    namespace: Namespace, card: str
) -> None:
    before = namespace.disciplines(card)
    own = before[0][1]
    assert before == [*((str(n), own) for n in range(1, _QUEUES + 1)), ("root", "mq")]
    done = namespace.doctor("--fix-net", "--interface", card)
    assert (done.returncode, done.stdout) == (0, f"card: fq in the place of mq, {own}\n")
    paced = [*((str(n), "fq") for n in range(1, _QUEUES + 1)), ("root", "mq")]
    assert namespace.disciplines(card) == paced
    assert namespace.doctor("--fix-net", "--interface", card).stdout == "card has fq already\n"
    done = namespace.doctor("--unfix-net")
    assert (done.returncode, done.stdout) == (0, f"card: mq, {own}\n")
    assert namespace.disciplines(card) == before
    assert namespace.doctor("--unfix-net").stdout == "no interface has fq from us\n"


def test_an_interface_without_queues_and_one_that_somebody_configured(namespace: Namespace) -> None:
    namespace.call("ip", "link", "add", "ours", "type", "veth", "peer", "name", "theirs")
    for device in ("ours", "theirs"):
        namespace.call("ip", "link", "set", device, "up")
    namespace.call("tc", "qdisc", "replace", "dev", "theirs", "root", "pfifo", "limit", "7")
    refused = namespace.doctor("--fix-net", "--interface", "ours", "--interface", "theirs")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "theirs has pfifo because somebody said so: not touched" in refused.stderr
    assert namespace.disciplines("ours") == [("root", "noqueue")]
    assert namespace.doctor("--fix-net", "--interface", "ours").returncode == 0
    assert namespace.disciplines("ours") == [("root", "fq")]
    assert namespace.doctor("--unfix-net").stdout == "ours: noqueue\n"
    assert namespace.disciplines("ours") == [("root", "noqueue")]
    assert namespace.disciplines("theirs") == [("root", "pfifo")]


def pacing_of(devices: list[str], host: Namespace) -> set[str]:
    """What doctor finds of how they hold packets back."""
    findings = json.loads(host.doctor("--json").stdout)["findings"]
    return {
        each["status"] for each in findings if each["check"] in {f"pacing {d}" for d in devices}
    }


@pytest.mark.skipif(not _IN_THE_VM, reason="changes the interfaces of the machine: in the VM only")
def test_without_a_name_it_is_the_hosts_own_hardware() -> None:
    host = Namespace("")
    devices = [path.parent.name for path in Path("/sys/class/net").glob("*/device")]
    before = {device: host.disciplines(device) for device in devices}
    assert before
    assert "missing" in pacing_of(devices, host)
    try:
        assert host.doctor("--fix-net").returncode == 0
        assert {host.disciplines(device)[-1] for device in devices} == {("root", "fq")}
        assert pacing_of(devices, host) == {"ok"}
    finally:
        undone = host.doctor("--unfix-net")
    assert undone.returncode == 0
    assert {device: host.disciplines(device) for device in devices} == before
