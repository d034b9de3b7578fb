"""Computes with answers of one form: a softmax, planes of pixels, heatmaps and their peaks."""
