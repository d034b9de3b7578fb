"""Implements the commands about retraining: the loop, and what came of which sample."""
