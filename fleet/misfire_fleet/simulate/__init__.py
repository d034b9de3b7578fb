"""Many simulated vehicles against a broker, for load and fault tests."""
