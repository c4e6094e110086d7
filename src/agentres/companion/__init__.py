"""The process beside a supervisor that passes alerts to handlers and watches the host."""
