"""Implements the commands `misfire train` and `misfire data`."""
