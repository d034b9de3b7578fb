"""Draws data sets: articulated figures over photographs."""
