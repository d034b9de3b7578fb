"""Implements `misfire retrain`: makes the next run and bundle from uploads and their labels."""
