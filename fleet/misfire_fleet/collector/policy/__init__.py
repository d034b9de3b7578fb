"""Decides what the fleet accepts from a vehicle: near-duplicates, quotas and rates."""
