"""Verifies an upload against its offer: the hash in this process, the content in a decoder's process."""

from __future__ import annotations

import hashlib

from misfire_fleet.decoding.decoder import Decoder, Verified
from misfire_fleet.decoding.headers import IMAGES, VIDEOS
from misfire_runtime.errors import ImageError

__all__ = ["IMAGES", "VIDEOS", "HashMismatchError", "Verified", "verify"]


class HashMismatchError(ImageError):
    """Reports that the hash of the bytes is not the sample's id."""


def verify(data: bytes, *, sample: str, media_type: str, decoder: Decoder) -> Verified | None:
    """Checks hash, format and content of an upload.

    Args:
        data: the upload.
        sample: the sample's id, the SHA-256 of the bytes in hexadecimal digits.
        media_type: media type in the offer.
        decoder: decodes the content.

    Returns:
        The size in pixels; None if the hash is right and the sample is too costly to be decoded at once.

    Raises:
        HashMismatchError: the hash is not `sample`.
        ImageError: the bytes do not decode as `media_type`, or exceed a limit.
        CheckFailedError: this machine cannot decode them now.
    """
    if hashlib.sha256(data).hexdigest() != sample:
        raise HashMismatchError("sha256 of the payload is not the offer's id")
    return decoder.check_small(data, media_type)
