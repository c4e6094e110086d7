"""The only rooms that touch the kernel."""
