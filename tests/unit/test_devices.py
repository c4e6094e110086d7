"""The block devices whose limit counts, from mountinfo text and a fake /sys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentres.kernel import devices
from agentres.kernel.devices import behind, every_disk, unlimited_mounts, whole
from agentres.kernel.mounts import Mount, parse_mounts
from agentres.model.errors import UsageError

ROOT = "25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro"
TMP = "40 25 0:35 / /tmp rw,nosuid shared:20 - tmpfs tmpfs rw,size=1024k"


def table(*lines: str) -> list[Mount]:
    return parse_mounts("".join(f"{line}\n" for line in lines))


# Where buffered writes are not charged.


@pytest.mark.parametrize(
    "fstype", ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "ramfs", "squashfs"]
)
def test_nothing_escapes_the_limit_with_cgroup_writeback_or_without_a_disk(fstype: str) -> None:
    assert unlimited_mounts(["/"], table(f"25 1 8:1 / / rw - {fstype} src rw")) == []


@pytest.mark.parametrize(
    ("device", "fstype", "why"),
    [
        ("0:40", "zfs", "zfs does not write through a block device of this host"),
        ("0:41", "nfs4", "nfs4 does not write through a block device of this host"),
        ("0:42", "virtiofs", "virtiofs does not write through a block device of this host"),
        ("8:2", "vfat", "vfat does not charge buffered writes to the cgroup"),
        ("8:3", "ntfs3", "ntfs3 does not charge buffered writes to the cgroup"),
    ],
)
def test_a_mount_that_is_not_charged_is_told_with_the_reason(
    device: str, fstype: str, why: str
) -> None:
    (found,) = unlimited_mounts(["/"], table(f"25 1 {device} / / rw - {fstype} src rw"))
    assert (found.mount.point, found.why) == ("/", why)


OUT_OF_SIGHT = "its upper directory is out of sight, so its disk is unknown"


@pytest.mark.parametrize(
    ("fstype", "why"),
    [
        ("ext4", None),
        ("tmpfs", None),
        ("vfat", "vfat does not charge buffered writes to the cgroup"),
    ],
)
def test_an_overlay_is_judged_by_where_its_upper_directory_is(
    tmp_path: Path, fstype: str, why: str | None
) -> None:
    found = unlimited_mounts(
        ["/merged"],
        table(
            ROOT,
            f"60 25 8:9 / {tmp_path} rw - {fstype} /dev/sdb rw",
            f"61 25 0:60 / /merged rw - overlay overlay rw,upperdir={tmp_path}",
        ),
    )
    assert [(item.mount.point, item.why) for item in found] == (
        [(str(tmp_path), why)] if why else []
    )


def test_an_overlay_on_an_overlay_is_followed_down(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    mounts = table(
        ROOT,
        f"60 25 0:60 / {tmp_path} rw - overlay overlay rw,upperdir=/nowhere/upper",
        f"61 25 0:61 / /merged rw - overlay overlay rw,upperdir={tmp_path}/inner",
    )
    (found,) = unlimited_mounts(["/merged"], mounts)
    assert (found.mount.point, found.why) == (str(tmp_path), OUT_OF_SIGHT)


@pytest.mark.parametrize("options", ["rw,upperdir=/nowhere/upper", "ro,lowerdir=/a:/b"])
def test_an_overlay_without_a_visible_upper_directory_is_unknown(options: str) -> None:
    (found,) = unlimited_mounts(["/"], table(f"25 1 0:60 / / rw - overlay overlay {options}"))
    assert found.why == OUT_OF_SIGHT


def test_overlays_that_seem_to_be_on_each_other_are_unknown(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    mounts = table(
        ROOT,
        f"60 25 0:60 / {tmp_path}/a rw - overlay overlay rw,upperdir={tmp_path}/b",
        f"61 25 0:61 / {tmp_path}/b rw - overlay overlay rw,upperdir={tmp_path}/a",
    )
    (found,) = unlimited_mounts([f"{tmp_path}/a"], mounts)
    assert found.why == OUT_OF_SIGHT


def test_a_path_under_no_mount_is_told_as_unknown() -> None:
    (found,) = unlimited_mounts(["/"], [])
    assert (found.mount.point, found.mount.fstype) == ("/", "unknown")


def test_a_mount_is_told_once_for_all_paths_on_it() -> None:
    mounts = table("25 1 0:40 / / rw - zfs pool/root rw", TMP)
    assert [
        item.mount.point for item in unlimited_mounts(["/", "/tmp", "/nowhere", "/usr"], mounts)
    ] == ["/"]


# A fake /sys.


@pytest.fixture
def sys_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "sys"
    (root / "block").mkdir(parents=True)
    (root / "dev/block").mkdir(parents=True)
    monkeypatch.setattr(devices, "SYS", str(root))
    return root


def add_disk(root: Path, name: str, number: str, **attributes: str) -> Path:
    """A whole device under /sys/devices, with the links that the kernel makes to it."""
    disk = root / "devices" / name
    disk.mkdir(parents=True)
    for attribute, text in {"dev": number, "size": "2048", **attributes}.items():
        (disk / attribute).write_text(f"{text}\n")
    (root / "block" / name).symlink_to(disk)
    if number:
        (root / "dev/block" / number).symlink_to(disk)
    return disk


def add_partition(root: Path, disk: Path, name: str, number: str) -> None:
    part = disk / name
    part.mkdir()
    (part / "dev").write_text(f"{number}\n")
    (part / "partition").write_text("1\n")
    (root / "dev/block" / number).symlink_to(part)


def test_every_disk_is_every_whole_device_that_holds_something(sys_tree: Path) -> None:
    disk = add_disk(sys_tree, "sda", "8:0", hidden="0")
    add_partition(sys_tree, disk, "sda1", "8:1")
    add_disk(sys_tree, "nvme0n1", "259:0")
    add_disk(sys_tree, "dm-0", "253:0")
    add_disk(sys_tree, "md0", "9:0")
    add_disk(sys_tree, "loop0", "7:0")
    assert every_disk([]) == ["253:0", "7:0", "9:0", "259:0", "8:0"]


@pytest.mark.parametrize(
    ("name", "number", "attributes"),
    [
        ("loop7", "7:7", {"size": "0"}),
        ("nvme0c0n1", "259:9", {"hidden": "1"}),
        ("nvme0c1n1", "", {"hidden": "1"}),
        ("ram0", "1:0", {}),
        ("zram0", "252:0", {}),
    ],
)
def test_a_device_without_a_disk_of_its_own_does_not_count(
    sys_tree: Path, name: str, number: str, attributes: dict[str, str]
) -> None:
    add_disk(sys_tree, name, number, **attributes)
    add_disk(sys_tree, "vda", "254:0")
    assert every_disk([]) == ["254:0"]


def hold(part: Path, name: str) -> None:
    (part / "holders" / name).mkdir(parents=True)


def test_a_disk_that_only_carries_others_leaves_the_limit_to_them(sys_tree: Path) -> None:
    hold(add_disk(sys_tree, "vdb", "254:16"), "md0")
    add_disk(sys_tree, "md0", "9:0")
    disk = add_disk(sys_tree, "vdc", "254:32")
    add_partition(sys_tree, disk, "vdc1", "254:33")
    hold(disk / "vdc1", "dm-0")
    add_disk(sys_tree, "dm-0", "253:0")
    assert every_disk([]) == ["253:0", "9:0"]


def test_a_disk_that_is_mounted_beside_what_it_carries_counts(sys_tree: Path) -> None:
    disk = add_disk(sys_tree, "vda", "254:0")
    for number in (1, 2):
        add_partition(sys_tree, disk, f"vda{number}", f"254:{number}")
    hold(disk / "vda2", "dm-0")
    add_disk(sys_tree, "dm-0", "253:0")
    boot = parse_mounts("30 25 254:1 / /boot rw - ext4 /dev/vda1 rw")
    assert every_disk(boot) == ["253:0", "254:0"]


def test_a_device_that_goes_while_it_is_read_does_not_count(sys_tree: Path) -> None:
    (sys_tree / "block/sdz").symlink_to(sys_tree / "devices/gone")
    assert every_disk([]) == []


def test_without_sys_block_there_is_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "SYS", str(tmp_path))
    assert every_disk([]) == []


@pytest.mark.parametrize(
    ("device", "number"), [((8, 0), "8:0"), ((8, 1), "8:0"), ((259, 17), "8:0"), ((99, 9), "99:9")]
)
def test_the_whole_of_a_partition_is_its_disk(
    sys_tree: Path, device: tuple[int, int], number: str
) -> None:
    disk = add_disk(sys_tree, "sda", "8:0")
    add_partition(sys_tree, disk, "sda1", "8:1")
    add_partition(sys_tree, disk, "sda17", "259:17")
    assert whole(os.makedev(*device)) == number


# What a user names.


def mounted(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(devices, "mounts", lambda: table(*lines))


def test_behind_a_path_is_the_disk_of_its_file_system(
    sys_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = add_disk(sys_tree, "sda", "8:0")
    add_partition(sys_tree, disk, "sda1", "8:1")
    mounted(monkeypatch, ROOT)
    assert behind(str(tmp_path)) == ["8:0"]


def test_behind_an_overlay_is_the_disk_of_its_upper_directory(
    sys_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_disk(sys_tree, "sdb", "8:16")
    for name in ("upper", "merged"):
        (tmp_path / name).mkdir()
    mounted(
        monkeypatch,
        ROOT,
        f"60 25 8:16 / {tmp_path}/upper rw - ext4 /dev/sdb rw",
        f"61 25 0:60 / {tmp_path}/merged rw - overlay overlay rw,upperdir={tmp_path}/upper",
    )
    assert behind(f"{tmp_path}/merged") == ["8:16"]


def test_behind_btrfs_are_the_disks_of_all_its_members(
    sys_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = add_disk(sys_tree, "sda", "8:0"), add_disk(sys_tree, "sdb", "8:16")
    add_disk(sys_tree, "sdc", "8:32")
    add_partition(sys_tree, one, "sda1", "8:1")
    add_partition(sys_tree, one, "sda2", "8:2")
    for uuid, members in {
        "aaa": {"sdc": sys_tree / "devices/sdc"},
        "bbb": {"sda1": one / "sda1", "sda2": one / "sda2", "sdb": two},
    }.items():
        (sys_tree / "fs/btrfs" / uuid / "devices").mkdir(parents=True)
        for name, target in members.items():
            (sys_tree / "fs/btrfs" / uuid / "devices" / name).symlink_to(target)
    mounted(monkeypatch, "25 1 0:30 /@ / rw - btrfs /dev/sda2 rw,subvol=/@")
    assert behind(str(tmp_path)) == ["8:0", "8:16"]


def test_a_btrfs_that_sys_does_not_show_is_told_with_a_remedy(
    sys_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sys_tree / "fs/btrfs/features").mkdir(parents=True)
    mounted(monkeypatch, "25 1 0:30 / / rw - btrfs /dev/sda2 rw")
    with pytest.raises(UsageError, match="cannot tell the disks of the btrfs at") as caught:
        behind(str(tmp_path))
    assert "/dev/NAME=RATE" in caught.value.remedy


@pytest.mark.parametrize("fstype", ["tmpfs", "nfs", "zfs", "overlay"])
def test_a_path_without_a_block_device_is_told_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fstype: str
) -> None:
    mounted(monkeypatch, f"25 1 0:30 / / rw - {fstype} src rw")
    with pytest.raises(
        UsageError, match=f"/ is {fstype}, with no block device behind it"
    ) as caught:
        behind(str(tmp_path))
    assert "/dev/NAME=RATE" in caught.value.remedy


def test_an_overlay_that_seems_to_be_on_itself_has_no_block_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch, f"25 1 0:60 / / rw - overlay overlay rw,upperdir={tmp_path}")
    with pytest.raises(UsageError, match="/ is overlay, with no block device behind it"):
        behind(str(tmp_path))


def test_a_path_under_no_mount_has_no_block_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch)
    with pytest.raises(UsageError, match="with no block device behind it"):
        behind(str(tmp_path))


def test_a_path_that_is_not_there_is_told() -> None:
    with pytest.raises(UsageError, match="device /nowhere: no such file or directory"):
        behind("/nowhere")


def test_a_character_device_is_no_disk() -> None:
    with pytest.raises(UsageError, match="device /dev/null: not a block device"):
        behind("/dev/null")
