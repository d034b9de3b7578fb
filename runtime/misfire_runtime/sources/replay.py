"""Reads recorded drives: MCAP files, and the rosbag2 folders that hold them (extra `replay`).

message --by its schema--> encoded image --> Frame. Understood are foxglove.CompressedImage (protobuf, JSON)
and sensor_msgs/CompressedImage (CDR, ROS 1 and ROS 2). The few fields are read straight off the wire, so no
message classes have to be generated. Truncated and unindexed files are read as far as they go. The files of a
split recording are played in the order of their first messages.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from misfire_runtime.encoded import without_trailer
from misfire_runtime.errors import ImageError, MissingExtraError, SourceError
from misfire_runtime.preprocess import decode_image
from misfire_runtime.sources.files import natural_order
from misfire_runtime.sources.frame import Frame, Source, SourceCounts, sniff_media_type
from misfire_runtime.sources.kinds import is_hidden, kind_of
from misfire_runtime.sources.names import shown
from misfire_runtime.sources.recording_time import believable
from misfire_runtime.sources.registry import SourceKind, SourceTable, register

_LOG = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""As for picture files: `MAX_IMAGE_BYTES`."""
_NOT_COLOUR = re.compile(r"compressedDepth|^\s*(mono16|(16|32|64)[USF]C\d)")


@dataclass(frozen=True, slots=True)
class Compressed:
    """Holds a message's encoded picture, and how it names its format ("bgr8; jpeg compressed")."""

    data: bytes
    format: str = ""


Extract = Callable[[bytes], Compressed]


