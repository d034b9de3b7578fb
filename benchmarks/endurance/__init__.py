"""Mistreats a whole fleet for minutes to hours and counts what is lost."""
