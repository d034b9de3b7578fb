"""Defines a vehicle's configuration: its tables, its file, and what the fleet may change of it."""
