"""The parts of `scripts/vm`: standard library only, since it runs before anything is installed."""
