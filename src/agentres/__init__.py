"""agentres: run AI agents inside hard resource limits (Linux, cgroup v2).

From the shell: ``agentres run -- COMMAND``; from Python: :func:`agentres.run.agent.run`.  This module
imports nothing, because the process that stays beside an agent must stay small: import each name from
the module that defines it.
"""

__version__ = "0.1.0"
