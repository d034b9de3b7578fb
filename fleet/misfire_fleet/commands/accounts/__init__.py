"""Implements `misfire fleet users` and `misfire fleet tokens`."""
