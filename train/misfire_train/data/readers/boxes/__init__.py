"""Reads boxes in other people's formats, one reader per format."""
