"""The host's figures, against psutil, /proc and a fake /sys."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from agentres.companion import hostsample
from agentres.companion.hostsample import host_sample
from agentres.kernel import devices
from agentres.kernel.mounts import parse_mounts
from agentres.model.stats import Sample

# A host samples itself between two looks of the oracle: what only counts lies in between.


def between(oracle: Callable[[], float], field: str) -> None:
    before = oracle()
    value = getattr(host_sample(), field)
    assert before <= value <= oracle()


def cpu_jiffies(*columns: int) -> int:
    with open("/proc/stat") as file:
        fields = file.readline().split()
    # The tick is 1/CLK_TCK s; psutil rounds nothing.
    return sum(int(fields[at]) for at in columns) * 1_000_000 // os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("field", "columns"),
    [("user_usec", (1, 2)), ("system_usec", (3, 6, 7)), ("usage_usec", (1, 2, 3, 6, 7))],
)
def test_cpu_time_is_that_of_proc_stat(field: str, columns: tuple[int, ...]) -> None:
    between(lambda: cpu_jiffies(*columns), field)


def test_usage_is_user_and_system() -> None:
    sample = host_sample()
    assert sample.user_usec is not None
    assert sample.system_usec is not None
    assert sample.usage_usec == sample.user_usec + sample.system_usec


def test_memory_is_that_of_meminfo() -> None:
    with open("/proc/meminfo") as file:
        table = dict(line.split(":") for line in file)
    sample = host_sample()
    total, available, swap, free = (
        int(table[key].split()[0]) * 1024
        for key in ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    )
    assert sample.memory_limit == total
    assert sample.working_set == sample.memory_current
    assert sample.working_set is not None
    assert abs(sample.working_set - (total - available)) < total * 0.1
    assert sample.swap_current is not None
    assert abs(sample.swap_current - (swap - free)) <= swap * 0.1


def test_limits_are_the_processors_and_the_memory_and_no_other() -> None:
    sample = host_sample()
    assert sample.cpu_limit == os.sysconf("SC_NPROCESSORS_ONLN")
    assert sample.pids_limit is None


def test_processes_and_open_files_are_counted() -> None:
    with open("/proc/sys/fs/file-nr") as file:
        files = int(file.read().split()[0])
    processes = sum(name.isdigit() for name in os.listdir("/proc"))
    sample = host_sample()
    assert sample.pids_current is not None
    assert abs(sample.pids_current - processes) < 50 + processes / 2
    assert sample.fds is not None
    assert abs(sample.fds - files) < 1000 + files / 2


def test_network_is_all_but_loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nic(received: int, sent: int) -> SimpleNamespace:
        packets = {
            "packets_recv": 3 * received,
            "packets_sent": 3 * sent,
            "dropin": 5,
            "dropout": 7,
        }
        return SimpleNamespace(bytes_recv=received, bytes_sent=sent, **packets)

    carried = tmp_path / "class/net/bond0"
    (carried / "lower_eth0").mkdir(parents=True)
    monkeypatch.setattr(devices, "SYS", str(tmp_path))
    found = {"lo": nic(1000, 1000), "eth0": nic(1, 2), "eth1": nic(10, 20), "bond0": nic(11, 22)}
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: found)
    sample = host_sample()
    assert (sample.rx_bytes, sample.tx_bytes) == (11, 22)
    assert (sample.rx_packets, sample.tx_packets) == (33, 66)
    assert (sample.rx_dropped_packets, sample.tx_dropped_packets) == (10, 14)
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: {"lo": nic(1, 1)})
    sample = host_sample()
    assert (sample.rx_bytes, sample.tx_bytes) == (None, None)


def test_load_is_that_of_loadavg() -> None:
    sample = host_sample()
    for value, oracle in zip(
        (sample.load1, sample.load5, sample.load15), os.getloadavg(), strict=True
    ):
        assert value is not None
        assert abs(value - oracle) < 1


def totals(text: str) -> dict[str, int]:
    return {line.split()[0]: int(line.partition("total=")[2]) for line in text.splitlines()}


@pytest.mark.parametrize("resource", ["cpu", "memory", "io"])
@pytest.mark.parametrize("kind", ["some", "full"])
def test_pressure_is_that_of_proc(resource: str, kind: str) -> None:
    path = Path(f"/proc/pressure/{resource}")
    field = f"{resource}_{kind}_usec"
    if not path.exists() or (resource, kind) == ("cpu", "full"):
        assert getattr(host_sample(), field) is None
    else:
        between(lambda: totals(path.read_text())[kind], field)


PRESSURE = (
    "some avg10=0.12 avg60=0.00 avg300=0.00 total=123456\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
)


# What is absent.


def refuse(*_: object, **__: object) -> Any:
    raise NotImplementedError("not on this platform")


def test_what_is_absent_is_none_and_never_zero(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("cpu_times", "virtual_memory", "swap_memory", "disk_io_counters", "pids"):
        monkeypatch.setattr(psutil, name, refuse)
    monkeypatch.setattr(psutil, "net_io_counters", refuse)
    monkeypatch.setattr(psutil, "getloadavg", refuse)
    monkeypatch.setattr(psutil, "cpu_count", lambda: None)
    monkeypatch.setattr(hostsample, "PROC", str(tmp_path))
    assert host_sample() == Sample()


def test_one_source_that_holds_garbage_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure/cpu").write_text("garbage\n")
    (tmp_path / "pressure/io").write_text(PRESSURE)
    (tmp_path / "sys/fs").mkdir(parents=True)
    (tmp_path / "sys/fs/file-nr").write_text("\n")
    monkeypatch.setattr(hostsample, "PROC", str(tmp_path))
    sample = host_sample()
    assert (sample.cpu_some_usec, sample.memory_some_usec, sample.fds) == (None, None, None)
    assert (sample.io_some_usec, sample.io_full_usec) == (123456, 7)
    assert sample.memory_limit


# Disks: vda1 is mounted, dm-0 lives on vda2, a loop device on some file, md0 on vdb and vdc.


def device(system: Path, name: str, number: str, within: Path | None = None) -> Path:
    path = (within or system / "devices") / name
    (path / "holders").mkdir(parents=True)
    (path / "dev").write_text(f"{number}\n")
    (path / "size").write_text("2048\n")
    (system / "dev/block").mkdir(parents=True, exist_ok=True)
    (system / f"dev/block/{number}").symlink_to(path)
    if within:
        (path / "partition").write_text("1\n")
    else:
        (path / "slaves").mkdir()
        (system / "block").mkdir(exist_ok=True)
        (system / f"block/{name}").symlink_to(path)
    return path


def stack(upper: Path, lower: Path) -> None:
    (upper / "slaves" / lower.name).symlink_to(lower)
    (lower / "holders" / upper.name).symlink_to(upper)


def counters(n: int) -> SimpleNamespace:
    return SimpleNamespace(read_bytes=n, write_bytes=2 * n, read_count=3 * n, write_count=4 * n)


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    vda = device(tmp_path, "vda", "254:0")
    device(tmp_path, "vda1", "254:1", vda)
    vda2 = device(tmp_path, "vda2", "254:2", vda)
    vdb, vdc = device(tmp_path, "vdb", "254:16"), device(tmp_path, "vdc", "254:32")
    md0 = device(tmp_path, "md0", "9:0")
    stack(device(tmp_path, "dm-0", "253:0"), vda2)
    stack(md0, vdb)
    stack(md0, vdc)
    stack(device(tmp_path, "dm-1", "253:1"), md0)
    stack(device(tmp_path, "dm-2", "253:2"), tmp_path / "devices/dm-0")
    (device(tmp_path, "loop0", "7:0") / "loop").mkdir()
    device(tmp_path, "cciss!c0d0", "104:0")
    device(tmp_path, "silent", "8:0")
    table = parse_mounts("25 1 254:1 / / rw - ext4 /dev/vda1 rw\n")
    monkeypatch.setattr(hostsample, "mounts", lambda: table)
    monkeypatch.setattr(devices, "SYS", str(tmp_path))
    known = (
        "vda",
        "vda1",
        "vda2",
        "vdb",
        "vdc",
        "md0",
        "dm-0",
        "dm-1",
        "dm-2",
        "loop0",
        "cciss/c0d0",
    )
    found = {name: counters(10**at) for at, name in enumerate(known)}
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **_: found)
    return tmp_path


def test_each_disk_that_file_systems_submit_to_is_told(disks: Path) -> None:
    rows = {device: figures for device, *figures in host_sample().disks or ()}
    assert rows.keys() == {"254:0", "253:1", "253:2", "7:0", "104:0"}
    assert rows["254:0"] == [1, 2, 3, 4]
    assert rows["104:0"] == [10**10, 2 * 10**10, 3 * 10**10, 4 * 10**10]


def test_the_sum_counts_nothing_twice(disks: Path) -> None:
    sample = host_sample()
    # vda (dm-0 and dm-2 are on it), dm-1 for all of its RAID, cciss; the loop's file is on a disk.
    once = 1 + 10**7 + 10**10
    assert (sample.rbytes, sample.wbytes, sample.rios, sample.wios) == (
        once,
        2 * once,
        3 * once,
        4 * once,
    )


def test_without_disks_there_are_no_figures_of_them(
    disks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **_: None)
    sample = host_sample()
    assert (sample.disks, sample.rbytes, sample.wbytes, sample.rios, sample.wios) == (None,) * 5


def test_the_disks_of_this_host_are_those_of_psutil() -> None:
    counted = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
    disks = host_sample().disks
    if not disks:
        pytest.skip("no disk is counted here")
    for number, *_ in disks:
        assert os.path.basename(os.path.realpath(f"/sys/dev/block/{number}")) in counted
