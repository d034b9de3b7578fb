"""Measures what a graph does on real frames: parity, calibration, golden answers, the trigger score."""
