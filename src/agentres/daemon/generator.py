"""A systemd generator: writes how the agents of ``/etc/agentres/agents.d`` restart, as drop-ins of their units.

``python -P -m agentres.daemon.generator DIR …`` (systemd.generator(7)); runs at boot and at every daemon-reload.  For an
invalid file it prints one line and leaves the unit as it is: the unit will not start.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterator

from agentres.model.errors import reason
from agentres.model.paths import AGENTS
from agentres.policy.restarts import drop_in


def described(directory: str) -> Iterator[tuple[str, str]]:
    """Yield the names and files of the agents in the directory."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return
    for name in names:
        if name.endswith(".toml") and not name.startswith("."):
            yield name.removesuffix(".toml"), f"{directory}/{name}"


def generate(agents: str, target: str) -> list[str]:
    """Write the drop-ins into ``target``.  Return a line for each invalid file."""
    wrong = []
    for name, path in described(agents):
        try:
            with open(path, "rb") as file:
                agent = tomllib.load(file).get("agent", {})
            text = drop_in(agent if isinstance(agent, dict) else {})
        except OSError as error:
            wrong.append(f"{path}: {reason(error)}")
            continue
        except ValueError as error:  # from TOML too
            wrong.append(f"{path}: {error}")
            continue
        if text:
            directory = f"{target}/agentres@{name}.service.d"
            os.makedirs(directory, exist_ok=True)
            with open(f"{directory}/50-agents.d.conf", "w") as file_:
                file_.write(f"# Made by agentres from {path}\n{text}")
    return wrong


def main() -> int:
    """Run with the directories that systemd passes; the first one is the target."""
    for line in generate(AGENTS, sys.argv[1]):
        sys.stderr.write(f"agentres: {line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
