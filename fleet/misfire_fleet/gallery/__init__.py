"""Finds, sorts, compares and collects uploads: what the gallery, the map and the sample page show."""
