"""Provides inference engines behind one protocol, and computes a frame's scores with one."""
