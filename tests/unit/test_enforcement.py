"""Disk rates of paths that are named: where the file system escapes them, that is told as asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentres.kernel.mounts import parse_mounts
from agentres.model.limits import Limits
from agentres.run.enforcement import _unlimited_names


@pytest.mark.parametrize(("fstype", "counted"), [("ext4", True), ("vfat", False)])
def test_a_named_path_on_a_file_system_that_is_not_charged(
    tmp_path: Path, fstype: str, counted: bool
) -> None:
    table = parse_mounts(
        f"25 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 25 8:17 / {tmp_path} rw - {fstype} /dev/sdb1 rw\n"
    )
    (tmp_path / "below").mkdir()
    found = _unlimited_names([str(tmp_path / "below")], table)
    assert [(one.line.text, one.why) for one in found] == (
        []
        if counted
        else [
            (
                str(tmp_path / "below"),
                f"on {tmp_path}: vfat does not charge buffered writes to the cgroup",
            )
        ]
    )


def test_only_rates_of_writes_are_concerned() -> None:
    limits = Limits(
        io_read={"/a": 5}, io_write={"": 5, "/b": 5, "/c": "max"}, io_write_iops={"/d": 5}
    )
    assert limits.named_write_devices == ["/b", "/d"]
