"""Reads data sets in other people's formats, one reader per format."""
