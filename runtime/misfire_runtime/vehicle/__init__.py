"""Runs a vehicle: frames in; scores, choices and samples out."""
