"""Holds scored frames until what happened at them is known, and adds it as the score `temporal`.

scored frame --add--> the last one or two of its source --Lane--> settled frame, with its score and reason

What flickers at a frame shows only in the frames after it. So a vehicle whose triggers look at `temporal`
decides on each frame one or two frames late, on all of its scores at once; nothing is decided twice, and the
order of a source's frames stays. At a cut, a gap or the end the frames that wait are decided without it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.service.logs import Throttle
from misfire_runtime.temporal.base import NAME, AnswerFormat, Comparison, Finding
from misfire_runtime.temporal.lane import Lane
from misfire_runtime.temporal.levels import Levels
from misfire_runtime.temporal.registry import comparison_of
from misfire_runtime.triggers import ScoredFrame

_LOG = logging.getLogger(__name__)
MAX_WAIT_S = 1.0
"""A camera that stalls must not keep its last frames from being decided on."""
LASTING_FRAMES = 8
"""In a row without a finding before that is logged: a camera's first frames come at odd times."""
REPEAT_S = 3600.0
"""Between two log lines of a source: one that is at the limit comes and goes."""
_LEARNED = "score:temporal"
"""Key among what triggers learned; no trigger's name has a colon."""


@dataclass(frozen=True, slots=True)
class Held:
    """Holds a scored frame on its way to the decision. `in_stream`: the random stream takes it."""

    frame: ScoredFrame
    in_stream: bool


@dataclass(slots=True)
class _Source:
    lane: Lane
    held: deque[Held] = field(default_factory=deque)
    live: bool = False
    missing: int = 0


class DelayLine:
    """Manages the frames that wait, of all sources; used by the frame path."""

    def __init__(self, scorer: Scorer) -> None:
        """Raises ValueError if the bundle's answers cannot be compared in time."""
        comparison = comparison_of(scorer)
        if comparison is None:
            raise ValueError(f"the answers of {scorer.label} cannot be compared in time")
        manifest = scorer.bundle.manifest
        threshold = 0.0 if manifest.detection is None else manifest.detection.score_threshold
        self._comparison: type[Comparison[Any]] = comparison
        self._form = AnswerFormat(manifest.input, manifest.classes, threshold)
        self._levels = Levels()
        self._sources: dict[str, _Source] = {}
        self._often = Throttle(_LOG, period_s=REPEAT_S)

    def add(self, held: Held, *, live: bool) -> list[Held]:
        """Takes the next scored frame of its source.

        Args:
            held: the frame.
            live: of its source; only then does the clock stand in for times that it has not.

        Returns:
            The frames that can be decided on now, oldest first, most with the score `temporal`.
        """
        frame = held.frame
        source = self._sources.get(frame.source)
        if source is None:
            source = self._sources[frame.source] = _Source(Lane(self._comparison(self._form)), live=live)
        source.held.append(held)
        time_s = frame.time_s if live or frame.frame.pts_s is not None else None
        answer = frame.scored.answer(self._comparison.kind)
        findings = source.lane.see(answer, frame.image, time_s)
        source.missing = source.missing + 1 if source.lane.problem else 0
        if source.missing == LASTING_FRAMES:
            self._complain(frame.source, source.lane.problem)
        return self._settle(source, findings)

    def overdue(self) -> list[Held]:
        """Returns the frames of live sources that have waited too long, without a finding."""
        oldest = time.monotonic() - MAX_WAIT_S
        late = (
            s
            for s in self._sources.values()
            if s.live and s.held and s.held[0].frame.frame.monotonic < oldest
        )
        return [held for source in late for held in self._settle(source, source.lane.flush())]

    def flush(self) -> list[Held]:
        """Returns all frames that wait, without a finding."""
        sources = self._sources.values()
        return [held for source in sources for held in self._settle(source, source.lane.flush())]

    @property
    def problems(self) -> list[str]:
        """Returns a sentence per source without findings."""
        return [
            f"{name}: {NAME} is not available: {source.lane.problem}"
            # A copy: telemetry asks from its own thread.
            for name, source in list(self._sources.items())
            if source.lane.problem is not None
        ]

    def learned(self) -> dict[str, Mapping[str, Any]]:
        """Returns the distribution of the scores so far, by a name that no trigger has."""
        return {_LEARNED: self._levels.learned()}

    def relearn(self, learned: Mapping[str, Mapping[str, Any]]) -> None:
        """Takes over what `learned` gave in an earlier run; what makes no sense is logged and left."""
        if _LEARNED not in learned:
            return
        try:
            self._levels.relearn(learned[_LEARNED])
        except (ValueError, KeyError, TypeError) as error:
            _LOG.warning("temporal_forgot", extra={"fields": {"problem": str(error)}})

    def _settle(self, source: _Source, findings: list[Finding | None]) -> list[Held]:
        return [self._with(source.held.popleft(), finding) for finding in findings]

    def _with(self, held: Held, finding: Finding | None) -> Held:
        """Returns the frame with its score and what happened; as it is if that is not known."""
        if finding is None:
            return held
        score = finding.score
        # The level first: a frame is compared with those before it.
        held.frame.scored.add(NAME, score, level=self._levels.level(score))
        self._levels.add(score)
        if not finding.events:
            return held
        context = {**held.frame.context, NAME: finding.reason}
        return replace(held, frame=replace(held.frame, context=context))

    def _complain(self, name: str, problem: str | None) -> None:
        fields = {"source": name, "problem": problem}
        self._often.log(logging.WARNING, "temporal_not_available", fields, key=name)
