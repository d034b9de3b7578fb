"""Fills a store with a drawn fleet: vehicles, days of heartbeats, uploads, labels and verdicts."""
