"""Measurements and experiments; each is started from the repository root: `python -m benchmarks.NAME`."""
