"""Encodes a scored frame as bytes that may leave the vehicle: privacy first, then at most one encoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from misfire_runtime.engines.answers import within
from misfire_runtime.preprocess import encode_jpeg
from misfire_runtime.samples.privacy import Privacy
from misfire_runtime.tables import Table
from misfire_runtime.triggers.scored_frame import ScoredFrame


class EncodeTable(Table):
    """How chosen frames are written where their original bytes cannot be used."""

    jpeg_quality: int = Field(default=90, ge=1, le=100)
    keep_original: bool = True


@dataclass(frozen=True, slots=True)
class Encoded:
    """Holds a picture or video that may leave the vehicle.

    privacy: what was done to it, for its offer.  frame: what it was made of; of a video, its chosen frame.
    region: x0, y0, x1, y1 of what is left of the frame's picture, in its pixels; None if it is whole.
    """

    data: bytes
    media_type: str
    privacy: Sequence[str]
    frame: ScoredFrame
    region: tuple[int, int, int, int] | None = None

    @property
    def prediction(self) -> dict[str, Any]:
        """Returns the frame's prediction, with its places in the picture that is left."""
        prediction = self.frame.scored.prediction
        if self.region is None:
            return prediction
        height, width = self.frame.image.shape[:2]
        return within(prediction, self.region, size=(width, height))

    @property
    def time_s(self) -> float:
        """Returns the time of its frame."""
        return self.frame.time_s

    @property
    def memory_bytes(self) -> int:
        """Returns the bytes that it keeps alive: the encoded picture, its pixels, and the graph's outputs."""
        return len(self.data) + self.frame.image.nbytes + self.frame.scored.nbytes


def encode(
    scored: ScoredFrame, *, privacy: Privacy | None, jpeg_quality: int, keep_original: bool
) -> Encoded:
    """Returns the bytes of a frame, after privacy.

    Args:
        scored: the frame.
        privacy: None changes nothing.
        jpeg_quality: 1 to 100, for pictures that have to be encoded.
        keep_original: the bytes it was read from are kept if no privacy stage changed a pixel.

    Raises:
        PrivacyError: the privacy stage cannot do its work, so nothing may leave.
        ImageError: the picture cannot be encoded.
    """
    frame = scored.frame
    image, changed, labels, region = frame.image, False, list[str](), None
    if privacy is not None:
        image, labels, changed = privacy.apply(frame.image, source=frame.source)
        region = privacy.region(frame.image, source=frame.source)
    # Original bytes lose nothing; a changed picture must never leave in its original bytes.
    if frame.original is not None and frame.media_type and not changed and keep_original:
        return Encoded(frame.original, frame.media_type, labels, scored)
    return Encoded(encode_jpeg(image, quality=jpeg_quality), "image/jpeg", labels, scored, region)
