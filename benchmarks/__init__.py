"""Holds measurements and experiments; `python -m benchmarks` lists them."""
