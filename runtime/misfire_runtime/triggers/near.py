"""Defines the trigger for frames like a given one, by the cosine similarity of their embeddings.

An embedding can be compared only with those of its own bundle: on frames of others the trigger is quiet.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from misfire_runtime.errors import MessageError
from misfire_runtime.messages import BundleLabel, unpack_embedding
from misfire_runtime.triggers.base import BuildContext, Trigger, TriggerEvent, TriggerKind, TriggerTable
from misfire_runtime.triggers.registry import register
from misfire_runtime.triggers.scored_frame import ScoredFrame


def _readable(text: str) -> str:
    try:
        if not unpack_embedding(text).any():
            raise ValueError("an embedding of zeros has no direction")
    except MessageError as error:
        raise ValueError(str(error)) from error
    return text


Embedding = Annotated[str, Field(max_length=8192), AfterValidator(_readable)]
"""float16, little-endian, base64: see `messages.pack_embedding`."""


class NearTable(TriggerTable):
    """Frames whose embedding is near a given one."""

    kind: Literal["near"]
    to: Embedding
    bundle: BundleLabel
    similarity: float = Field(default=0.9, gt=-1, le=1)


@register
class Near(TriggerKind):
    """Fires if the cosine similarity to an embedding is at or above a value."""

    Settings = NearTable

    def __init__(
        self, name: str, *, to: NDArray[np.float32], bundle: str, similarity: float, priority: int = 5
    ) -> None:
        """Takes the embedding, [D] floats, and the label of the bundle that made it."""
        self.name = name
        self._unit = to / np.float32(np.linalg.norm(to))
        self._bundle = bundle
        self._similarity = similarity
        self._priority = priority

    @classmethod
    def build(cls, settings: NearTable, context: BuildContext) -> Trigger:
        """See TriggerKind. A bundle of another label is no error: it may be switched to at any time."""
        return cls(
            context.name,
            to=unpack_embedding(settings.to),
            bundle=settings.bundle,
            similarity=settings.similarity,
            priority=settings.priority,
        )

    def look(self, frame: ScoredFrame) -> TriggerEvent | None:
        """See Trigger."""
        embedding = frame.scored.embedding
        if embedding is None or frame.bundle != self._bundle or embedding.size != self._unit.size:
            return None
        similarity = cosine(embedding, self._unit)
        if similarity < self._similarity:
            return None
        return TriggerEvent(
            self.name, f"similarity {similarity:.3f} >= {self._similarity:.3f}", self._priority
        )


def cosine(embedding: NDArray[np.float32], unit: NDArray[np.float32]) -> float:
    """Returns the cosine similarity of an embedding and a unit vector, both [D]; 0 for one of zeros."""
    length = float(np.linalg.norm(embedding))
    return float(embedding @ unit) / length if length > 1e-12 else 0.0
