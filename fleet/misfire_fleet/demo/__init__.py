"""Runs the whole loop on one machine: broker, collector, console, vehicles, labels, retraining."""
