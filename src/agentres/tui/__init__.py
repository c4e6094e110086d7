"""The dashboard in a terminal (``agentres top``): Textual's, never loaded beside an agent."""
