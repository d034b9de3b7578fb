"""Defines the topics and payloads between vehicles and the fleet (docs/protocol.md).

vehicle --offer--> collectors;  collector --reply: send | stored | declined | rejected | busy--> vehicle
vehicle --data/{collector}/{sample}/{offset}--> that collector;  and state, telemetry, desired, reported

Every payload is JSON, except the raw chunks. Unknown fields are ignored; an unknown version is an error, and
the sender gets an answer. A sample's id is the SHA-256 of its bytes, so a repeated message does no harm.
Every number, string, key and list is bounded, so code that stores or shows a message never meets an integer
of a thousand digits or a time outside of the calendar.
"""

from __future__ import annotations

import base64
import math
import re
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from misfire_runtime.errors import MessageError

PROTOCOL_VERSION: Literal[1] = 1
MAX_JSON_BYTES = 64 * 1024
MAX_SAMPLE_BYTES = 256 * 1024 * 1024
DEFAULT_CHUNK_BYTES = 64 * 1024
MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 1024, 120 * 1024
"""Bounds of `chunk_bytes`: a vehicle ignores a `send` with less, and a collector never requests more.

Each chunk costs a topic and an acknowledgement, so smaller ones would waste most of the link.
"""
MAX_INTEGER = 2**63 - 1
"""The largest integer that SQLite and PostgreSQL can store."""
MAX_KEY = 128
MAX_TEXT = 256
FIRST_DATE, LAST_DATE = -62_135_596_800, 253_402_300_799
"""The years 1 and 9999, in seconds since 1970: the range of Python's datetime."""
_MAX_DEPTH = 16
"""Nesting of a desired configuration; far below the depth at which a recursive function fails."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
SampleId = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
BundleLabel = Annotated[str, Field(max_length=130)]
"""`name@version` of a bundle."""
Key = Annotated[str, Field(max_length=MAX_KEY)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
WallTime = Annotated[float, Field(ge=FIRST_DATE, le=LAST_DATE)]
"""Seconds since 1970."""
Sketch = Annotated[str, Field(max_length=MAX_JSON_BYTES)]

_Integer = Annotated[int, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)]
_Scalar = Text | bool | _Integer | float | None
_Row = Annotated[list[_Scalar], Field(max_length=64)]
_Record = Annotated[dict[Key, _Scalar | Annotated[list[_Scalar], Field(max_length=8)]], Field(max_length=8)]
_Rows = Annotated[list[_Scalar | _Row | _Record], Field(max_length=64)]
_Shares = Annotated[dict[Text, _Scalar], Field(max_length=64)]
Answer = _Scalar | _Rows | _Shares
"""A value of a prediction: a scalar, shares by class, or a list of at most 64 numbers, points or boxes.

A box is a record of at most 8 fields: {"class": "car", "score": 0.91, "p": 0.8, "box": [x0, y0, x1, y1]}.
"""


def _bounded(value: Any, depth: int = 0) -> None:
    """Raises ValueError if a key, a number or the depth of `value` (parsed JSON) is out of bounds."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    if isinstance(value, dict):
        if any(len(key) > MAX_KEY for key in value):
            raise ValueError(f"a key has more than {MAX_KEY} characters")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _bounded(item, depth + 1)
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ValueError(f"an integer is above {MAX_INTEGER}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is not finite")


def _bounded_table(table: dict[str, Any]) -> dict[str, Any]:
    _bounded(table)
    return table


JsonTable = Annotated[dict[str, Any], Field(max_length=64), AfterValidator(_bounded_table)]
"""Nested JSON: its depth, keys and numbers are bounded here, its size by that of the message."""


