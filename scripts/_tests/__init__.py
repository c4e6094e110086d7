"""The parts of `scripts/test`: what is run where, and what came of it.  Standard library only."""
