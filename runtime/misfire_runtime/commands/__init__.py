"""Implements the vehicle's subcommands of `misfire`, one file each."""
