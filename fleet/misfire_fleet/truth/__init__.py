"""Estimates the failure rate of a deployed fleet from random stream, score sketches and few labels."""
