"""Steers what vehicles collect: campaigns, their dry run, and one budget for the whole fleet."""