class Message(BaseModel):
    """Ignores unknown fields and refuses numbers that are not finite; the base class of all payloads."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Clock(Message):
    """Gives a moment by two clocks: wall seconds since 1970, and monotonic seconds of the boot `boot_id`."""

    wall: WallTime
    monotonic: float
    boot_id: Annotated[str, Field(max_length=64)]


class Trigger(Message):
    """Says why a sample was selected. Statistics are computed from the unbiased stream (`random`)."""

    name: Annotated[str, Field(max_length=64)]
    random: bool = False
    reason: Text = ""
    rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """The probability that a frame is taken into the random stream; statistics weight by its inverse."""


class Offer(Message):
    """Announces a sample; its bytes follow only after a collector's `send`. About 1 KiB."""

    v: Literal[1] = PROTOCOL_VERSION
    id: SampleId
    vehicle: Name
    size: Annotated[int, Field(gt=0, le=MAX_SAMPLE_BYTES)]
    media_type: Annotated[str, Field(max_length=64)] = "image/jpeg"
    captured_at: Clock
    bundle: BundleLabel
    """The bundle that scored it."""
    scores: Annotated[dict[Key, float], Field(max_length=64)]
    percentiles: Annotated[dict[Key, float], Field(max_length=64)] = {}
    """The percentile of each score in its calibration, 0..1."""
    trigger: Trigger
    prediction: Annotated[dict[Key, Answer], Field(max_length=16)] = {}
    """A summary of the model's answer, such as {"class": "green", "confidence": 0.93}."""
    embedding: Annotated[str, Field(max_length=8192)] | None = None
    """float16, little-endian, base64: see `pack_embedding`."""
    context: Annotated[dict[Key, Text | float | bool], Field(max_length=64)] = {}
    privacy: Annotated[list[Key], Field(max_length=16)] = []
    """Changes made to the image before it was written, such as "blur:faces"."""
    source: Text = ""
    frame: Count = 0
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    recorded_at: Annotated[float, Field(ge=0, le=LAST_DATE)] | None = None
    """Seconds since 1970 when the frame was recorded, if it was read from a recording with a date.

    Absent for live sources: their `captured_at` is the time of capture. In a replay, `captured_at` is the
    time of the replay.
    """
    position_s: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Seconds from the start of the recording that the frame was read from."""


class Send(Message):
    """Requests the bytes from `offset` on, in chunks of at most `chunk_bytes`."""

    verdict: Literal["send"] = "send"
    id: SampleId
    collector: Name
    offset: Annotated[int, Field(ge=0, le=MAX_SAMPLE_BYTES)] = 0
    chunk_bytes: Annotated[int, Field(gt=0, le=MAX_SAMPLE_BYTES)] = DEFAULT_CHUNK_BYTES


class Stored(Message):
    """Confirms that blob and row are durable; the vehicle may delete the sample."""

    verdict: Literal["stored"] = "stored"
    id: SampleId


class Declined(Message):
    """Refuses an unwanted sample (quota, near-duplicate); the vehicle drops it and gets its budget back."""

    verdict: Literal["declined"] = "declined"
    id: SampleId
    reason: Text


class Rejected(Message):
    """Refuses an invalid sample or offer for good; the vehicle drops it and counts the reason."""

    verdict: Literal["rejected"] = "rejected"
    id: SampleId
    reason: Text


class Busy(Message):
    """Puts a sample off: the vehicle offers it again after `retry_after_s`."""

    verdict: Literal["busy"] = "busy"
    id: SampleId
    retry_after_s: Annotated[float, Field(gt=0, le=86400)]
    reason: Text = ""


Verdict = Annotated[Send | Stored | Declined | Rejected | Busy, Field(discriminator="verdict")]


class Reply(Message):
    """Holds verdicts for one vehicle."""

    v: Literal[1] = PROTOCOL_VERSION
    verdicts: Annotated[list[Verdict], Field(max_length=256)]
    offer_again: bool = False
    """Ends the hold of a vehicle that stopped offering after many rejections in a row."""


class Counters(Message):
    """Counts frames and samples of a spool; captured = stored + pending + declined + rejected + evicted."""

    frames: Count = 0
    frames_dropped: Count = 0
    frames_unreadable: Count = 0
    captured: Count = 0
    pending: Count = 0
    stored: Count = 0
    declined: Count = 0
    rejected: Count = 0
    evicted: Count = 0
    bytes_stored: Count = 0
    bytes_sent: Count = 0
    lost: Annotated[dict[Key, Count], Field(max_length=64)] = {}
    """Selected frames that never became a sample, by reason ("disk full"); not part of `captured`."""

    @property
    def accounted(self) -> int:
        """Returns the number of samples with a known outcome; equals `captured` if the counters add up."""
        return self.stored + self.pending + self.declined + self.rejected + self.evicted

    @property
    def balance(self) -> str:
        """Returns the numbers behind `captured` as text."""
        return (
            f"{self.captured} captured = {self.stored} stored + {self.pending} pending + "
            f"{self.declined} declined + {self.rejected} rejected + {self.evicted} evicted"
        )


class State(Message):
    """Reports the start of a vehicle's session (retained) and its end (last will, retained)."""

    v: Literal[1] = PROTOCOL_VERSION
    online: bool
    boot_id: Annotated[str, Field(max_length=64)] = ""
    session: Count = 0
    bundle: BundleLabel = ""
    software: Key = ""


class Place(Message):
    """Gives where a vehicle is: a position (WGS 84, degrees), a region's name, or both."""

    lat: Annotated[float, Field(ge=-90, le=90)] | None = None
    lon: Annotated[float, Field(ge=-180, le=180)] | None = None
    region: Text = ""


