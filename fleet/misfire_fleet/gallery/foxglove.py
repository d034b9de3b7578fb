"""Writes samples as an MCAP file that Foxglove opens: pictures or clips, boxes over them, and scores.

| topic             | schema                     |                                              |
|-------------------|----------------------------|----------------------------------------------|
| VEHICLE/image     | foxglove.CompressedImage   | a picture as it was uploaded, or frames of a clip of JPEG |
| VEHICLE/video     | foxglove.CompressedVideo   | frames of a clip of H.264, H.265, VP9 or AV1 |
| VEHICLE/answer    | foxglove.ImageAnnotations  | boxes and joints of the vehicle's answer     |
| VEHICLE/label     | foxglove.ImageAnnotations  | boxes and points of the label                |
| VEHICLE/sample    | misfire.Sample             | id, scores, percentiles, trigger, context    |

All messages are JSON. Times are those of the capture. Nothing is decoded here: frames of clips are taken
apart in a decoder's process.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

from misfire_fleet.decoding.headers import VIDEOS
from misfire_fleet.errors import SampleGoneError
from misfire_fleet.labels.answers import answer_of
from misfire_fleet.labels.content import BoxesLabel, Label, PointsLabel
from misfire_fleet.store.records import StoredSample
from misfire_runtime.errors import ImageError, MissingExtraError

Packets = Callable[[bytes, str], tuple[str, list[tuple[int, bytes]]]]
"""Takes a clip apart: see `Decoder.packets`."""
_VIDEO = {"h264": "h264", "hevc": "h265", "vp9": "vp9", "av1": "av1"}
_PICTURE = {"image/jpeg": "jpeg", "image/png": "png", "image/webp": "webp"}
_LINE_LOOP, _POINTS = 2, 1
_SURE, _DOUBTFUL, _LABEL = (0.22, 0.63, 1.0, 1.0), (1.0, 0.48, 0.2, 1.0), (0.32, 0.82, 0.45, 1.0)
_DOUBT = 0.5
_NOT_A_TOPIC = re.compile(r"[^A-Za-z0-9_.-]+")
_TIME = {
    "type": "object",
    "title": "time",
    "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}},
}
_POINT = {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}}
_COLOUR = {"type": "object", "properties": {each: {"type": "number"} for each in "rgba"}}


def _table(title: str, **properties: Any) -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "type": "object",
        "properties": properties,
    }


def _list_of(**properties: Any) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "object", "properties": properties}}


_BYTES = {"type": "string", "contentEncoding": "base64"}
_WORDS, _NUMBER, _ANY = {"type": "string"}, {"type": "number"}, {"type": "object"}
_OUTLINE = {"thickness": _NUMBER, "fill_color": _COLOUR, "outline_color": _COLOUR}
_PICTURES = {"timestamp": _TIME, "frame_id": _WORDS, "data": _BYTES, "format": _WORDS}
_SCHEMAS: Mapping[str, dict[str, Any]] = {
    each["title"]: each
    for each in (
        _table("foxglove.CompressedImage", **_PICTURES),
        _table("foxglove.CompressedVideo", **_PICTURES),
        _table(
            "foxglove.ImageAnnotations",
            circles=_list_of(timestamp=_TIME, position=_POINT, diameter=_NUMBER, **_OUTLINE),
            points=_list_of(
                timestamp=_TIME,
                type={"type": "integer"},
                points={"type": "array", "items": _POINT},
                outline_colors={"type": "array", "items": _COLOUR},
                **_OUTLINE,
            ),
            texts=_list_of(
                timestamp=_TIME,
                position=_POINT,
                text=_WORDS,
                font_size=_NUMBER,
                text_color=_COLOUR,
                background_color=_COLOUR,
            ),
        ),
        _table(
            "misfire.Sample",
            timestamp=_TIME,
            random={"type": "boolean"},
            **dict.fromkeys(("id", "vehicle", "bundle", "trigger", "reason", "media_type"), _WORDS),
            **dict.fromkeys(("scores", "percentiles", "context", "prediction"), _ANY),
        ),
    )
}


class Recording:
    """Writes samples to one MCAP file. `close` writes its index; without it, readers scan the file.

    Args:
        stream: opened for writing bytes.
        packets: takes clips apart.

    Raises:
        MissingExtraError: the package mcap is not installed.
    """

    def __init__(self, stream: IO[bytes], *, packets: Packets) -> None:
        try:
            from mcap.writer import CompressionType, Writer
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "an MCAP file needs mcap, which is not installed: pip install 'misfire[replay]'"
            ) from error
        # Pictures are compressed already.
        self._writer: Any = Writer(stream, compression=CompressionType.NONE)
        self._writer.start("", "misfire")
        self._packets = packets
        self._schemas: dict[str, int] = {}
        self._channels: dict[tuple[str, str], int] = {}

    def add(self, sample: StoredSample, data: bytes, *, label: Label | None = None) -> None:
        """Writes a sample. Raises ImageError if it is a clip whose frames cannot be taken apart."""
        at = round(1e9 * sample.captured_at)
        who = _NOT_A_TOPIC.sub("_", sample.vehicle) or "vehicle"
        for topic, schema, time_ns, picture in self._pictures(sample, data, at):
            self._write(f"{who}/{topic}", schema, time_ns, picture)
        answer = answer_of(sample)
        if answer is not None:
            doubts = [None if p is None else 1 - p for p in answer.p_correct]
            self._annotate(f"{who}/answer", at, answer.label, doubts, _SURE)
        if label is not None:
            self._annotate(f"{who}/label", at, label, [], _LABEL)
        offer = sample.offer
        self._write(
            f"{who}/sample",
            "misfire.Sample",
            at,
            {
                "id": sample.id,
                "vehicle": sample.vehicle,
                "bundle": sample.bundle,
                "trigger": sample.trigger,
                "reason": offer.trigger.reason,
                "random": sample.random,
                "scores": dict(sample.scores),
                "percentiles": dict(sample.percentiles),
                "context": dict(offer.context),
                "prediction": dict(sample.prediction),
                "media_type": sample.media_type,
            },
        )

    def close(self) -> None:
        """Writes the index and ends the file."""
        self._writer.finish()

    def _pictures(
        self, sample: StoredSample, data: bytes, at: int
    ) -> Iterable[tuple[str, str, int, dict[str, Any]]]:
        if sample.media_type not in VIDEOS:
            yield (
                "image",
                "foxglove.CompressedImage",
                at,
                _encoded(sample, data, _PICTURE.get(sample.media_type, "")),
            )
            return
        codec, frames = self._packets(data, sample.media_type)
        for offset, frame in frames:
            if codec == "mjpeg":
                yield "image", "foxglove.CompressedImage", at + offset, _encoded(sample, frame, "jpeg")
            else:
                yield "video", "foxglove.CompressedVideo", at + offset, _encoded(sample, frame, _VIDEO[codec])

    def _annotate(
        self, topic: str, at: int, label: Label, doubts: list[float | None], colour: tuple[float, ...]
    ) -> None:
        shapes: list[dict[str, Any]] = []
        texts: list[dict[str, Any]] = []
        if isinstance(label, BoxesLabel):
            for place, box in enumerate(label.boxes):
                doubt = doubts[place] if place < len(doubts) else None
                tint = _DOUBTFUL if doubt is not None and doubt > _DOUBT else colour
                corners = [(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1)]
                shapes.append(_shape(at, _LINE_LOOP, corners, tint))
                words = box.name if doubt is None else f"{box.name} {100 * (1 - doubt):.0f} %"
                texts.append(_text(at, (box.x0, box.y0), words, tint))
        elif isinstance(label, PointsLabel):
            seen = [(point.x, point.y) for point in label.points if point.visible]
            shapes.append(_shape(at, _POINTS, seen, colour))
        else:
            return
        self._write(topic, "foxglove.ImageAnnotations", at, {"circles": [], "points": shapes, "texts": texts})

    def _write(self, topic: str, schema: str, at: int, message: dict[str, Any]) -> None:
        key = (topic, schema)
        if key not in self._channels:
            if schema not in self._schemas:
                data = json.dumps(_SCHEMAS[schema]).encode()
                self._schemas[schema] = self._writer.register_schema(schema, "jsonschema", data)
            self._channels[key] = self._writer.register_channel(f"/{topic}", "json", self._schemas[schema])
        document = message if schema == "foxglove.ImageAnnotations" else {"timestamp": _time(at), **message}
        body = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        self._writer.add_message(self._channels[key], at, body, at)


def write_recording(
    samples: Iterable[StoredSample],
    stream: IO[bytes],
    *,
    read: Callable[[str], bytes],
    packets: Packets,
    label_of: Callable[[str], Label | None],
) -> tuple[int, list[str]]:
    """Writes samples as one MCAP file.

    Args:
        samples: consumed once.
        stream: opened for writing bytes.
        read: returns a sample's bytes. Raises SampleGoneError.
        packets: takes clips apart.
        label_of: returns a sample's label.

    Returns:
        How many were written, and a sentence for each that was not.

    Raises:
        MissingExtraError: the package mcap is not installed.
    """
    recording = Recording(stream, packets=packets)
    written, left_out = 0, []
    for sample in samples:
        if sample.unreadable:
            left_out.append(f"sample {sample.id[:16]}: {sample.unreadable}")
            continue
        try:
            recording.add(sample, read(sample.id), label=label_of(sample.id))
            written += 1
        except (ImageError, SampleGoneError, ValueError) as error:
            left_out.append(f"sample {sample.id[:16]}: {error}")
    recording.close()
    return written, left_out


def _encoded(sample: StoredSample, data: bytes, form: str) -> dict[str, Any]:
    return {"frame_id": sample.vehicle, "data": base64.b64encode(data).decode("ascii"), "format": form}


def _shape(
    at: int, kind: int, places: list[tuple[float, float]], colour: tuple[float, ...]
) -> dict[str, Any]:
    return {
        "timestamp": _time(at),
        "type": kind,
        "points": [{"x": x, "y": y} for x, y in places],
        "outline_color": _tint(colour),
        "outline_colors": [],
        "fill_color": _tint((0, 0, 0, 0)),
        "thickness": 3,
    }


def _text(at: int, place: tuple[float, float], words: str, colour: tuple[float, ...]) -> dict[str, Any]:
    return {
        "timestamp": _time(at),
        "position": {"x": place[0], "y": place[1]},
        "text": words,
        "font_size": 14,
        "text_color": _tint(colour),
        "background_color": _tint((0, 0, 0, 0.6)),
    }


def _tint(colour: tuple[float, ...]) -> dict[str, float]:
    return dict(zip("rgba", colour, strict=True))


def _time(at: int) -> dict[str, int]:
    return {"sec": at // 10**9, "nsec": at % 10**9}
