"""What the fleet takes from a vehicle: near-duplicates, quotas and rates."""
