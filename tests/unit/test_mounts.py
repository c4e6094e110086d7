"""What is mounted where, from mountinfo text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import pytest

from agentres.kernel import mounts
from agentres.kernel.mounts import UNKNOWN, Mount, beneath, mount_of, parse_mounts

ROOT = "25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro"
TMP = "40 25 0:35 / /tmp rw,nosuid shared:20 - tmpfs tmpfs rw,size=1024k"


def table(*lines: str) -> list[Mount]:
    return parse_mounts("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("line", "mount"),
    [
        (ROOT, Mount("/", "/", "8:1", "ext4", "/dev/sda1", {"rw": "", "errors": "remount-ro"})),
        (
            "40 25 0:35 / /tmp rw - tmpfs tmpfs rw",
            Mount("/tmp", "/", "0:35", "tmpfs", "tmpfs", {"rw": ""}),
        ),
        (
            "41 25 0:36 / /x rw shared:1 master:2 unbindable - tmpfs none rw",
            Mount("/x", "/", "0:36", "tmpfs", "none", {"rw": ""}),
        ),
        (
            "42 25 8:1 /home/a /b rw - ext4 /dev/sda1 rw",
            Mount("/b", "/home/a", "8:1", "ext4", "/dev/sda1", {"rw": ""}),
        ),
        (
            r"42 25 8:2 /in\040it /my\040disk\011\012\134x rw - ext4 /dev/my\040disk rw",
            Mount("/my disk\t\n\\x", "/in it", "8:2", "ext4", "/dev/my disk", {"rw": ""}),
        ),
        (
            r"43 25 0:50 / / rw - overlay overlay rw,lowerdir=/a:/b,upperdir=/c\054d\040e,workdir=/w=1",
            Mount(
                "/", "/", "0:50", "overlay", "overlay",
                {"rw": "", "lowerdir": "/a:/b", "upperdir": "/c,d e", "workdir": "/w=1"},
            ),
        ),
        (
            r"44 25 8:3 / /\134040 rw - ext4 /dev/sda3 rw",
            Mount(r"/\040", "/", "8:3", "ext4", "/dev/sda3", {"rw": ""}),
        ),
        ("45 25 0:37 / /x rw - tmpfs  rw", Mount("/x", "/", "0:37", "tmpfs", "", {"rw": ""})),
    ],
)  # fmt: skip
def test_a_mountinfo_line_is_a_mount_with_its_escapes_undone(line: str, mount: Mount) -> None:
    assert table(line) == [mount]


@pytest.mark.parametrize("white", ["\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u00a0"], ids=ascii)
def test_only_blanks_and_newlines_separate(white: str) -> None:
    name = f"/a{white}b"
    found = table(f"25 1 8:1 {name} {name} rw - ext4 {name} rw,upperdir={name}", TMP)
    assert found[0] == Mount(name, name, "8:1", "ext4", name, {"rw": "", "upperdir": name})
    assert [mount.point for mount in found] == [name, "/tmp"]


def test_mounts_are_in_the_order_of_the_text() -> None:
    assert [mount.point for mount in table(ROOT, TMP)] == ["/", "/tmp"]


def test_no_text_is_no_mount() -> None:
    assert parse_mounts("") == []


def test_a_mount_point_may_hold_any_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "mountinfo"
    text.write_bytes(b"25 1 8:1 / /caf\xe9 rw - ext4 /dev/sda1 rw\n")

    def open_text(_: str, **how: str) -> IO[str]:
        return text.open(**how)

    monkeypatch.setattr(mounts, "open", open_text, raising=False)
    (mount,) = mounts.mounts()
    assert os.fsencode(mount.point) == b"/caf\xe9"


# The mount that a path is on.


@pytest.mark.parametrize(
    ("path", "device"),
    {
        "/": "8:1",
        "/home/x": "8:1",
        "/nowhere-a": "8:1",
        "/nowhere/a": "9:1",
        "/nowhere/a/": "9:1",
        "/nowhere/a/b": "9:1",
        "/nowhere/a/b/c": "9:3",
        "/nowhere/a/b/c/d": "9:3",
        "/nowhere/ab": "9:0",
    }.items(),
)
def test_a_path_is_on_the_longest_mount_point_over_it(path: str, device: str) -> None:
    found = table(
        ROOT,
        "50 25 9:0 / /nowhere rw - ext4 /dev/a rw",
        "51 50 9:1 / /nowhere/a rw - ext4 /dev/b rw",
        "53 51 9:3 / /nowhere/a/b/c rw - ext4 /dev/d rw",
    )
    assert mount_of(path, found).device == device


@pytest.mark.parametrize("path", ["/nowhere", "/nowhere/x"])
def test_of_two_mounts_on_one_point_the_later_counts(path: str) -> None:
    found = table(
        ROOT,
        "50 25 9:0 / /nowhere rw - ext4 /dev/a rw",
        "51 50 9:1 / /nowhere rw - ext4 /dev/b rw",
    )
    assert mount_of(path, found).device == "9:1"


def test_a_symbolic_link_is_on_the_mount_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/nowhere/x")
    found = table(ROOT, "50 25 9:0 / /nowhere rw - ext4 /dev/a rw")
    assert mount_of(str(tmp_path / "link"), found).device == "9:0"


@pytest.mark.parametrize("lines", [[], ["50 25 9:0 / /nowhere rw - ext4 /dev/a rw"]])
def test_a_path_under_no_mount_is_on_an_unknown_one(lines: list[str]) -> None:
    mount = mount_of("/elsewhere", table(*lines))
    assert mount is UNKNOWN
    assert (mount.point, mount.device) == ("/", "0:0")


# Where an overlay writes to.


def overlay(point: str, upper: str) -> str:
    return f"61 25 0:61 / {point} rw - overlay overlay rw,upperdir={upper}"


def test_beneath_any_other_mount_is_the_mount_itself(tmp_path: Path) -> None:
    found = table(f"25 1 8:1 / / rw - ext4 /dev/sda1 rw,upperdir={tmp_path}", TMP)
    assert beneath(found[0], found) is found[0]


def test_beneath_an_overlay_is_the_mount_of_its_upper_directory(tmp_path: Path) -> None:
    disk = f"60 25 8:9 / {tmp_path} rw - xfs /dev/sdb rw"
    found = table(ROOT, disk, overlay("/merged", str(tmp_path)))
    assert beneath(found[-1], found) is found[1]


def test_overlays_are_followed_down_to_the_last(tmp_path: Path) -> None:
    for name in ("a", "b", "disk"):
        (tmp_path / name).mkdir()
    found = table(
        ROOT,
        f"60 25 8:9 / {tmp_path}/disk rw - xfs /dev/sdb rw",
        overlay(f"{tmp_path}/b", f"{tmp_path}/disk"),
        overlay(f"{tmp_path}/a", f"{tmp_path}/b"),
        overlay("/merged", f"{tmp_path}/a"),
    )
    assert beneath(found[-1], found) is found[1]


@pytest.mark.parametrize("options", ["rw,upperdir=/nowhere/upper", "ro,lowerdir=/a:/b"])
def test_an_overlay_without_a_visible_upper_directory_stays_what_it_is(options: str) -> None:
    found = table(f"25 1 0:60 / / rw - overlay overlay {options}")
    assert beneath(found[0], found) is found[0]


def test_an_overlay_whose_upper_directory_seems_to_be_on_itself_stays_what_it_is(
    tmp_path: Path,
) -> None:
    found = table(overlay("/", str(tmp_path)))
    assert beneath(found[0], found) is found[0]


def test_overlays_that_seem_to_be_on_each_other_have_an_end(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    found = table(
        ROOT,
        overlay(f"{tmp_path}/a", f"{tmp_path}/b"),
        overlay(f"{tmp_path}/b", f"{tmp_path}/a"),
    )
    assert beneath(found[1], found).fstype == "overlay"


def test_file_systems_in_memory_are_asked_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    again = "41 25 0:35 / /var/tmp rw - tmpfs tmpfs rw"  # of the same file system
    gone = "42 25 0:36 / /gone/away rw - tmpfs tmpfs rw"
    monkeypatch.setattr(mounts, "mounts", lambda: table(ROOT, TMP, again, gone))
    found = os.statvfs("/tmp")
    assert set(mounts.in_memory()) == {"/tmp"}
    size = mounts.in_memory()["/tmp"]
    assert 0 <= size <= found.f_blocks * found.f_frsize


def test_what_is_in_memory_can_be_sent() -> None:
    used = {"/tmp": 5, "/a b\nc": 0, "/\udcff": 1 << 40}
    assert mounts.from_text(mounts.as_text(used, 1000)) == used
    assert mounts.from_text(mounts.as_text(used, 12)) == {"/tmp": 5}
    assert mounts.from_text(b"") == {}


def test_what_is_covered_or_behind_a_server_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    nfs = "50 25 0:50 / /var rw - nfs4 server:/x rw"
    behind = "51 50 0:51 / /var/tmp rw - tmpfs tmpfs rw"
    cover = "52 25 8:3 / /tmp rw - ext4 /dev/sda3 rw"
    monkeypatch.setattr(mounts, "mounts", lambda: table(ROOT, TMP, nfs, behind, cover))
    monkeypatch.setattr(os, "statvfs", lambda path: pytest.fail(f"{path} was asked"))
    assert mounts.in_memory() == {}


def test_what_cannot_be_known_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> list[Mount]:
        raise PermissionError

    monkeypatch.setattr(mounts, "mounts", refused)
    assert mounts.in_memory() == {}
