"""Small pictures for the gallery, made once and kept in memory within a budget."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from dataclasses import dataclass

import av
import av.error
import cv2
import numpy as np

from misfire_fleet.errors import SampleGoneError
from misfire_fleet.store import Store
from misfire_fleet.store_records import StoredSample
from misfire_runtime.errors import ImageError
from misfire_runtime.preprocess import Image, decode_image, encode_jpeg

_MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Picture:
    """Encoded bytes and their kind."""

    data: bytes
    media_type: str


class Thumbnails:
    """Thread-safe; the least recently shown are forgotten first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], Picture] = OrderedDict()
        self._bytes = 0

    def of(self, sample: StoredSample, width: int) -> Picture:
        """At most `width` pixels wide. An image that is smaller is given as it is.

        Raises SampleGoneError, also where the stored bytes no longer decode.
        """
        key = (sample.id, width)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        picture = self._make(sample, width)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = picture
                self._bytes += len(picture.data)
            while self._bytes > _MAX_BYTES and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1].data)
        return picture

    def _make(self, sample: StoredSample, width: int) -> Picture:
        data = self._store.read_blob(sample.id)
        if sample.media_type.startswith("image/") and sample.width <= width:
            return Picture(data, sample.media_type)
        try:
            image = _first_frame(data) if sample.media_type.startswith("video/") else decode_image(data)
        except ImageError as error:
            raise SampleGoneError(f"sample {sample.id}: {error}") from error
        if image.shape[1] > width:
            height = max(1, round(image.shape[0] * width / image.shape[1]))
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        return Picture(encode_jpeg(image, quality=82), "image/jpeg")


def _first_frame(clip: bytes) -> Image:
    try:
        with av.open(io.BytesIO(clip)) as container:
            for frame in container.decode(video=0):
                return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise ImageError(f"clip does not decode ({error})") from error
    raise ImageError("clip has no frame")
