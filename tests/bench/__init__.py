"""Benchmarks: `python -m tests.bench.step` (against TRL) and `python -m tests.bench.scaling`. pytest collects none."""
