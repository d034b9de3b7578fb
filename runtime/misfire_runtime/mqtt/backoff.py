"""How long to wait before trying again: exponential with full jitter, so that no fleet returns at once."""

from __future__ import annotations

import random


def full_jitter(attempt: int, *, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Uniform in [0, min(cap_s, base_s * 2^attempt)] seconds, attempt from 0 on."""
    return rng.uniform(0.0, min(cap_s, base_s * 2.0 ** min(attempt, 60)))


def floor_jitter(attempt: int, *, base_s: float, cap_s: float, rng: random.Random) -> float:
    """`base_s` plus full jitter, at most `cap_s`: for timers that must not fire at once."""
    return min(cap_s, base_s + full_jitter(attempt, base_s=base_s, cap_s=cap_s, rng=rng))
