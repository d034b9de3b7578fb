"""Keeps a vehicle's state between two runs in small files that survive a power cut."""
