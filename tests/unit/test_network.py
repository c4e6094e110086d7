"""The network's program as it is packed, the page that it shares with us, and what is said of it."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from agentres.kernel import bpf, fq, network
from agentres.kernel.fq import Interface
from agentres.model.errors import AgentresError, NotEnforceable
from agentres.model.limits import Host, LimitError, Limits, NetworkMax, Range, defaults, read_limits
from agentres.model.stats import Sample, Usage
from agentres.run import explain
from agentres.run.explain import Outcome

ROOT = Path(__file__).parents[2]
SOURCE = Path(network.OBJECT.replace(".bpf.o", ".bpf.c"))
HOST = Host(4, 8 << 30)


# The program.


def test_the_object_is_what_its_source_compiles_to(tmp_path: Path) -> None:
    if shutil.which("clang-14") is None:
        pytest.skip("no clang-14 here: scripts/bpf installs it")
    made = tmp_path / "made.o"
    subprocess.run([ROOT / "scripts/bpf", made], check=True, capture_output=True)
    assert made.read_bytes() == Path(network.OBJECT).read_bytes()


def test_the_object_has_both_programs_and_one_page_of_data() -> None:
    object_file = bpf.parse(Path(network.OBJECT).read_bytes())
    assert set(object_file.programs) == {"cgroup_skb/egress", "cgroup_skb/ingress"}
    assert len(object_file.data) == 256
    assert object_file.data == bytes(256)
    for name, code in object_file.programs.items():
        assert len(code) % 8 == 0
        assert object_file.places[name]


def test_linked_it_loads_addresses_in_the_map() -> None:
    object_file = bpf.parse(Path(network.OBJECT).read_bytes())
    code = bpf.link(object_file, "cgroup_skb/ingress", 77)
    for where in object_file.places["cgroup_skb/ingress"]:
        opcode, registers, _, fd, _, _, _, offset = struct.unpack_from("<BBhiBBhi", code, where)
        assert opcode == 0x18  # a load of 64 bits
        assert registers >> 4 == 2  # BPF_PSEUDO_MAP_VALUE
        assert fd == 77
        assert 0 <= offset < 256


@pytest.mark.parametrize("image", [b"", b"\x7fELF", b"x" * 500], ids=["empty", "short", "no-elf"])
def test_what_is_no_object_is_refused(image: bytes) -> None:
    with pytest.raises(ValueError, match="no object file"):
        bpf.parse(image)


def test_the_page_is_read_as_the_program_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    body = re.search(r"struct direction \{(.*?)\};", SOURCE.read_text(), re.S)
    assert body is not None
    code = re.sub(r"/\*.*?\*/", "", body[1], flags=re.S)
    names = [n.strip() for line in re.findall(r"__u64 ([^;]+);", code) for n in line.split(",")]
    assert names[:4] == ["rate", "burst", "next", "limit_loopback"]
    assert names[12:] == ["unused[4]"]  # 16 numbers: 128 bytes
    page = struct.pack("=32Q", *range(100, 103), 0, *range(104, 132))
    monkeypatch.setattr(bpf, "share_map", lambda fd, size: bytearray(page[:size]))
    found = network.Network(SimpleNamespace(), os.dup(0))  # type: ignore[arg-type]
    assert found.read() == NetworkMax(116, 100, "free")
    counted = {
        f"{way}_{name}": block + at
        for way, block in (("tx", 100), ("rx", 116))
        for at, name in enumerate(names[4:12], 4)
    }
    assert found.figures() == {**counted, "net_in_limit": 116, "net_out_limit": 100}


def test_every_figure_has_its_field_in_a_sample() -> None:
    assert set(network.FIELDS) <= set(Sample.__match_args__)


def test_without_the_right_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(bpf, "call", refuse)
    with pytest.raises(NotEnforceable, match="CAP_BPF and CAP_NET_ADMIN"):
        network.Programs()


def test_on_an_unknown_machine_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="pdp11"))
    with pytest.raises(NotEnforceable, match=r"no cgroup BPF: .*is not known here for pdp11"):
        network.Programs()


def test_what_the_verifier_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    def reject(function: str, number: int, command: int, attr: Any, size: int) -> int:
        level, _, log = struct.unpack_from("<IIQ", attr, 24)
        if level:
            ctypes.memmove(log, b"1: (b7) r0 = 0\ninvalid mem access 'scalar'\n\0", 45)
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(bpf, "call", reject)
    with pytest.raises(OSError, match=r"Invalid argument: .*invalid mem access"):
        bpf.load(bytes(16), bpf.EGRESS, "test")


# What is asked for.


def test_by_default_each_way_has_100_mb_a_second_and_loopback_is_free() -> None:
    assert defaults(HOST).network == NetworkMax(100_000_000, 100_000_000, "free")
    assert defaults(HOST).limits_network


def test_rates_are_read_like_those_of_disks() -> None:
    found = read_limits({"net_in": "1MB/s", "net_out": "1M:4M"}, HOST, Limits())
    assert (found.net_in, found.net_out) == (1_000_000, 4 << 20)
    assert found.ranges == {"net_out": Range(1 << 20, 4 << 20)}
    assert found.network == NetworkMax(1_000_000, 4 << 20)


def test_none_has_nothing_to_limit() -> None:
    found = read_limits({"net": "none", "net_in": "1M"}, HOST, defaults(HOST))
    assert found.network is None
    assert not found.limits_network


def test_without_limits_it_is_counted_all_the_same() -> None:
    found = read_limits({"net_in": "max", "net_out": "max"}, HOST, defaults(HOST))
    assert found.network == NetworkMax()
    assert not found.limits_network


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("net", "bridge", "expected host, none or isolated"),
        ("net_loopback", "", "expected free or limited"),
        ("net_in", "fast", "expected"),
        ("net_out", "2M:1M", "is above its most"),
    ],
)
def test_what_makes_no_sense_is_refused(key: str, text: str, words: str) -> None:
    with pytest.raises(LimitError, match=words):
        read_limits({key: text}, HOST, Limits())


# What is told.


def outcome(usage: Usage, limits: Limits | None = None) -> Outcome:
    return Outcome("a", ["x"], limits or defaults(HOST), 0, 1.0, usage=usage)


def row(made: Outcome) -> str:
    (line,) = [line for line in explain.summary(made) if line.startswith("  network")]
    return line.removeprefix("  network").strip()


def test_the_summary_tells_what_went_each_way_and_what_was_held_back() -> None:
    usage = Usage(rx_bytes=2 << 20, tx_bytes=3 << 20, rx_delayed_bytes=0, tx_delayed_bytes=1 << 20)
    assert row(outcome(usage)) == "received 2.0 MiB, sent 3.0 MiB (1.0 MiB held back)"


def test_where_nothing_counts_it_says_so() -> None:
    assert row(outcome(Usage())) == "not counted here"
    assert row(outcome(Usage(), Limits(net="none"))) == "none but loopback"


def test_dropped_packets_are_a_limit_that_was_hit() -> None:
    usage = Usage(rx_dropped_packets=0, tx_dropped_packets=7, tx_dropped_bytes=9800)
    (hit,) = explain.hits(outcome(usage, Limits(net_out=1_000_000)))
    assert (hit.limit, hit.events) == ("network", 7)
    assert hit.text == "network limit: 7 packets were dropped (9.6 KiB) at --net-out 1 MB/s"


# What holds packets back.


@pytest.mark.parametrize(
    ("kinds", "delays"),
    [
        (("fq",), True),
        (("mq", "fq"), True),
        (("mq", "fq", "fq_codel"), False),
        (("mq",), False),
        (("fq_codel",), False),
        (("noqueue",), False),
        ((), False),
    ],
)
def test_only_fq_on_every_queue_holds_packets_back(kinds: tuple[str, ...], delays: bool) -> None:
    assert Interface("eth0", 2, kinds, False, True).delays is delays


def test_an_interface_that_was_configured_or_is_not_there_is_not_touched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = [
        Interface("eth0", 2, ("htb",), True, True),
        Interface("eth1", 3, ("fq",), False, True),
        Interface("veth", 4, ("noqueue",), False, False),
    ]
    netlink = MagicMock()
    monkeypatch.setattr("pyroute2.IPRoute", netlink)
    monkeypatch.setattr(fq, "interfaces", lambda: there)
    monkeypatch.setattr(fq, "STATE", str(tmp_path / "state/pacing.json"))
    with pytest.raises(AgentresError, match="eth0 has htb because somebody said so"):
        fq.install([])
    with pytest.raises(AgentresError, match="no interface eth9 is up here"):
        fq.install(["eth1", "eth9"])
    assert fq.install(["eth1"]) == ["eth1 has fq already"]
    netlink.assert_not_called()
    assert fq.install(["veth"]) == ["veth: fq in the place of noqueue"]
    change = netlink.return_value.__enter__.return_value.tc
    assert [call.kwargs["index"] for call in change.call_args_list] == [4]
    assert (tmp_path / "state/pacing.json").exists()


def test_without_hardware_a_name_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fq, "interfaces", list)
    with pytest.raises(AgentresError, match="no interface has hardware behind it"):
        fq.install([])
