"""Makes pictures, clips, and files that pretend to be one, as bytes; drawn, so that no data is needed."""

from __future__ import annotations

import io
import struct
import zlib

import av
import cv2
import numpy as np

SDP = (
    b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    b"m=video 45678 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
)
PLAYLISTS = {
    "SDP": SDP,
    "ffconcat": b"ffconcat version 1.0\nfile local.mp4\n",
    "HLS": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nlocal.ts\n#EXT-X-ENDLIST\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
}
"""Texts that FFmpeg follows to files or ports when it may guess the format."""


def scene(width: int = 320, height: int = 240) -> np.ndarray:
    """Returns shapes and some noise, [H,W,3] uint8."""
    image = np.random.default_rng(0).integers(60, 120, (height, width, 3), np.uint8)
    cv2.rectangle(image, (width // 8, height // 8), (width // 2, height // 2), (20, 180, 240), -1)
    cv2.circle(image, (width // 2, height // 2), height // 4, (250, 40, 90), 5)
    return image


def encoded(suffix: str, *, width: int = 320, height: int = 240, options: tuple[int, ...] = ()) -> bytes:
    """Returns the scene as a file."""
    return bytes(cv2.imencode(suffix, scene(width, height), list(options))[1])


def progressive(*, width: int = 320, height: int = 240) -> bytes:
    """Returns the scene as a progressive JPEG."""
    return encoded(".jpg", width=width, height=height, options=(cv2.IMWRITE_JPEG_PROGRESSIVE, 1))


def png(width: int, height: int, *, colour: int = 2, depth: int = 8, name: bytes = b"") -> bytes:
    """Returns a black PNG of any size, at little cost. colour: 0 grey, 2 RGB, 6 RGBA."""
    # One byte more: each row of a PNG begins with the number of its filter, here 0.
    row = bytes((width * {0: 1, 2: 3, 6: 4}[colour] * depth + 7) // 8 + 1)
    packer = zlib.compressobj(1)
    rows = [packer.compress(row) for _ in range(height)]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"tEXt", b"n\0" + name), (b"IDAT", b"".join([*rows, packer.flush()])))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in (*parts, (b"IEND", b"")))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Returns a chunk: length, kind, data, checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def many_scans(scans: int, *, side: int = 2000) -> bytes:
    """Returns a progressive JPEG whose last scan, which changes nothing, is there `scans` times."""
    flat = np.full((side, side), 128, np.uint8)
    data = bytes(cv2.imencode(".jpg", flat, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1])
    # From the last SOS marker up to the end marker.
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + data[-2:]


def clip(container: str, codec: str, *, width: int = 320, height: int = 240) -> bytes:
    """Returns a clip of five frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=10)
        stream.width, stream.height = width, height  # type: ignore[attr-defined]
        formats = stream.codec_context.codec.video_formats  # type: ignore[attr-defined]
        names = [form.name for form in formats or ()]
        stream.pix_fmt = "yuv420p" if "yuv420p" in names or not names else names[0]  # type: ignore[attr-defined]
        for shade in range(5):
            pixels = np.full((height, width, 3), 40 * shade, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))  # type: ignore[attr-defined]
        # Without a frame: the encoder gives out what it still holds.
        output.mux(stream.encode())  # type: ignore[attr-defined]
    return buffer.getvalue()


def numbered(jpeg: bytes, number: int) -> bytes:
    """Returns the same picture as another file."""
    note = str(number).encode()
    return jpeg[:2] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note + jpeg[2:]
