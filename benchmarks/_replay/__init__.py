"""What ``benchmarks/contention`` is made of: sessions that replay recordings, where they run, what came of it."""
