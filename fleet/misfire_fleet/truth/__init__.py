"""Estimates the failure rate of a deployed fleet from its random stream, its score sketches and few labels."""
