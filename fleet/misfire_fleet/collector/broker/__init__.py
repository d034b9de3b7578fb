"""The collector's connection to the broker, its replies, and the sweep of retained messages."""
