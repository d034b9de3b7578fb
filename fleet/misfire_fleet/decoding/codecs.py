"""Decodes pictures and clips with OpenCV and FFmpeg. Only a decoder's process imports this module.

Each decoder gets the format; it never guesses it. A picture is checked at the lowest cost that still reads
every coded bit: a JPEG at an eighth of its size, other formats in grey. Of a clip, only the first frame is
decoded.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager

import av
import av.error
import cv2
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from misfire_fleet.decoding.headers import Header, Limits, check_container, check_pixels
from misfire_fleet.decoding.wire import WHOLE, Part
from misfire_runtime.errors import ImageError

Pixels = NDArray[np.uint8]
_DEMUXERS = {
    "video/mp4": "mp4",
    "video/x-matroska": "matroska",
    "video/webm": "webm",
    "video/mp2t": "mpegts",
}
_CODECS = frozenset({"h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg"})
"""Canonical codec names. FFmpeg has hundreds of codecs; each allowed one is code that reads foreign bytes."""
_PACKETS = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb", "vp9": None, "av1": None, "mjpeg": None}
"""Codecs whose frames leave undecoded, and the filter that turns them into a byte stream."""
_DECODERS = ",".join(sorted(_CODECS | {"libdav1d", "libvpx", "libvpx-vp9"}))
"""Decoder names for FFmpeg's whitelist: AV1, VP8 and VP9 have decoders named differently from the codec."""
_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))
_JPEG_QUALITY = 82


class OutOfMemoryError(Exception):
    """Reports that an allocation failed."""


