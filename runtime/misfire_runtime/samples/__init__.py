"""Turns a chosen frame into the bytes and the offer of a sample: privacy, encoding, clips."""
