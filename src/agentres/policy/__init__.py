"""Pure decisions: functions of samples, settings and the time that they are given."""
