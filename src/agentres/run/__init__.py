"""The supervisor of one agent: from the launch to the end."""
