"""Keeps what was scored in files: conditions of an evaluation, and tables of scores."""
