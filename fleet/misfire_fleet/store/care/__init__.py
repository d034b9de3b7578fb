"""Checks, backs up and rebuilds a store."""
