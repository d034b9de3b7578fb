"""misfire's science: objectives, heads, failure scores, selection, and the judge of them all."""
