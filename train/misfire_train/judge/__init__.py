"""The judge: what a failure score is worth on data it never saw, and which one a bundle triggers on."""
