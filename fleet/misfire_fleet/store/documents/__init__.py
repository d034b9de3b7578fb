"""Keeps documents next to the blobs, from which rows of the database can be rebuilt."""
