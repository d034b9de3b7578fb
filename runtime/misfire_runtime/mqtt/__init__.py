"""Connects to the broker: configuration, connections, and explanations of their errors."""
