"""The supervisor of one agent, from its launch to its end."""
