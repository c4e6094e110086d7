"""The dashboard in a terminal (``agentres top``), with Textual; never loaded beside an agent."""
