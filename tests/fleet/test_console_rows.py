"""Rows that an older version, a damaged page or a foreign hand left in the database: no page falls over."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from tests.fleet.consoles import add, serving
from tests.fleet.stores import NOON

from misfire_fleet.store import Store
from misfire_runtime.messages import Clock, Counters, State, Telemetry, Trigger

Numbered = Callable[[int], bytes]
HUGE = int("9" * 401)


@pytest.fixture
def console(store: Store) -> Iterator[str]:
    with serving(store) as address:
        yield address


def change(store: Store, sample: str, **columns: object) -> None:
    """Writes columns of a row past everything that checks them."""
    assigned = ", ".join(f'"{name}" = :{name}' for name in columns)
    with store.database.write() as connection:
        connection.execute(text(f"UPDATE samples SET {assigned} WHERE id = :key"), {"key": sample} | columns)


def change_offer(store: Store, sample: str, **fields: object) -> None:
    with store.database.read() as connection:
        offer = connection.scalar(text("SELECT offer FROM samples WHERE id = :id"), {"id": sample})
    change(store, sample, offer=json.dumps(json.loads(offer) | fields))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


OFFERS: dict[str, dict[str, object]] = {
    "401 digits": {"prediction": {"class": "x", "confidence": HUGE}},
    "digits beyond what Python reads": {"frame": 10**4000},
    "nested": {"prediction": {"class": nested(200)}},
    "wrong types": {"scores": ["entropy"], "trigger": 7, "captured_at": "noon"},
    "not finite": {"scores": {"entropy": float("nan")}, "percentiles": {"entropy": float("inf")}},
    "long names": {"scores": {"x" * 50_000: 0.5}},
    "absent": {"trigger": None, "bundle": None},
}
COLUMNS: dict[str, dict[str, object]] = {
    "broken JSON": {"offer": '{"id": '},
    "no JSON": {"offer": b"\xff\x00\xfe"},
    "a NUL": {"offer": "\x00"},
    "words for numbers": {"size": "many", "width": "wide", "stored_at": "noon", "captured_at": "yesterday"},
    "infinite times": {"stored_at": float("inf"), "captured_at": -1e308},
    "bytes for a name": {"vehicle": b"\xff\xfe", "trigger": b"\xff"},
    "a percentile in words": {"percentile": "high"},
    "a size above all bounds": {"size": 2**62, "width": -1, "random": "maybe"},
}


def noted(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The rows that the log names as unreadable."""
    fields = [each.__dict__["fields"] for each in caplog.records if each.getMessage() == "row_not_shown"]
    return [each["row"] for each in fields]


@pytest.mark.slow
def test_rows_that_cannot_be_shown_are_named_and_the_rest_is_shown(
    console: str, store: Store, jpeg: Numbered, caplog: pytest.LogCaptureFixture
) -> None:
    good = add(store, jpeg(0))
    bad = {kind: add(store, jpeg(100 + number)) for number, kind in enumerate([*OFFERS, *COLUMNS])}
    for kind, fields in OFFERS.items():
        change_offer(store, bad[kind], **fields)
    for kind, columns in COLUMNS.items():
        change(store, bad[kind], **columns)
    pages = ["/uploads", "/uploads?limit=1", "/vehicles", "/vehicles/car-1", "/fragments/totals"]
    programs = ["/api/vehicles", "/api/totals", "/healthz", "/metrics"]
    with caplog.at_level(logging.WARNING):
        for path in [*pages, *programs, *(f"/samples/{key}" for key in bad.values())]:
            assert httpx.get(console + path).status_code == 200, path
        gallery = httpx.get(f"{console}/uploads").text
        rows = {row["id"]: row["unreadable"] for row in httpx.get(f"{console}/api/samples").json()["samples"]}
    assert f"/thumbs/{good}" in gallery and rows.pop(good) == ""
    assert set(rows) == set(bad.values()) and all(rows.values())
    for kind, key in bad.items():
        assert f'data-id="{key}"' in gallery, kind
        assert noted(caplog).count(f"sample {key}") == 1, kind
    assert gallery.count("cannot be shown") == len(bad)


