"""Draws the pictures and videos that tests of sources need: rotated, cut, damaged, with Exif."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import av
import cv2
import numpy as np

from misfire_runtime.preprocess import Image, encode_jpeg

WIDTH, HEIGHT = 160, 120


def scene(number: int) -> Image:
    """A noisy picture that moves; no turned or mirrored copy looks like it."""
    rng = np.random.default_rng(0)
    image = np.asarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3)), np.uint8)
    image = np.roll(cv2.GaussianBlur(image, (7, 7), 3), 3 * number, axis=1).copy()
    image[: HEIGHT // 4, : WIDTH // 3] = (250, 10, 10)
    return image


def draw_video(
    path: Path,
    *,
    frames: int = 60,
    codec: str = "libx264",
    rate: int = 10,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A key frame every 25 frames; H.264 has B-frames."""
    known = {"libx264": {"g": "25", "bf": "2", "x264-params": "scenecut=0"}, "mpeg4": {"g": "25"}}
    with av.open(str(path), "w", options=container_options or {}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=rate, options=options or known.get(codec, {}))
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(number), format="rgb24")))
        container.mux(stream.encode())
    return path


def copy_packets(
    source: Path, target: Path, *, start_s: float = 0.0, seconds: float = 1e9, cut: tuple[int, ...] = ()
) -> Path:
    """Copies packets without decoding; of those numbered in `cut` only the first third.

    A start between key frames begins at the one before; in an MP4 an edit list hides what is early.
    """
    with (
        av.open(str(source)) as given,
        av.open(str(target), "w", options={"avoid_negative_ts": "disabled"} if start_s else {}) as copied,
    ):
        stream = given.streams.video[0]
        assert stream.time_base is not None
        offset = int(start_s / stream.time_base)
        given.seek(offset, stream=stream)
        into = copied.add_stream_from_template(stream)
        for number, packet in enumerate(given.demux(stream)):
            if packet.dts is None or packet.pts is None or packet.pts * stream.time_base > start_s + seconds:
                continue
            data = bytes(packet)
            part = av.Packet(data[: len(data) // 3] if number in cut else data)
            part.pts, part.dts, part.time_base = packet.pts - offset, packet.dts - offset, packet.time_base
            part.is_keyframe = packet.is_keyframe
            part.stream = into
            copied.mux(part)
    return target


def set_matrix(source: Path, target: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Writes the display matrix into the track header of an MP4 or MOV: x' = ax + cy, y' = bx + dy."""
    a, b, c, d = matrix
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


def overwrite_payload(source: Path, target: Path, *, begin: float, end: float) -> Path:
    """Overwrites a share of an MP4's media data with noise."""
    data = bytearray(source.read_bytes())
    at = data.index(b"mdat")
    size = int.from_bytes(data[at - 4 : at], "big")
    first, last = at + int(size * begin), at + int(size * end)
    data[first:last] = np.random.default_rng(1).integers(0, 256, last - first, np.uint8).tobytes()
    target.write_bytes(data)
    return target


def exif(
    *, orientation: int = 1, taken: str = "", offset: str = "", fraction: str = "", order: str = "<"
) -> bytes:
    """An Exif block with orientation, DateTimeOriginal, OffsetTimeOriginal and SubSecTimeOriginal."""
    given = ((0x9003, taken), (0x9011, offset), (0x9291, fraction))
    texts = [(tag, text.encode() + b"\0") for tag, text in given if text]
    directory_at = 8 + 2 + 2 * 12 + 4
    texts_at = directory_at + 2 + len(texts) * 12 + 4
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    block += struct.pack(f"{order}HHHIHxx", 2, 0x0112, 3, 1, orientation)
    block += struct.pack(f"{order}HHIII", 0x8769, 4, 1, directory_at, 0)
    entries, tail = b"", b""
    for tag, text in texts:
        inline = len(text) <= 4
        entries += struct.pack(f"{order}HHI", tag, 2, len(text))
        entries += text.ljust(4, b"\0") if inline else struct.pack(f"{order}I", texts_at + len(tail))
        tail += b"" if inline else text
    return block + struct.pack(f"{order}H", len(texts)) + entries + struct.pack(f"{order}I", 0) + tail


def jpeg_with_exif(image: Image, block: bytes) -> bytes:
    """A JPEG with this Exif block right behind its start."""
    data = encode_jpeg(image, quality=95)
    payload = b"Exif\0\0" + block
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def png_with_exif(image: Image, block: bytes) -> bytes:
    """A PNG with this Exif block in a chunk behind its header."""
    ok, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert ok
    data = bytes(encoded)
    chunk = b"eXIf" + block
    chunk = struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:33] + chunk + data[33:]
