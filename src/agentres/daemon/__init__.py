"""The host's service (daemon), and a keeper process for each agent that it runs for a client."""
