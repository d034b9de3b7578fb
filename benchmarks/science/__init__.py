"""Measures how well scores find failures; slow, seeded, and judged on held-out data."""
