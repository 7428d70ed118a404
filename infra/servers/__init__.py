"""Real servers that tests and benchmarks start: a hospital's archive, a hospital's proxy."""
