"""Verdicts of people on the vehicles' answers: records, queues of what to judge next, and agreement."""