class Telemetry(Message):
    """Reports health. `sketches` has a mergeable DDSketch of each score on all frames (protobuf, base64)."""

    v: Literal[1] = PROTOCOL_VERSION
    at: Clock
    bundle: BundleLabel
    counters: Counters
    disk_free_bytes: Count = 0
    latency_ms_p50: float = 0.0
    latency_ms_p99: float = 0.0
    thresholds: Annotated[dict[Key, float], Field(max_length=1024)] = {}
    sketches: Annotated[dict[Key, Sketch], Field(max_length=64)] = {}
    hold: Text = ""
    """Why the vehicle stopped offering samples and waits for `offer_again`; empty if it offers."""
    pending_bytes: Count | None = None
    """Size of the samples that wait in the spool."""
    pending_age_s: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Age of the oldest of them; 0 if none waits."""
    degradation: Annotated[int, Field(ge=0, le=99)] = 0
    """Step of the degradation ladder; 0 is normal."""
    place: Place | None = None
    """Where the vehicle is, from its context; absent if it does not know."""


class Desired(Message):
    """Requests a configuration (retained); a vehicle applies it if `version` is higher than before."""

    v: Literal[1] = PROTOCOL_VERSION
    version: Count
    bundle: BundleLabel | None = None
    config: JsonTable = {}


class Reported(Message):
    """Answers the desired version (retained)."""

    v: Literal[1] = PROTOCOL_VERSION
    version: Count
    bundle: BundleLabel
    accepted: bool = True
    reason: Annotated[str, Field(max_length=512)] = ""


M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """Returns a message as compact JSON."""
    return message.model_dump_json(exclude_defaults=False).encode()


def decode(kind: type[M], payload: bytes) -> M:
    """Parses and validates a payload.

    Args:
        kind: the expected message type.
        payload: JSON.

    Raises:
        MessageError: it is malformed, larger than 64 KiB, or of an unknown version; the message names the
            field.
    """
    if len(payload) > MAX_JSON_BYTES:
        raise MessageError(f"{kind.__name__}: {len(payload)} bytes is above the limit of {MAX_JSON_BYTES}")
    try:
        return _adapter(kind).validate_json(payload)
    except ValidationError as error:
        first = _telling(error)
        field = ".".join(str(part) for part in first["loc"])[:MAX_KEY]
        if field == "v":
            raise MessageError(f"{kind.__name__}: protocol version is not {PROTOCOL_VERSION}") from error
        raise MessageError(f"{kind.__name__}: {field or 'payload'}: {first['msg']}") from error


def _telling(error: ValidationError) -> Any:
    """Returns the first error; for a union, that of the member whose type the value has."""
    errors = error.errors(include_url=False, include_input=False)
    same = [e for e in errors if e["loc"][:2] == errors[0]["loc"][:2]]
    return next((e for e in same if not e["type"].endswith("_type")), errors[0])


_ADAPTERS: dict[type[Message], TypeAdapter[Any]] = {}


def _adapter(kind: type[M]) -> TypeAdapter[M]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def pack_embedding(embedding: NDArray[np.floating[Any]]) -> str:
    """Returns an embedding, [D] floats, as base64 of little-endian float16."""
    return base64.b64encode(np.asarray(embedding, "<f2").tobytes()).decode("ascii")


def unpack_embedding(text: str) -> NDArray[np.float32]:
    """Returns the embedding, [D] float32, of a text made by `pack_embedding`.

    Raises:
        MessageError: the text is not base64 of float16, or a value is not finite.
    """
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), "<f2").astype(np.float32)
    except ValueError as error:
        raise MessageError(f"embedding: {error}") from error
    if not np.isfinite(values).all():
        raise MessageError("embedding: not finite")
    return values


ROOT = "misfire/v1"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Topics:
    """Builds the topics of one vehicle.

    Args:
        fleet: name of the fleet, [A-Za-z0-9_.-]{1,64}.
        vehicle: name of the vehicle, likewise.

    Raises:
        MessageError: a name is invalid.
    """

    def __init__(self, fleet: str, vehicle: str) -> None:
        for name in (fleet, vehicle):
            if not _NAME.fullmatch(name):
                raise MessageError(f"{name!r} cannot be in a topic; allowed: letters, digits, '_', '.', '-'")
        self.base = f"{ROOT}/{fleet}/{vehicle}"

    @property
    def offer(self) -> str:
        """Returns the topic of offers (from the vehicle, QoS 1)."""
        return f"{self.base}/offer"

    @property
    def reply(self) -> str:
        """Returns the topic of replies (to the vehicle, QoS 1)."""
        return f"{self.base}/reply"

    @property
    def state(self) -> str:
        """Returns the topic of the state (from the vehicle, retained; also that of its last will)."""
        return f"{self.base}/state"

    @property
    def telemetry(self) -> str:
        """Returns the topic of heartbeats (from the vehicle)."""
        return f"{self.base}/telemetry"

    @property
    def desired(self) -> str:
        """Returns the topic of the desired configuration (to the vehicle, retained)."""
        return f"{self.base}/desired"

    @property
    def reported(self) -> str:
        """Returns the topic of answers to it (from the vehicle, retained)."""
        return f"{self.base}/reported"

    def data(self, collector: str, sample: str, offset: int) -> str:
        """Returns the topic of a chunk (from the vehicle, QoS 1): raw bytes of `sample` from `offset` on."""
        return f"{self.base}/data/{collector}/{sample}/{offset}"
