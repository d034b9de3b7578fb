"""Checks, backups and rebuilds of a store."""
