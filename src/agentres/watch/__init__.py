"""What both the supervisor and the companion run: samples, rules, the history."""