@register
class McapReplay(SourceKind):
    """Yields the images of one topic of a recording, in log order."""

    suffixes = (".mcap",)
    live = False

    def __init__(self, path: Path, *, name: str = "", topic: str | None = None) -> None:
        """path: an .mcap file, or a folder of them (rosbag2).

        topic: None is the first whose pictures decode and are no depth maps.
        Raises MissingExtraError without the mcap package, SourceError if there is nothing to read.
        """
        try:
            import mcap.exceptions
            import mcap.stream_reader
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "replay of .mcap needs mcap, which is not installed: pip install 'misfire[replay]'"
            ) from error
        self._mcap: Any = mcap
        self.path = path
        self.name = name or shown(path.name or path.resolve().name)
        self.counts = SourceCounts()
        self._files = self._in_order(recordings(path)) if path.is_dir() else [path]
        for file in self._files:
            if not file.is_file():
                raise SourceError(f"{shown(file)}: no such file")
        self._topic = topic
        self._seen: dict[str, str] = {}
        self._not_colour: dict[str, str] = {}
        stats = [(shown(file.name), file.stat().st_size, file.stat().st_mtime_ns) for file in self._files]
        key = repr((shown(path.resolve()), topic, stats))
        self.identity = hashlib.sha256(key.encode()).hexdigest()[:32]

    @classmethod
    def reads(cls, path: Path) -> bool:
        """See SourceKind: an MCAP file, there or not, or a folder with one."""
        try:
            if path.is_dir():
                return any(file.suffix.lower() in cls.suffixes for file in path.iterdir())
            return super().reads(path) or (path.is_file() and kind_of(path) == "mcap")
        except OSError:  # RecordedFiles says what is wrong with it
            return False

    @classmethod
    def open(cls, settings: SourceTable) -> Source:
        """See SourceKind."""
        return cls(settings.path, name=settings.name, topic=settings.topic)

    def frames(self, stop: threading.Event, *, start: int = 0) -> Iterator[Frame]:
        """Yields frames with the time of the recording, counted from its first picture, in `pts_s`."""
        if self._topic is None:
            self._topic = self._choose_topic(stop)
        index, first_ns = 0, None
        for file in self._files:
            for log_ns, extract, data in self._pictures(file):
                if stop.is_set():
                    return
                first_ns = log_ns if first_ns is None else first_ns
                if index >= start:
                    frame = self._frame(extract, data, index, log_ns, first_ns)
                    if frame is not None:
                        yield frame
                index += 1
        if first_ns is None and not self.counts.unreadable and not stop.is_set():
            raise SourceError(self._nothing_found())

    def close(self) -> None:
        """Does nothing: no file is open between frames."""

    def _frame(self, extract: Extract, data: bytes, index: int, log_ns: int, first_ns: int) -> Frame | None:
        topic = self._topic or ""
        label = f"{topic}[{index}]"
        try:
            encoded = without_trailer(extract(data).data, name=label)
            image = decode_image(encoded, name=label)
        except (ValueError, struct.error, IndexError, KeyError, TypeError) as error:
            self.counts.skip(f"{label}: malformed message ({error})")
            return None
        except ImageError as error:
            self.counts.skip(str(error))
            return None
        self.counts.read += 1
        return Frame(
            image,
            self.name,
            index,
            topic,
            pts_s=(log_ns - first_ns) / 1e9,
            original=encoded,
            media_type=sniff_media_type(encoded),
            recorded_at=believable(log_ns / 1e9),
        )

    def _choose_topic(self, stop: threading.Event) -> str | None:
        """Returns the topic of the first picture that decodes; else one of pictures that do not."""
        damaged: str | None = None
        for file in self._files:
            for channel, extract, message in self._messages(file, quiet=True):
                if stop.is_set():
                    return None
                try:
                    found = extract(message.data)
                    if _NOT_COLOUR.search(found.format):
                        self._not_colour[channel.topic] = found.format
                        continue
                    decode_image(found.data)
                except (ImageError, ValueError, struct.error, IndexError, KeyError, TypeError):
                    damaged = damaged or channel.topic
                    continue
                _LOG.info("topic_chosen", extra={"fields": {"source": self.name, "topic": channel.topic}})
                return str(channel.topic)
        return damaged

    def _pictures(self, file: Path) -> Iterator[tuple[int, Extract, bytes]]:
        """Yields log time in ns, extractor and message of every picture of the chosen topic in one file."""
        for channel, extract, message in self._messages(file):
            if channel.topic != self._topic:
                continue
            # Counted and skipped: one absurd message must not end the replay.
            if len(message.data) > MAX_MESSAGE_BYTES:
                self.counts.skip(
                    f"{shown(file.name)}: a message of {len(message.data)} bytes is above the limit"
                )
                continue
            yield message.log_time, extract, message.data

    def _messages(self, file: Path, *, quiet: bool = False) -> Iterator[tuple[Any, Extract, Any]]:
        """Yields channel, extractor and message of every topic of compressed images."""
        with file.open("rb") as stream:
            try:
                for schema, channel, message in self._records(stream):
                    name = schema.name if schema else "no schema"
                    self._seen.setdefault(channel.topic, f"{name}, {channel.message_encoding}")
                    extract = find_extract(name, channel.message_encoding)
                    if extract is not None:
                        yield channel, extract, message
            except (self._mcap.exceptions.McapError, OSError, struct.error, ValueError) as error:
                problem = str(error) or type(error).__name__
                if not quiet:
                    self.counts.skip(f"{shown(file.name)}: damaged or truncated: {problem}")

    def _nothing_found(self) -> str:
        wanted = f"topic {self._topic!r}" if self._topic else "topic"
        kinds = {**self._seen, **{t: f"{self._seen[t]}, {text}" for t, text in self._not_colour.items()}}
        topics = "; ".join(f"{topic} ({kind})" for topic, kind in sorted(kinds.items()))
        return f"{shown(self.path)}: has no {wanted} of compressed images. Topics: {topics or 'none'}"

    def _in_order(self, files: list[Path]) -> list[Path]:
        """Sorts files by the time of their first message; those without one come last, in natural order."""
        begins = {file: self._first_time(file) for file in files}
        return sorted(files, key=lambda file: (begins[file], natural_order(file.name)))

    def _first_time(self, file: Path) -> float:
        try:
            with file.open("rb") as stream:
                # A chunk names its times in front: nothing has to be decompressed.
                for record in self._mcap.stream_reader.StreamReader(stream, emit_chunks=True).records:
                    kind = type(record).__name__
                    if kind == "Chunk" and record.message_start_time:
                        return float(record.message_start_time)
                    if kind == "Message":
                        return float(record.log_time)
        except (self._mcap.exceptions.McapError, OSError, struct.error, ValueError):
            pass  # read, counted and named when its turn comes
        return float("inf")

    def _records(self, stream: IO[bytes]) -> Iterator[tuple[Any, Any, Any]]:
        """Yields schema, channel and message in the order of the file, without an index and up to a tear."""
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


