"""Is an upload what its offer said? Its hash here, its content in a decoder's process."""

from __future__ import annotations

import hashlib

from misfire_fleet.decoding.decoder import Decoder, Verified
from misfire_fleet.decoding.headers import IMAGES, VIDEOS
from misfire_runtime.errors import ImageError

__all__ = ["IMAGES", "VIDEOS", "HashMismatchError", "Verified", "verify"]


class HashMismatchError(ImageError):
    """The bytes are not those whose hash the offer named."""


def verify(data: bytes, *, sample: str, media_type: str, decoder: Decoder) -> Verified | None:
    """Checks hash, kind and content; None if the hash is right and decoding must wait for its turn.

    Raises HashMismatchError if the bytes are not the sample's, ImageError with the reason if they do not
    decode as `media_type` or are above a limit, CheckFailedError if this machine cannot tell now.
    """
    if hashlib.sha256(data).hexdigest() != sample:
        raise HashMismatchError("sha256 of the payload is not the offer's id")
    return decoder.check_small(data, media_type)
