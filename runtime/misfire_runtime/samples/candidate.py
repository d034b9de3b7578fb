"""A scored frame on its way to a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from misfire_runtime.engines.scoring import Scored
from misfire_runtime.sources.frame import Frame
from misfire_runtime.triggers.selector import Choice


@dataclass(frozen=True, slots=True)
class Candidate:
    """A frame that is kept (`choice`), or may become part of a clip (no choice)."""

    frame: Frame
    scored: Scored
    bundle: str
    context: Mapping[str, float | str | bool]
    choice: Choice | None = None
