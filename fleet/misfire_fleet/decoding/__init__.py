"""Decodes uploads in processes with limits on memory and time."""
