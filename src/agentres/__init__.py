"""agentres: run AI agents inside hard resource limits (Linux, cgroup v2).

The command line is the front door (``agentres run -- COMMAND``); :func:`agentres.run.agent.run` is the
same thing from Python.  Nothing is imported here: the process that stays beside an agent must stay
small, so every name is imported from the module that owns it.
"""

__version__ = "0.1.0"
