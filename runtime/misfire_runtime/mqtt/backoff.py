"""Computes waits before retries: exponential with full jitter, so that a fleet does not return at once."""

from __future__ import annotations

import random


def full_jitter(attempt: int, *, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Returns a wait in seconds, uniform in [0, min(cap_s, base_s * 2^attempt)]; attempts count from 0."""
    # 2^60 s is beyond every cap; without the bound, a long outage would overflow the float.
    return rng.uniform(0.0, min(cap_s, base_s * 2.0 ** min(attempt, 60)))


def floor_jitter(attempt: int, *, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Returns `base_s` plus full jitter, at most `cap_s`, for timers that must not expire at once."""
    return min(cap_s, base_s + full_jitter(attempt, base_s=base_s, cap_s=cap_s, rng=rng))