def recordings(folder: Path) -> list[Path]:
    """Returns the MCAP files of a folder, in natural order."""
    found = [f for f in folder.iterdir() if f.suffix.lower() == ".mcap" and not is_hidden(Path(f.name))]
    return sorted(found, key=lambda file: natural_order(file.name))


def find_extract(schema: str, encoding: str) -> Extract | None:
    """Returns the function that reads messages of that schema and encoding; None for other messages."""
    if schema == "foxglove.CompressedImage" and encoding == "protobuf":
        return from_protobuf
    if schema in ("foxglove.CompressedImage", "foxglove_msgs/msg/CompressedImage") and encoding == "json":
        return from_json
    if schema in ("sensor_msgs/msg/CompressedImage", "sensor_msgs/CompressedImage"):
        return {"cdr": from_cdr, "ros1": from_ros1}.get(encoding)
    return None


def from_json(message: bytes) -> Compressed:
    """Reads foxglove.CompressedImage as JSON; `data` is base64.

    Raises:
        ValueError, KeyError: the message is malformed.
    """
    loaded = json.loads(message)
    data = loaded["data"]
    if not isinstance(data, str):
        raise ValueError("data is not base64 text")
    return Compressed(base64.b64decode(data, validate=True), str(loaded.get("format", "")))


def from_protobuf(message: bytes) -> Compressed:
    """Reads foxglove.CompressedImage as protobuf: data is field 2, format field 3.

    Raises:
        ValueError: the message is malformed.
    """
    at, found = 0, {}
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            _, at = _varint(message, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            # Wire type 2 is a length and so many bytes: text, bytes, and messages inside.
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("a field ends beyond the message")
            found[field] = message[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire}")
    if 2 not in found:
        raise ValueError("no data field")
    return Compressed(found[2], _text(found.get(3, b"")))


def from_cdr(message: bytes) -> Compressed:
    """Reads sensor_msgs/CompressedImage as CDR (ROS 2): stamp, frame_id, format, data.

    Raises:
        ValueError, struct.error: the message is malformed.
    """
    if len(message) < 4:
        raise ValueError("shorter than a CDR header")
    # The lowest bit of CDR's second byte means little-endian.
    order = "<" if message[1] & 1 else ">"
    return _ros(memoryview(message)[4:], 8, order=order, align=4)


def from_ros1(message: bytes) -> Compressed:
    """Reads sensor_msgs/CompressedImage in ROS 1's packing: seq, stamp, frame_id, format, data.

    Raises:
        ValueError, struct.error: the message is malformed.
    """
    return _ros(memoryview(message), 12, order="<", align=1)


def _ros(body: memoryview, at: int, *, order: str, align: int) -> Compressed:
    """Reads frame_id, format and data, each behind its length; CDR aligns the lengths."""
    fields = []
    for _field in ("frame_id", "format", "data"):
        # CDR counts the alignment from the end of its header, which `body` leaves out.
        at += -at % align
        (size,) = struct.unpack_from(f"{order}I", body, at)
        at += 4
        if at + size > len(body):
            raise ValueError(f"a field of {size} bytes ends beyond the message")
        fields.append(bytes(body[at : at + size]))
        at += size
    return Compressed(fields[2], _text(fields[1]))


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "backslashreplace")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        # Protobuf's numbers have at most 64 bits.
        if at >= len(message) or shift > 63:
            raise ValueError("a number ends beyond the message")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
