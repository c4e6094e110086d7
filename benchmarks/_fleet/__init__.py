"""What ``benchmarks/fleet`` is made of: recordings, our rules and others' over them."""
