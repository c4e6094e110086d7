"""What the kernel tests and benchmarks of disk rates write with."""
