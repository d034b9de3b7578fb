"""The connection to the broker: how to reach it, one connection on it, and why there is none."""
