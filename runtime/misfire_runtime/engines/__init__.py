"""Inference engines behind one protocol, and the frame's way through one to its scores."""
