"""Pure decisions: functions of samples, settings and a given time."""
