"""Implements the commands that steer what vehicles collect."""
