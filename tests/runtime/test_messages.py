"""Messages from others: everything in them is bounded, and what version 0.1.0 sends is still taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from misfire_runtime.errors import MessageError
from misfire_runtime.messages import (
    Desired,
    Message,
    Offer,
    Reply,
    Reported,
    State,
    Telemetry,
    decode,
    encode,
)

HUGE = 10**400
CLOCK = {"wall": 1_790_000_000.5, "monotonic": 12.25, "boot_id": "b" * 36}
OFFER: dict[str, Any] = {
    "v": 1,
    "id": "0" * 64,
    "vehicle": "bus-12",
    "size": 1000,
    "captured_at": CLOCK,
    "bundle": "lights@1.0.0",
    "scores": {"msp": 0.5},
    "trigger": {"name": "target-rate", "random": False, "reason": "", "rate": None},
}
TELEMETRY: dict[str, Any] = {"v": 1, "at": CLOCK, "bundle": "lights@1.0.0", "counters": {"frames": 3}}


def offer(**fields: Any) -> Offer:
    """Decodes the offer above with these fields in place of its own."""
    return decode(Offer, json.dumps({**OFFER, **fields}).encode())


def unbounded(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """The paths in a JSON Schema at which a value of any size is allowed."""
    if "const" in schema or "enum" in schema:
        return
    needs = {
        "integer": ({"maximum", "exclusiveMaximum"}, {"minimum", "exclusiveMinimum"}),
        "string": ({"maxLength", "pattern"},),
        "array": ({"maxItems"},),
    }
    kind = schema.get("type", "")
    if any(not need & schema.keys() for need in needs.get(kind, ())):
        yield f"{path} ({kind})"
    if kind == "object" and "properties" not in schema and "maxProperties" not in schema:
        yield f"{path} (entries)"
    if isinstance(schema.get("additionalProperties"), dict) and "propertyNames" not in schema:
        yield f"{path} (keys)"
    for name, part in {**schema.get("properties", {}), **schema.get("$defs", {})}.items():
        yield from unbounded(part, f"{path}.{name}")
    for name in ("items", "additionalProperties", "propertyNames"):
        if isinstance(schema.get(name), dict):
            yield from unbounded(schema[name], f"{path}.{name}")
    for part in schema.get("anyOf", []):
        yield from unbounded(part, path)


@pytest.mark.parametrize("kind", [Offer, Reply, State, Telemetry, Desired, Reported])
def test_every_field_of_every_message_is_bounded(kind: type[Message]) -> None:
    assert list(unbounded(kind.model_json_schema(), kind.__name__)) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"prediction": {"class": "x", "confidence": HUGE}},
        {"prediction": {"values": [HUGE]}},
        {"prediction": {"class": float("nan")}},
        {"prediction": {"shares": {"road": float("inf")}}},
        {"prediction": {"points": [[0.5, float("nan"), 0.1]]}},
        {"prediction": {"deep": [[[1]]]}},
        {"prediction": {"class": "x" * 5000}},
        {"prediction": {"k" * 5000: 1}},
        {"prediction": {"values": [0.5] * 65}},
        {"prediction": {"boxes": [{"class": "car", "box": [0, 0, 1, 1]}] * 65}},
        {"prediction": {"boxes": [{"class": "x" * 5000}]}},
        {"prediction": {"boxes": [{"box": [0.5] * 9}]}},
        {"prediction": {"boxes": [{"box": [0.5, 0.5, float("nan"), 1]}]}},
        {"prediction": {"boxes": [{"score": HUGE}]}},
        {"prediction": {"boxes": [{str(key): 1 for key in range(9)}]}},
        {"prediction": {"boxes": [{"box": [[0.5]]}]}},
        {"scores": {"s" * 5000: 0.5}},
        {"scores": {"msp": HUGE}},
        {"context": {"speed": HUGE}},
        {"context": {"place": "x" * 5000}},
        {"context": {"k" * 5000: True}},
        {"privacy": ["x" * 5000]},
        {"frame": HUGE},
        {"frame": -1},
        {"captured_at": {**CLOCK, "wall": 1e308}},
        {"captured_at": {**CLOCK, "wall": HUGE}},
        {"trigger": {"name": "random", "random": True, "rate": 1e300}},
    ],
)
def test_an_offer_beyond_the_bounds_is_refused_and_the_field_named(fields: dict[str, Any]) -> None:
    with pytest.raises(MessageError, match=f"Offer: {next(iter(fields))}") as caught:
        offer(**fields)
    assert len(str(caught.value)) < 512


@pytest.mark.parametrize("name", ["frames", "pending", "bytes_sent"])
def test_a_counter_beyond_the_database_s_integers_is_refused(name: str) -> None:
    beat = {**TELEMETRY, "counters": {name: HUGE}}
    with pytest.raises(MessageError, match=f"counters.{name}: Input should be less than"):
        decode(Telemetry, json.dumps(beat).encode())


def deep(levels: int) -> dict[str, Any]:
    """A table in a table in a table."""
    return {} if levels == 0 else {"t": deep(levels - 1)}


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"limits": {"samples_per_day": HUGE}}, "an integer is above"),
        ({"random": {"rate": float("inf")}}, "not finite"),
        ({"triggers": {"k" * 5000: {}}}, "a key has more than 128 characters"),
        ({"triggers": [deep(100)]}, "nested more than 16 deep"),
    ],
)
def test_a_desired_configuration_is_bounded_at_every_depth(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(MessageError, match=problem):
        decode(Desired, json.dumps({"v": 1, "version": 1, "config": config}).encode())


def test_the_reason_names_what_is_wrong_with_a_value_of_several_types() -> None:
    with pytest.raises(MessageError, match="less than or equal to 9223372036854775807"):
        offer(prediction={"confidence": HUGE})


@pytest.mark.parametrize(
    "prediction",
    [
        {"class": "green", "confidence": 0.93},
        {"values": [0.5] * 63 + [None]},
        {"points": [[0.8125, 0.375, 0.9], [0.1, 0.2, None]] * 32},
        {"shares": {"road": 0.5, "sky": 0.5}},
        {"boxes": [{"class": "car", "score": 0.9, "p": 0.8, "box": [0, 1.5, 2, 3]}] * 64, "size": [4, 4]},
        {"class": "7", "confidence": 1.0, "count": 3, "night": True, "note": None},
        {},
    ],
)
def test_predictions_come_through_unchanged(prediction: dict[str, Any]) -> None:
    taken = offer(prediction=prediction).prediction
    assert json.dumps(taken) == json.dumps(prediction)


def test_an_offer_may_have_fields_that_this_version_does_not_know() -> None:
    fields = json.loads(encode(offer()))
    fields["lens"] = {"cover": "wet"}
    fields["captured_at"]["leap"] = True
    assert decode(Offer, json.dumps(fields).encode()) == offer()


def test_a_heartbeat_of_version_0_1_0_is_taken() -> None:
    counters = {"frames": 2**62, "bytes_stored": 0, "captured": 7, "pending": 7}
    beat = {
        **TELEMETRY,
        "counters": counters,
        "disk_free_bytes": 2**50,
        "latency_ms_p50": 3.5,
        "thresholds": {f"trigger-{n}": 0.5 for n in range(100)},
        "sketches": {"msp": "A" * 20_000},
    }
    assert decode(Telemetry, json.dumps(beat).encode()).counters.frames == 2**62
