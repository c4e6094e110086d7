"""The command line: one file a group of verbs; the only rooms that exit."""
