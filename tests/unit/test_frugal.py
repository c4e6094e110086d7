"""What a supervisor lets go of, so that it stays small."""

from __future__ import annotations

import subprocess
import sys

FORGETS = """
import sys
from agentres.kernel import frugal
from agentres.run import monitor
assert monitor.__doc__ and monitor.Monitor.__doc__
frugal.forget_docs()
left = [module.__name__ for module in sys.modules.values() if module.__doc__]
print(left, monitor.Monitor.__doc__, OSError.__doc__ is None)
"""


def test_docstrings_of_modules_and_classes_go_and_those_of_the_interpreter_stay() -> None:
    done = subprocess.run([sys.executable, "-c", FORGETS], capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout == "[] None False\n"
