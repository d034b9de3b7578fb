"""Holds the limits by which the gate decides."""

from __future__ import annotations

from dataclasses import dataclass

from misfire_runtime.errors import ConfigError


@dataclass(frozen=True)
class Rules:
    """Holds the limits.

    Attributes:
        tolerance: a loss of the task metric from this on must be excluded by the interval, 0..1.
        score_tolerance: the same of the failure score's AUROC and of its recall.
        budget: share of frames that is uploaded; None: as the bundles declare, or 0.05.
        min_frames: with fewer, nothing is judged; a slice with fewer is listed, not compared.
        max_gap: the largest gap of the task metric between slices; None: gaps are only shown.
        max_slowdown: the largest ratio of the median times for a frame.
        max_growth: the largest ratio of the graphs' sizes.
        replicates: bootstrap resamples.
        seed: of the resamples.
        latency: whether times are measured; without, that check is left out.
    """

    tolerance: float = 0.02
    score_tolerance: float = 0.05
    budget: float | None = None
    min_frames: int = 30
    max_gap: float | None = None
    max_slowdown: float = 1.25
    max_growth: float = 2.0
    replicates: int = 1000
    seed: int = 0
    latency: bool = True

    def __post_init__(self) -> None:
        """Raises ConfigError if a limit is none."""
        if not 0 < self.tolerance < 1 or not 0 < self.score_tolerance < 1:
            raise ConfigError("a tolerance is a share between 0 and 1")
        if self.budget is not None and not 0 < self.budget < 1:
            raise ConfigError(f"--budget {self.budget:g}: a share of the frames between 0 and 1")
        if self.min_frames < 1 or self.replicates < 100:
            raise ConfigError("--min-frames is at least 1, and there are at least 100 resamples")
        if self.max_slowdown < 1 or self.max_growth < 1:
            raise ConfigError("a limit of time or size is a ratio of at least 1")


DEFAULT = Rules()
