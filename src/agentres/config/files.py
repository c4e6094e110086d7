"""TOML files: check that they can be trusted, read them, and lay one over another."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from typing import Any

from agentres.config.words import refused
from agentres.model.errors import reason

LARGEST = 1 << 20
"""The most bytes of a file; a larger one was not written by hand."""

KIND = {"alerts": "resource", "ceilings": "", "handlers": "type", "philosophies": "based_on"}
"""The sections of named tables, and the key that determines what the other keys of a table mean, if there is one."""


def read(path: str) -> dict[str, Any]:
    """Return the contents of the file, with keys and values unchecked; ConfigError."""
    try:
        # Do not block on a FIFO without a writer.
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3):
                return {}  # /dev/null: only the built-in settings
            if why := untrusted(status, os.geteuid(), os.getuid()):
                raise refused(path, why)
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise refused(path, f"cannot be read: {reason(error)}") from error
    if len(data) > LARGEST:
        raise refused(path, f"expected at most {LARGEST >> 20} MiB")
    try:
        text = data.decode()
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise refused(f"{path}:{line}:{column}", "expected UTF-8") from None
    except RecursionError:
        raise refused(path, "nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and an integer of thousands of digits
        position, what = _position(str(error), text)
        raise refused(f"{path}{position}", what) from None


def _position(message: str, text: str) -> tuple[str, str]:
    """Return ``:LINE:COLUMN`` and ``what`` from tomllib's ``What (at line LINE, column COLUMN)``."""
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message)
    if match is None:
        return "", message
    line = match[2] or text.count("\n") + 1
    column = match[3] or len(text) - text.rfind("\n")
    return f":{line}:{column}", f"{match[1][:1].lower()}{match[1][1:]}"


def untrusted(status: os.stat_result, euid: int, uid: int) -> str:
    """Say why a file must not be used; empty if it may be.  Its handlers run with this process's privileges."""
    if not stat.S_ISREG(status.st_mode):
        return "expected a regular file"
    if euid != 0:
        return ""
    if status.st_mode & stat.S_IWOTH:
        what, remedy = "anybody may write it", "chmod o-w it"
    elif status.st_mode & stat.S_IWGRP and status.st_gid != 0:
        what, remedy = f"its group, gid {status.st_gid}, may write it", "chmod g-w it"
    elif status.st_uid not in (0, uid):
        what, remedy = f"it belongs to uid {status.st_uid}", "chown it to root"
    else:
        return ""
    return f"{what}, and its handlers would run as root; {remedy}"


def lay(
    below: dict[str, Any],
    above: Mapping[str, Any],
    file: int,
    given: dict[tuple[str, ...], int],
    at: tuple[str, ...] = (),
) -> None:
    """Lay a file's keys over those below; ``given`` records the last file that gave each key."""
    for key, value in above.items():
        here = (*at, key)
        given[here] = file
        if not isinstance(value, dict) or len(here) > (2 if here[0] in KIND else 1):
            below[key] = value
            continue
        old = below.get(key)
        kind = KIND.get(here[0], "") if at else ""
        if not isinstance(old, dict) or (kind in value and value[kind] != old.get(kind)):
            old = below[key] = {}  # keys of another kind do not apply to this one
        lay(old, value, file, given, here)
