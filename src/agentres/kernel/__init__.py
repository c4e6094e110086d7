"""The only modules that touch the kernel."""
