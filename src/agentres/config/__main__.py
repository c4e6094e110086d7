"""``python -P -m agentres.config [FILE…]``, run by the supervisor: see :mod:`agentres.config`."""

from __future__ import annotations

import marshal
import os
import sys
from typing import NoReturn

from agentres.config import ConfigError, load
from agentres.model.paths import configuration
from agentres.policy.settings import to_plain


def main() -> NoReturn:
    """Write the settings from the files that are named, or else from those that the environment selects."""
    # When a handler's module is imported, its C code or a child may write to file descriptor 1.
    sys.stdout.flush()
    out = os.dup(1)
    os.dup2(2, 1)
    status = 0
    try:
        settings = load(sys.argv[1:] or configuration(os.environ, os.getuid()), origins=True)
        with open(out, "wb") as stdout:
            marshal.dump(to_plain(settings), stdout)
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 -- what it is for
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Do not wait for threads that such a module has started.
    os._exit(status)


if __name__ == "__main__":
    main()
