"""Measures whether a collector can do its work: breaker, setbacks, metrics, shares of verdicts."""
