"""Cost of every stage against a plain baseline and against the machine's limit: `python -m benchmarks`."""
