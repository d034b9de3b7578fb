"""Closes the loop by itself: snapshot, retrain, export, gate, candidate; also after a crash."""