def test_the_text_of_a_database_that_is_no_utf8_fails_no_listing(
    console: str, store: Store, jpeg: Numbered
) -> None:
    bad = add(store, jpeg(1))
    with store.database.write() as connection:
        connection.execute(text("UPDATE samples SET bundle = CAST(x'ff41' AS TEXT)"))
    assert httpx.get(f"{console}/uploads").status_code == 200
    assert httpx.get(f"{console}/api/samples/{bad}").json()["bundle"] == "\\xffA"


def test_a_heartbeat_and_a_state_that_cannot_be_read_are_named(
    console: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    beat = Telemetry(at=Clock(wall=NOON, monotonic=0, boot_id=""), bundle="x@1", counters=Counters(frames=7))
    for name in ("car-1", "car-2", "car-3"):
        store.vehicles.record_states({name: State(online=True)})
        store.vehicles.record_telemetry([(name, beat)])
    poison = beat.model_dump(mode="json")
    poison["counters"]["pending"] = HUGE
    with store.database.write() as connection:
        connection.execute(
            text("UPDATE vehicles SET telemetry = :bad WHERE name = 'car-2'"), {"bad": json.dumps(poison)}
        )
        connection.execute(text("UPDATE telemetry SET payload = '[' WHERE vehicle = 'car-2'"))
        connection.execute(text("UPDATE vehicles SET state = '{', state_at = 'x' WHERE name = 'car-3'"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for path in ("/vehicles", "/vehicles/car-1", "/vehicles/car-2", "/vehicles/car-3", "/metrics"):
                assert httpx.get(console + path).status_code == 200, path
    assert "cannot be shown: telemetry: counters.pending" in httpx.get(f"{console}/vehicles/car-2").text
    listed = {
        each["name"]: each["concerns"] for each in httpx.get(f"{console}/api/vehicles").json()["vehicles"]
    }
    assert listed["car-1"] == [] and len(listed["car-2"]) == len(listed["car-3"]) == 1
    for name in ("car-2", "car-3"):
        assert noted(caplog).count(f"vehicle {name}") == 1
    assert store.vehicles.heartbeats("car-2") == [] and len(store.vehicles.heartbeats("car-1")) == 1


def test_values_within_the_bounds_do_not_spoil_a_page(console: str, store: Store, jpeg: Numbered) -> None:
    sample = add(
        store,
        jpeg(1),
        trigger=Trigger(name="gnip\u202eping", reason="bell \x07 and line\u2028separator"),
        scores={"large": 1e308, "small": -1e308},
        percentiles={"large": 1e308},
        prediction={"class": "c", "confidence": 2**63 - 1, "boxes": [[0.123456789] * 60] * 60},
        context={"speed": 1e300},
    )
    for path in ("/uploads", f"/samples/{sample}"):
        page = httpx.get(console + path).text.replace('value="gnip\u202eping"', "")
        assert "\u202e" not in page and "\x07" not in page and "\\u202e" in page
        assert "1e+308" in page and "0" * 100 not in page
        assert len(page) < 20_000


@pytest.mark.parametrize("name", ["..", ".", "a/b", "?", "%2e%2e"])
def test_the_page_of_a_vehicle_with_an_odd_name_is_reached_by_its_link(
    name: str, console: str, store: Store, jpeg: Numbered
) -> None:
    bad = add(store, jpeg(1))
    change(store, bad, vehicle=name)
    listing = httpx.get(f"{console}/vehicles").text
    (link,) = {part.split('"')[0] for part in listing.split('href="')[1:] if part.startswith("/vehicle?")}
    assert "<h1>" in httpx.get(console + link).text and name in httpx.get(console + link).text
    assert httpx.get(console + link).status_code == 200
