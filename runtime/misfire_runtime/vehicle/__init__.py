"""A running vehicle: frames in, scores, choices, samples out."""
