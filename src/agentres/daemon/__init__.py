"""The host's service, and a keeper for each agent that somebody asks it for."""
