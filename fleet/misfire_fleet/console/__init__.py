"""Serves the console: read-only pages and JSON over the store."""
