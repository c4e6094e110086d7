"""Where things are: the history of a user's agents, and the configuration files."""

from __future__ import annotations

import os

from agentres.model.errors import UsageError
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


DAEMON_SOCKET = "/run/agentres/agentres.sock"
"""Where the daemon is asked; $AGENTRES_SOCKET is another place."""


AGENTS = "/etc/agentres/agents.d"
"""What describes agents that are units: NAME.toml."""


def agent_file(name: str) -> str:
    """What describes the agent of this name."""
    return f"{AGENTS}/{name}.toml"


def is_agents(path: str) -> bool:
    """Whether it is such a file, by its place."""
    return os.path.basename(os.path.dirname(os.path.abspath(path))) == os.path.basename(AGENTS)


def state_directory(environ: Mapping[str, str] = os.environ, uid: int | None = None) -> str:
    """``$AGENTRES_STATE_DIR``; else ``/var/lib/agentres`` for root, else the XDG state directory's."""
    if chosen := environ.get("AGENTRES_STATE_DIR"):
        return os.path.abspath(chosen)
    uid = os.geteuid() if uid is None else uid
    if uid == 0:
        return "/var/lib/agentres"
    state = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # "must be absolute, or be ignored": the XDG specification
        home = environ.get("HOME") or _home(uid)
        if home is None:
            raise UsageError(f"uid {uid} has no home directory", "set AGENTRES_STATE_DIR")
        state = os.path.join(home, ".local/state")
    return os.path.join(state, "agentres")


def configuration(environ: Mapping[str, str], uid: int, missing: bool = False) -> list[str]:
    """The configuration files to read, the later over the earlier; ``missing`` ones where asked for.

    ``$AGENTRES_CONFIG`` stands alone, and is named whether it is there or not.  ``uid`` is the caller's,
    whose home it is where the environment tells none (XDG Base Directory Specification).
    """
    if explicit := environ.get("AGENTRES_CONFIG"):
        return [explicit]
    home = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(home):
        # An account that only a container's /etc/passwd would know has none.
        home = f"{environ.get('HOME') or _home(uid) or '/'}/.config"
    named = [f"{base}/agentres/agentres.toml" for base in ("/etc", home)]
    return [path for path in named if missing or os.path.exists(path)]


def _home(uid: int) -> str | None:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return None
