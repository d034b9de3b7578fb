"""Recorded drives as sources: MCAP files, and the rosbag2 folders that hold them (extra `replay`).

message --by its schema--> encoded image --> Frame. Understood are foxglove.CompressedImage (protobuf, JSON)
and sensor_msgs/CompressedImage (CDR, ROS 1 and ROS 2). The few fields are read straight off the wire, so no
message classes have to be generated. Truncated and unindexed files are read as far as they go.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from misfire_runtime.errors import ImageError, MissingExtraError, SourceError
from misfire_runtime.preprocess import decode_image
from misfire_runtime.sources.frame import Frame, SourceCounts, sniff_media_type

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
Extract = Callable[[bytes], bytes]


class McapReplay:
    """The images of one topic of a recording, in log order."""

    live = False

    def __init__(self, path: Path, *, name: str = "", topic: str | None = None) -> None:
        """path: an .mcap file, or a folder of them (rosbag2). topic: the first with images where None.

        Raises MissingExtraError without the mcap package, SourceError where there is nothing to read.
        """
        try:
            import mcap.exceptions
            import mcap.reader
            import mcap.stream_reader
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "replay of .mcap needs mcap, which is not installed: pip install 'misfire[replay]'"
            ) from error
        self._mcap: Any = mcap
        self.path = path
        self.name = name or path.name
        self.counts = SourceCounts()
        self._files = sorted(path.glob("*.mcap")) if path.is_dir() else [path]
        for file in self._files:
            if not file.is_file():
                raise SourceError(f"{file}: no such file")
        self._topic = topic
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in self._files]
        self.identity = hashlib.sha256(repr((str(path.resolve()), topic, stats)).encode()).hexdigest()[:32]

    def frames(self, stop: threading.Event, *, start: int = 0) -> Iterator[Frame]:
        """Frames with the time of the recording, counted from its first message, in `pts_s`."""
        index, first_ns, found = 0, None, False
        for file in self._files:
            for topic, log_ns, extract, data in self._messages(file):
                if stop.is_set():
                    return
                found = True
                first_ns = log_ns if first_ns is None else first_ns
                if index >= start:
                    frame = self._frame(extract, data, index, topic, (log_ns - first_ns) / 1e9)
                    if frame is not None:
                        yield frame
                index += 1
        if not found and not self.counts.unreadable:
            wanted = f"topic {self._topic!r}" if self._topic else "a topic of compressed images"
            raise SourceError(f"{self.path}: has no {wanted}")

    def close(self) -> None:
        """Nothing is held between frames."""

    def _frame(self, extract: Extract, data: bytes, index: int, topic: str, time_s: float) -> Frame | None:
        label = f"{topic}[{index}]"
        try:
            encoded = extract(data)
            image = decode_image(encoded, name=label)
        except (ValueError, struct.error, IndexError, KeyError, TypeError) as error:
            self.counts.skip(f"{label}: malformed message ({error})")
            return None
        except ImageError as error:
            self.counts.skip(str(error))
            return None
        self.counts.read += 1
        media_type = sniff_media_type(encoded)
        return Frame(image, self.name, index, topic, pts_s=time_s, original=encoded, media_type=media_type)

    def _messages(self, file: Path) -> Iterator[tuple[str, int, Extract, bytes]]:
        """topic, log time in ns, how to get at the image, and the message, of one file."""
        with file.open("rb") as stream:
            try:
                yield from self._read(stream, file)
            except (self._mcap.exceptions.McapError, OSError, struct.error, ValueError) as error:
                problem = str(error) or type(error).__name__
                self.counts.skip(f"{file.name}: damaged or truncated: {problem}")

    def _read(self, stream: IO[bytes], file: Path) -> Iterator[tuple[str, int, Extract, bytes]]:
        for schema, channel, message in self._records(stream):
            extract = find_extract(schema.name if schema else "", channel.message_encoding)
            if extract is None or (self._topic is not None and channel.topic != self._topic):
                continue
            if self._topic is None:
                self._topic = channel.topic
            if len(message.data) > MAX_MESSAGE_BYTES:
                self.counts.skip(f"{file.name}: a message of {len(message.data)} bytes is above the limit")
                continue
            yield channel.topic, message.log_time, extract, message.data

    def _records(self, stream: IO[bytes]) -> Iterator[tuple[Any, Any, Any]]:
        """schema, channel, message in the order of the file: works without an index and up to a tear."""
        schemas: dict[int, Any] = {}
        channels: dict[int, Any] = {}
        for record in self._mcap.stream_reader.StreamReader(stream).records:
            kind = type(record).__name__
            if kind == "Schema":
                schemas[record.id] = record
            elif kind == "Channel":
                channels[record.id] = record
            elif kind == "Message" and record.channel_id in channels:
                channel = channels[record.channel_id]
                yield schemas.get(channel.schema_id), channel, record


def find_extract(schema: str, encoding: str) -> Extract | None:
    """How to get the encoded image out of a message of that schema and encoding; None for other messages."""
    if schema == "foxglove.CompressedImage" and encoding == "protobuf":
        return from_protobuf
    if schema in ("foxglove.CompressedImage", "foxglove_msgs/msg/CompressedImage") and encoding == "json":
        return from_json
    if schema in ("sensor_msgs/msg/CompressedImage", "sensor_msgs/CompressedImage"):
        return {"cdr": from_cdr, "ros1": from_ros1}.get(encoding)
    return None


def from_json(message: bytes) -> bytes:
    """foxglove.CompressedImage as JSON: `data` is base64. Raises ValueError or KeyError."""
    data = json.loads(message)["data"]
    if not isinstance(data, str):
        raise ValueError("data is not base64 text")
    return base64.b64decode(data, validate=True)


def from_protobuf(message: bytes) -> bytes:
    """foxglove.CompressedImage as protobuf: field 2 is the data. Raises ValueError where it is malformed."""
    at, found = 0, None
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            _, at = _varint(message, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("a field ends beyond the message")
            if field == 2:
                found = message[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire}")
    if found is None:
        raise ValueError("no data field")
    return found


def from_cdr(message: bytes) -> bytes:
    """sensor_msgs/CompressedImage as CDR: header(stamp, frame_id), format, data. Raises struct.error."""
    if len(message) < 4:
        raise ValueError("shorter than a CDR header")
    order = "<" if message[1] & 1 else ">"
    body = memoryview(message)[4:]
    at = 8
    for _text in ("frame_id", "format"):
        at = _aligned(at)
        (size,) = struct.unpack_from(f"{order}I", body, at)
        at += 4 + size
    at = _aligned(at)
    (size,) = struct.unpack_from(f"{order}I", body, at)
    return _exactly(body, at + 4, size)


def from_ros1(message: bytes) -> bytes:
    """sensor_msgs/CompressedImage in ROS 1's packing: seq, stamp, frame_id, format, data."""
    body, at = memoryview(message), 12
    for _text in ("frame_id", "format"):
        (size,) = struct.unpack_from("<I", body, at)
        at += 4 + size
    (size,) = struct.unpack_from("<I", body, at)
    return _exactly(body, at + 4, size)


def _exactly(body: memoryview, at: int, size: int) -> bytes:
    if at + size > len(body):
        raise ValueError(f"data of {size} bytes ends beyond the message")
    return bytes(body[at : at + size])


def _aligned(at: int) -> int:
    return (at + 3) & ~3


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("a number ends beyond the message")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
