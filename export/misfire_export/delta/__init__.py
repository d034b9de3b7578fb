"""Refits the failure head inside a bundle's graph, and measures what it means in the field."""
