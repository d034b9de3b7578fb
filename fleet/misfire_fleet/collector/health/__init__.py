"""Whether a collector can do its work: breaker, setbacks, metrics."""
