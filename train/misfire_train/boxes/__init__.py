"""Computes with boxes: candidates of a detector, matching with labelled objects, losses."""
