"""Data sets that are drawn: articulated figures over photographs."""
