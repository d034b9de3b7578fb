"""Tells what a campaign bought: the failures that its uploads found, and the accuracy that they gave."""
