"""Measures speed as a ratio to a peer or to a physical limit, both interleaved in one process."""
