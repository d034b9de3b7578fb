"""Implements `misfire fleet`, one file per group of commands."""
