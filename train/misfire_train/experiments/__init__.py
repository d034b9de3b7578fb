"""Published numbers, computed again: gamma tables, wrong predictions (Aljundi et al.), loss ranking."""
