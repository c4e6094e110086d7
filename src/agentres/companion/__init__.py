"""The process beside a supervisor that tells handlers of alerts, and watches the host."""
