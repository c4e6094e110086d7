"""Where files are: the history of a user's agents, and the configuration files."""

from __future__ import annotations

import os

from agentres.model.errors import UsageError
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


DAEMON_SOCKET = "/run/agentres/agentres.sock"
"""The daemon's socket; $AGENTRES_SOCKET overrides it."""

AGENTS = "/etc/agentres/agents.d"
"""The directory of agents that run as systemd units: one NAME.toml each."""


def daemon_socket() -> str:
    """Return the path of the daemon's socket: ``$AGENTRES_SOCKET``, else :data:`DAEMON_SOCKET`."""
    return os.environ.get("AGENTRES_SOCKET", DAEMON_SOCKET)


def agent_file(name: str) -> str:
    """Return the path of the file that describes the agent."""
    return f"{AGENTS}/{name}.toml"


def is_agents(path: str) -> bool:
    """Return whether the path is such a file, judged by the name of its directory."""
    return os.path.basename(os.path.dirname(os.path.abspath(path))) == os.path.basename(AGENTS)


def state_directory(environ: Mapping[str, str] = os.environ, uid: int | None = None) -> str:
    """Return ``$AGENTRES_STATE_DIR``, else ``/var/lib/agentres`` for root, else ``agentres`` in the XDG state directory."""
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
    """Return the configuration files to read; later ones override earlier ones.

    ``missing`` includes files that do not exist.  ``$AGENTRES_CONFIG`` replaces all others, and is
    returned whether it exists or not.  ``uid`` is the caller's: its home is used where the environment
    names none (XDG Base Directory Specification).
    """
    if explicit := environ.get("AGENTRES_CONFIG"):
        return [explicit]
    home = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(home):
        # A uid that no passwd entry here describes, as in a container, has no home.
        home = f"{environ.get('HOME') or _home(uid) or '/'}/.config"
    named = [f"{base}/agentres/agentres.toml" for base in ("/etc", home)]
    return [path for path in named if missing or os.path.exists(path)]


def _home(uid: int) -> str | None:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return None
