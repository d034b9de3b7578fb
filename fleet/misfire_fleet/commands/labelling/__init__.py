"""Implements the commands about labels: export and import of files, label tools, votes."""
