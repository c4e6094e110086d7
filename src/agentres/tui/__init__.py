"""The dashboard in a terminal (``agentres top``).  It uses Textual, and is never loaded beside an agent."""
