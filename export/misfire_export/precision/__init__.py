"""Graphs at lower precision: fp16 and int8."""
