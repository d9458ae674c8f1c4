"""Real servers and waiting, for tests and benchmarks."""
