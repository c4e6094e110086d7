"""Samples, rules and the history: code that both the supervisor and the companion run."""
