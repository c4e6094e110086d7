"""What ``benchmarks/network`` and the kernel tests of the network measure with."""
