"""Defines scores of a detector's boxes."""
