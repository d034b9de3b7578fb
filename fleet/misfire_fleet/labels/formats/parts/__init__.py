"""Holds what several label formats share: pixels, places, JSON in pieces, fields, words."""
