"""Connects the collector to the broker, sends its replies, and clears retained messages."""
