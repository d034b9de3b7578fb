"""Computes published numbers again: gamma tables, wrong predictions (Aljundi et al.), loss ranking."""
