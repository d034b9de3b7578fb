"""Data sets that somebody else made, one reader per format."""
