"""Simulates many vehicles against a broker, for load and fault tests."""
