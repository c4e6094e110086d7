"""Where we are in the cgroup tree, from the mounts and /proc/self/cgroup."""

from __future__ import annotations

import pytest

from agentres.kernel.delegation import UNIFIED, Hierarchy, parse_hierarchy
from agentres.kernel.mounts import parse_mounts
from agentres.model.errors import NoCgroup

ROOT = "25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 30 0:27 / /sys/fs/cgroup/memory rw,nosuid shared:5 - cgroup cgroup rw,memory\n"
HYBRID = "32 30 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:6 - cgroup2 cgroup2 rw\n"
BELOW = "33 23 0:26 /docker/abc /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"
NO_OPTIONAL = "34 23 0:26 / /sys/fs/cgroup rw - cgroup2 none rw\n"
MANY_OPTIONAL = (
    "35 23 0:26 / /sys/fs/cgroup rw shared:1 master:2 propagate_from:3 - cgroup2 none rw\n"
)
BLANK = r"37 23 0:26 /my\040pod /sys/fs/my\040cgroup rw - cgroup2 none rw" + "\n"
ELSEWHERE = "36 23 0:26 / /mnt/cg rw - cgroup2 none rw\n"

MOUNT = "/sys/fs/cgroup"


@pytest.mark.parametrize(
    ("mountinfo", "proc_cgroup", "found"),
    [
        pytest.param(ROOT + V2, "0::/user.slice/a.scope\n", (MOUNT, "/user.slice/a.scope", False), id="unified"),
        pytest.param(ROOT + V2, "0::/\n", (MOUNT, "/", False), id="container with a cgroup namespace"),
        pytest.param(
            ROOT + V1 + HYBRID,
            "5:memory:/user.slice\n1:name=systemd:/init.scope\n0::/user.slice/b.scope\n",
            (f"{MOUNT}/unified", "/user.slice/b.scope", True),
            id="hybrid",
        ),
        pytest.param(V2 + V1, "0::/a\n", (MOUNT, "/a", True), id="v1 after v2"),
        pytest.param(BELOW, "0::/docker/abc\n", (MOUNT, "/", False), id="mount root is ours"),
        pytest.param(BELOW, "0::/docker/abc/x/y\n", (MOUNT, "/x/y", False), id="below the mount root"),
        pytest.param(BELOW + ELSEWHERE, "0::/docker/abcd\n", ("/mnt/cg", "/docker/abcd", False), id="only the second mount has us"),
        pytest.param(V2 + ELSEWHERE, "0::/a\n", (MOUNT, "/a", False), id="the first of two mounts"),
        pytest.param(NO_OPTIONAL, "0::/a\n", (MOUNT, "/a", False), id="no optional fields"),
        pytest.param(MANY_OPTIONAL, "0::/a\n", (MOUNT, "/a", False), id="many optional fields"),
        pytest.param(V2, "0::/a/agentres.bystanders\n", (MOUNT, "/a", False), id="bystanders"),
        pytest.param(V2, "0::/agentres.bystanders\n", (MOUNT, "/", False), id="bystanders of the root"),
        pytest.param(BELOW, "0::/docker/abc/agentres.bystanders\n", (MOUNT, "/", False), id="bystanders of the mount root"),
        pytest.param(V2, "0::/a/not-agentres.bystanders\n", (MOUNT, "/a/not-agentres.bystanders", False), id="no bystanders"),
        pytest.param(V2, "0::/a:b/c::d\n", (MOUNT, "/a:b/c::d", False), id="colons in the path"),
        pytest.param(BLANK, "0::/my pod/x\n", ("/sys/fs/my cgroup", "/x", False), id="blanks in the mount"),
        pytest.param(V2, "0::/a\x85b\n", (MOUNT, "/a\x85b", False), id="other white space in the path"),
        pytest.param(V2, "", (MOUNT, "/", False), id="no v2 line"),
    ],
)  # fmt: skip  # a table
def test_our_cgroup_is_found_below_the_mount_that_shows_it(
    mountinfo: str, proc_cgroup: str, found: tuple[str, str, bool]
) -> None:
    assert parse_hierarchy(parse_mounts(mountinfo), proc_cgroup) == Hierarchy(*found)


def test_a_v1_host_is_told_to_boot_unified() -> None:
    with pytest.raises(NoCgroup, match="no cgroup v2 hierarchy is mounted") as caught:
        parse_hierarchy(parse_mounts(ROOT + V1), "5:memory:/user.slice\n")
    assert caught.value.remedy == UNIFIED


@pytest.mark.parametrize("mountinfo", ["", ROOT])
def test_a_host_without_any_cgroup_is_told_to_mount_it(mountinfo: str) -> None:
    with pytest.raises(NoCgroup) as caught:
        parse_hierarchy(parse_mounts(mountinfo), "0::/\n")
    assert caught.value.remedy == "mount cgroup2"


@pytest.mark.parametrize("own", ["/", "/docker", "/docker/abcd", "/other", "/../x"])
def test_a_cgroup_outside_of_the_mount_is_told_with_both(own: str) -> None:
    with pytest.raises(
        NoCgroup, match="is outside of the cgroup2 mount at /sys/fs/cgroup"
    ) as caught:
        parse_hierarchy(parse_mounts(BELOW), f"0::{own}\n")
    assert f"our own cgroup {own} " in str(caught.value)


@pytest.mark.parametrize(
    ("mount", "own", "path"),
    [
        ("/sys/fs/cgroup", "/a/b", "/sys/fs/cgroup/a/b"),
        ("/sys/fs/cgroup", "/", "/sys/fs/cgroup"),
    ],
)
def test_the_own_path_has_no_slash_at_its_end(mount: str, own: str, path: str) -> None:
    assert Hierarchy(mount, own, v1=False).own_path == path
