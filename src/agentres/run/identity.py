"""The user that an agent runs as, if it is not our own (``--user``); loaded only for such agents."""

from __future__ import annotations

import os
import pwd

from agentres.kernel.trampoline import Identity
from agentres.model.errors import UsageError
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from agentres.kernel.walls import OwnUser

OWN_USER = "auto"
"""The value of --user that asks for a user that no other agent has."""


def find(user: str) -> tuple[Identity, OwnUser | None]:
    """Return the user of this name or number, and for OWN_USER what reserves it for this agent.  UsageError."""
    if os.geteuid() != 0:
        raise UsageError("--user: only root may run an agent as another user")
    if user == OWN_USER:
        from agentres.kernel.walls import OwnUser

        own = OwnUser()
        return Identity(own.uid, own.uid, (), f"agentres-{own.uid}", "/"), own
    try:
        is_number = user.isascii() and user.isdecimal() and len(user) <= 20
        entry = pwd.getpwuid(int(user)) if is_number else pwd.getpwnam(user)
    except (KeyError, OverflowError):  # getpwuid(3) takes what fits a uid_t
        raise UsageError(f"--user {user}: there is no such user") from None
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Identity(entry.pw_uid, entry.pw_gid, groups, entry.pw_name, entry.pw_dir), None
