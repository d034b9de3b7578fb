"""Holds the rules that every part of the API follows: cursors, ETags, repeated requests, one description."""
