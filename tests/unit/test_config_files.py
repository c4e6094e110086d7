"""Configuration files: which are read, which are refused, and one over another."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from configured import CRITICAL, WARNING, Write, handler, rules_of

from agentres.config import ConfigError, files, load
from agentres.model.paths import configuration
from agentres.policy.alerts import Rule
from agentres.policy.scaling import AGGRESSIVE, BALANCED
from agentres.policy.settings import Handler, Settings

# Files.


@pytest.mark.parametrize("make", ["missing", "directory", "fifo", "large"])
def test_what_is_no_file_is_refused(tmp_path: Path, make: str) -> None:
    path = tmp_path / "f"
    if make == "directory":
        path.mkdir()
    elif make == "fifo":
        os.mkfifo(path)
    elif make == "large":
        path.write_text("#" * (files.LARGEST + 1))
    words = {
        "missing": "cannot be read: no such file or directory",
        "directory": "cannot be read: is a directory",
        "fifo": "expected a regular file",
        "large": "expected at most 1 MiB",
    }
    with pytest.raises(ConfigError) as refused:
        load([str(path)])
    assert str(refused.value) == f"{path}: {words[make]}"


def a_status(mode: int, uid: int, gid: int) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("euid", "mode", "owner", "group", "what", "remedy"),
    [
        (0, 0o644, 0, 0, "", ""),
        (0, 0o600, 1000, 1000, "", ""),
        (0, 0o644, 0, 7, "", ""),
        (0, 0o664, 0, 0, "", ""),
        (0, 0o664, 0, 7, "its group, gid 7, may write it", "chmod g-w it"),
        (0, 0o664, 1000, 1000, "its group, gid 1000, may write it", "chmod g-w it"),
        (0, 0o644, 7, 0, "it belongs to uid 7", "chown it to root"),
        (0, 0o646, 0, 0, "anybody may write it", "chmod o-w it"),
        (1000, 0o666, 7, 7, "", ""),
    ],
)
def test_root_trusts_no_file_that_others_write(
    euid: int, mode: int, owner: int, group: int, what: str, remedy: str
) -> None:
    status = a_status(stat.S_IFREG | mode, owner, group)
    why = f"{what}, and its handlers would run as root; {remedy}" if what else ""
    assert files.untrusted(status, euid, 1000) == why


def test_a_file_that_anybody_may_write_is_refused_as_root(
    write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config("")
    os.chmod(path, 0o666)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ConfigError, match="anybody may write it"):
        load([path])


ETC = "/etc/agentres/agentres.toml"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"AGENTRES_CONFIG": "/x/y", "HOME": "/h"}, ["/x/y"]),
        ({"AGENTRES_CONFIG": "", "HOME": "/h"}, [ETC, "/h/.config/agentres/agentres.toml"]),
        ({"XDG_CONFIG_HOME": "/c", "HOME": "/h"}, [ETC, "/c/agentres/agentres.toml"]),
        ({"XDG_CONFIG_HOME": "c", "HOME": "/h"}, [ETC, "/h/.config/agentres/agentres.toml"]),
    ],
)
def test_which_files_are_read(environ: dict[str, str], expected: list[str]) -> None:
    assert configuration(environ, 0, missing=True) == expected


def test_without_a_home_in_the_environment_it_is_the_accounts() -> None:
    import pwd

    assert configuration({}, 0, missing=True)[1].startswith(pwd.getpwuid(0).pw_dir)
    assert configuration({}, 4_000_000_000, missing=True)[1] == "//.config/agentres/agentres.toml"


def test_a_default_file_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    mine = tmp_path / "agentres" / "agentres.toml"
    assert str(mine) not in configuration(environ, 0)
    mine.parent.mkdir()
    mine.touch()
    assert configuration(environ, 0)[-1] == str(mine)


# One file over another.


def test_a_philosophy_that_is_based_on_another_one_starts_anew(write_config: Write) -> None:
    one = write_config('[philosophies.x]\nbased_on = "aggressive"\nstep = 2', "one")
    same = load([one, write_config("philosophies.x.patience = 3", "two")]).philosophies["x"]
    assert same == AGGRESSIVE.but(name="x", step=2.0, patience=3.0)
    anew = load([one, write_config('philosophies.x.based_on = "balanced"', "two")]).philosophies[
        "x"
    ]
    assert anew == BALANCED.but(name="x")


def test_the_later_file_wins_key_by_key(write_config: Write) -> None:
    one = 'sampling.interval = "10s"\nalerts.cpu.warning = "50%"\nalerts.cpu.critical = "60%"'
    two = 'alerts.cpu.warning = "55%"\nhistory.enabled = false'
    settings = load([write_config(one, "one"), write_config(two, "two")])
    assert (settings.interval, settings.history) == (10, False)
    assert rules_of(settings, "cpu")[0].levels == ((WARNING, 0.55), (CRITICAL, 0.6))


def test_what_one_file_removes_the_next_can_bring_back(write_config: Write) -> None:
    one = write_config("alerts.cpu.enabled = false", "one")
    assert load([one, write_config("alerts.cpu.enabled = true", "two")]) == Settings()


def test_another_type_or_resource_starts_anew(write_config: Write) -> None:
    one = '[handlers.x]\ntype = "webhook"\nurl = "http://[::1]"\n[alerts.memory]\nwarning = "1%"'
    two = '[handlers.x]\ntype = "journal"\n[alerts.memory]\nresource = "swap"\nwarning = 5'
    settings = load([write_config(one, "one"), write_config(two, "two")])
    assert handler(settings, "x") == Handler("x", "journal")
    assert rules_of(settings, "memory") == [Rule("memory", "swap", "agent", ((WARNING, 5),))]


@pytest.mark.parametrize(
    ("one", "two", "line"),
    [
        (
            'alerts.cpu.critical = "60%"\nalerts.cpu.warning = "50%"',
            'alerts.cpu.warning = "70%"',
            'two: alerts.cpu.warning = "70%": expected less than critical = "60%"',
        ),
        (
            'alerts.cpu.warning = "70%"',
            'alerts.cpu.critical = "60%"',
            'two: alerts.cpu.critical = "60%": expected more than warning = "70%"',
        ),
        (
            'sampling = { interval = "1m", fastest = "30s" }',
            'sampling.interval = "5s"',
            'two: sampling.interval = "5s": expected at least fastest = "30s"',
        ),
        (
            'philosophies.x = { up = "60%", aim = "50%" }',
            'philosophies.x.aim = "65%"',
            'two: philosophies.x.aim = "65%": expected less than up = "60%"',
        ),
        (
            "philosophies.x.step = 2.9",
            'philosophies.x.down = "30%"',
            'two: philosophies.x.down = "30%": expected less than up divided by step = 2.9, which is 0.259',
        ),
        ("alerts.cpu.warning = 0", "", None),
    ],
)
def test_the_blame_is_on_the_file_that_came_last(
    write_config: Write, tmp_path: Path, one: str, two: str, line: str | None
) -> None:
    paths = [write_config(one, "one"), write_config(two, "two")]
    with pytest.raises(ConfigError) as refused:
        load(paths)
    said = str(refused.value).removeprefix(f"{tmp_path}/")
    assert said == line if line else said.startswith("one: alerts.cpu.warning = 0: ")


def test_keys_know_the_file_that_they_are_from(write_config: Write) -> None:
    first = write_config('limits.memory = "1G"\nlimits.cpu = 2', name="first.toml")
    second = write_config(
        'limits.memory = "2G"\nalerts.mine.resource = "memory"\nalerts.mine.warning = 1',
        name="second.toml",
    )
    origins = load([first, second], origins=True).origins
    assert (origins["limits.memory"], origins["limits.cpu"]) == (second, first)
    assert origins["alerts.mine.warning"] == second
    assert "sampling.interval" not in origins
