"""Fits the parts of a run: the task network, its failure threshold, and its head."""