def check_picture(data: bytes | bytearray, media_type: str, header: Header) -> tuple[int, int]:
    """Decodes a picture and returns (width, height) in pixels. Raises ImageError or OutOfMemoryError."""
    jpeg = media_type == "image/jpeg"
    flag = cv2.IMREAD_REDUCED_GRAYSCALE_8 if jpeg else cv2.IMREAD_GRAYSCALE
    # EXIF orientation swaps width and height, which are compared with the header below.
    image = _decoded(data, media_type, flag | cv2.IMREAD_IGNORE_ORIENTATION)
    step = 8 if jpeg else 1
    # libjpeg rounds a reduced size up.
    if image.shape[:2] != (-(-header.height // step), -(-header.width // step)):
        raise ImageError(f"header and content of the {media_type} differ in size")
    return header.width, header.height


def check_clip(data: bytes | bytearray, media_type: str, limits: Limits) -> tuple[int, int]:
    """Decodes a clip's first frame and returns (width, height). Raises ImageError or OutOfMemoryError."""
    with _first_frame(data, media_type, limits) as frame:
        return frame.width, frame.height


def picture_thumbnail(
    data: bytes | bytearray, media_type: str, header: Header, width: int, *, part: Part = WHOLE
) -> bytes:
    """Returns a JPEG at most `width` pixels wide, upright. Raises ImageError or OutOfMemoryError.

    `part`: of the upright picture, to be shown alone.
    """
    flag = cv2.IMREAD_COLOR
    if media_type == "image/jpeg":
        # The shorter side, because decoding may rotate the picture (EXIF orientation).
        share = max(1e-3, min(1.0, part[2] - part[0]))
        side = int(min(header.width, header.height) * share)
        flag = next((flag for step, flag in _REDUCED if side >= step * width), flag)
    return _encoded(_cut(_decoded(data, media_type, flag), part), width)


def clip_thumbnail(
    data: bytes | bytearray, media_type: str, limits: Limits, width: int, *, part: Part = WHOLE
) -> bytes:
    """Returns the first frame as a JPEG up to `width` pixels wide. Raises ImageError or OutOfMemoryError."""
    with _first_frame(data, media_type, limits) as frame:
        return _encoded(_cut(np.asarray(frame.to_ndarray(format="bgr24"), np.uint8), part), width)


def clip_packets(data: bytes | bytearray, media_type: str, *, most: int) -> bytes:
    """Returns the encoded frames of a clip, undecoded: bytes of a header, JSON, then the frames.

    Raises ImageError or OutOfMemoryError.
    """
    with _opened(data, media_type) as (container, stream, codec):
        if codec not in _PACKETS:
            raise ImageError(f"frames of codec {codec} are not written; those of {', '.join(_PACKETS)} are")
        name = _PACKETS[codec]
        bitstream = None if name is None else BitStreamFilterContext(name, stream)
        frames: list[tuple[int, int]] = []
        parts: list[bytes] = []
        size, base = 0, float(stream.time_base or 0)
        first: int | None = None
        for packet in container.demux(stream):
            for each in [packet] if bitstream is None else bitstream.filter(packet):
                if each.size:
                    # The order of decoding, in which they are written, is that of these times.
                    time = each.dts if each.dts is not None else each.pts or 0
                    first = time if first is None else first
                    frames.append((max(0, round((time - first) * base * 1e9)), each.size))
                    parts.append(bytes(each))
                    size += each.size
                if size > most:
                    raise ImageError(f"clip has more than {most} bytes of frames")
    head = json.dumps({"codec": codec, "frames": frames}).encode()
    return len(head).to_bytes(4, "big") + head + b"".join(parts)


def _cut(image: Pixels, part: Part) -> Pixels:
    """Returns a part of an image, of one pixel at least."""
    height, width = image.shape[:2]
    x0, y0 = min(width - 1, int(part[0] * width)), min(height - 1, int(part[1] * height))
    x1, y1 = max(x0 + 1, round(part[2] * width)), max(y0 + 1, round(part[3] * height))
    return image[y0:y1, x0:x1]


def _decoded(data: bytes | bytearray, media_type: str, flag: int) -> Pixels:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise OutOfMemoryError from error
        raise ImageError(f"payload does not decode ({error.err or 'OpenCV error'})") from error
    except MemoryError as error:
        raise OutOfMemoryError from error
    if image is None:
        raise ImageError(f"payload does not decode as {media_type}")
    return np.asarray(image, np.uint8)


def _encoded(image: Pixels, width: int) -> bytes:
    if image.shape[1] > width:
        height = max(1, round(image.shape[0] * width / image.shape[1]))
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise ImageError(f"JPEG encoding failed for shape {image.shape}")
    return bytes(data)


@contextmanager
def _first_frame(data: bytes | bytearray, media_type: str, limits: Limits) -> Iterator[VideoFrame]:
    """Yields the first frame of a clip, decoded with the demuxer of the media type.

    FFmpeg must not guess the format: a playlist offered as a clip would make it open sockets and read files
    of the server.
    """
    with _opened(data, media_type) as (container, stream, _codec):
        # Before the first frame is decoded: a large one costs memory.
        check_pixels(stream.width, stream.height, limits)
        stream.codec_context.thread_count = 1  # one decoder per process; the pool uses the other cores
        for frame in container.decode(stream):
            # The stream's header may say less than its frames have.
            check_pixels(frame.width, frame.height, limits)
            yield frame
            return
        raise ImageError("clip has no frame")


@contextmanager
def _opened(data: bytes | bytearray, media_type: str) -> Iterator[tuple[InputContainer, VideoStream, str]]:
    """Yields a clip's container, its video stream and the name of its codec."""
    check_container(data, media_type)
    # No protocol: the demuxer cannot open another file or URL that the clip refers to.
    options = {"protocol_whitelist": "", "codec_whitelist": _DECODERS}
    try:
        with av.open(io.BytesIO(data), format=_DEMUXERS[media_type], options=options) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise ImageError("clip has no video stream")
            codec = stream.codec_context.codec.canonical_name
            if codec not in _CODECS:
                raise ImageError(f"clips of codec {codec} are not taken")
            yield container, stream, codec
    except MemoryError as error:  # also FFmpeg's own
        raise OutOfMemoryError from error
    except (av.error.FFmpegError, ValueError, AttributeError) as error:
        raise ImageError(f"clip does not decode ({error})") from error
