"""The fleet's rows, their order and filters, histories, drift, and events for open pages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update
from tests.fleet.conftest import eventually
from tests.fleet.consoles import OPEN

from misfire_fleet.console.app import create_app
from misfire_fleet.console.board import live
from misfire_fleet.console.board.live import Broadcaster, TooManyClientsError
from misfire_fleet.console.board.rows import RowQuery, VehicleRow
from misfire_fleet.simulate.seeding.plan import SeedPlan
from misfire_fleet.simulate.seeding.seeding import seed_store
from misfire_fleet.store import Store
from misfire_fleet.store.schema import vehicles
from misfire_fleet.truth.rollups import roll_up


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open_folder(tmp_path_factory.mktemp("fleet")) as store:
        seed_store(store, SeedPlan(vehicles=10, samples=150, days=3, labels=0.9, verdicts=1, seed=3))
        while roll_up(store):
            pass
        yield store


@pytest.fixture(scope="module")
def client(seeded: Store) -> Iterator[TestClient]:
    with TestClient(create_app(seeded, access=OPEN), base_url="http://localhost") as opened:
        yield opened


def test_rows_are_filtered_and_sorted() -> None:
    rows = [
        VehicleRow("b", "online", bundle="x@1", day_samples=5, seen_at=3.0),
        VehicleRow("a", "silent", bundle="x@1", day_samples=9, seen_at=None, drops={"evicted": 4}),
        VehicleRow("C", "offline", region="north", pending_bytes=7),
    ]

    def names(**asked: Any) -> str:
        return "".join(row.name for row in RowQuery(**asked).of(rows))

    assert names() == "Cab" and names(sort="-name") == "baC"
    assert names(sort="-rate") == "abC" and names(sort="-drops")[0] == "a" and names(sort="-spool")[0] == "C"
    assert names(sort="state") == "baC" and names(sort="-seen")[0] == "b"
    assert names(state="silent") == "a" and names(bundle="x@1") == "ab" and names(find="c") == "C"
    assert names(region="north") == "C"


def test_the_page_has_every_vehicle_and_the_api_says_the_same(client: TestClient) -> None:
    answer = client.get("/api/fleet").json()
    page = client.get("/").text
    assert answer["known"] == answer["matching"] == len(answer["vehicles"]) == 10
    for vehicle in answer["vehicles"]:
        assert f'data-name="{vehicle["name"]}"' in page
        assert client.get(f"/api/vehicles/{vehicle['name']}").json()["stored"] == vehicle["stored"]
    assert sum(vehicle["stored"] for vehicle in answer["vehicles"]) == 150
    assert {region["name"] for region in answer["regions"]} >= {"hamburg", "lyon"}
    assert client.get("/api/fleet", params={"state": "online", "limit": 1}).json()["matching"] < 10
    assert "Next 2" in client.get("/?limit=2").text


@pytest.mark.parametrize(
    "query", ["state=gone", "sort=colour", "limit=0", "offset=-1", "find=%00", "limit=" + "9" * 401]
)
def test_a_query_that_cannot_be_read_names_the_field(client: TestClient, query: str) -> None:
    for path in ("/", "/api/fleet"):
        answer = client.get(f"{path}?{query}")
        assert answer.status_code == 422 and query.partition("=")[0] in answer.text


def test_old_addresses_of_uploads_still_lead_there(client: TestClient) -> None:
    answer = client.get("/?vehicle=ham-001&stream=random", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/uploads?vehicle=ham-001&stream=random")


def test_rates_appear_when_they_are_computed(client: TestClient) -> None:
    client.get("/")
    assert eventually(lambda: client.get("/api/fleet").json()["failure_rates"], timeout_s=60)
    rate = next(iter(client.get("/api/fleet").json()["failure_rates"].values()))
    assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1 and rate["labels"] > 0


def test_a_vehicles_history_stands_beside_the_fleets(client: TestClient) -> None:
    found = client.get("/api/vehicles/ham-001/history?days=7").json()
    assert found["score"] == "stacked" and set(found["scores"]) == {"stacked", "expected_errors", "entropy"}
    for side in ("vehicle", "fleet"):
        assert len(found[side]["p50"]) == len(found["at"]) > 10
    assert sum(found["fleet"]["frames"]) > sum(found["vehicle"]["frames"]) > 0
    assert sum(found["uploads"]["count"]) == client.get("/api/vehicles/ham-001").json()["stored"]
    assert len(found["health"]["at"]) == len(found["health"]["pending"]) == 36
    assert client.get("/api/vehicles/nobody/history").status_code == 404
    assert client.get("/api/vehicles/ham-001/history?days=0").status_code == 422
    page = client.get("/vehicles/ham-001").text
    assert "/api/vehicles/ham-001/history" in page and "misfire fleet offer-again ham-001" in page


def test_drift_is_measured_against_the_first_days(client: TestClient) -> None:
    found = client.get("/api/drift?bundle=street@1.4.0&by=vehicle").json()
    assert found["reference"]["source"] == "first days" and found["source"] == "all"
    assert found["whole"]["frames"] > 0 and found["groups"]
    assert all(group["psi"] is not None for group in found["groups"])
    stream = client.get("/api/drift?bundle=street@1.4.0&by=weather").json()
    assert stream["source"] == "stream" and {group["name"] for group in stream["groups"]} <= {
        *("clear", "rain", "fog", "snow")
    }
    nothing = client.get("/api/drift?bundle=none@0&by=%22%3Cb%3E&score=x").json()
    assert nothing["at"] == [] and nothing["groups"] == [] and nothing["reference"] is None
    assert "No scores in this time" in client.get("/drift?bundle=none@0").text


def test_field_truth_by_slice_comes_when_it_is_computed(client: TestClient) -> None:
    path = "/fragments/field-truth?bundle=street@1.4.0&by=weather"
    assert eventually(lambda: "95 % interval" in client.get(path).text, timeout_s=60)


def test_a_row_that_cannot_be_shown_names_itself_and_the_page_stays_up(store: Store) -> None:
    seed_store(store, SeedPlan(vehicles=2, samples=4, days=1, labels=0, verdicts=0))
    with store.database.write() as connection:
        change = {"telemetry": '{"bundle": 7}', "state_at": 1e300}
        connection.execute(update(vehicles).where(vehicles.c.name == "ham-001").values(**change))
    with TestClient(create_app(store, access=OPEN), base_url="http://localhost") as opened:
        assert "cannot be shown" in opened.get("/").text
        found = {each["name"]: each["unreadable"] for each in opened.get("/api/fleet").json()["vehicles"]}
    assert found["ham-001"].startswith("telemetry:") and found["mun-001"] == ""


# ---- events


class Fleet:
    """Rows that a test changes."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {"a": {"seen": 0}, "b": {"seen": 0}}

    def __call__(self) -> dict[str, dict[str, Any]]:
        return {name: dict(cells) for name, cells in self.rows.items()}


def parsed(text: str) -> dict[str, Any]:
    fields = dict(line.split(": ", 1) for line in text.strip().splitlines())
    return {"id": fields["id"], "event": fields["event"], "data": json.loads(fields["data"])}


async def until(lines: Any, event: str) -> dict[str, Any]:
    async for text in lines:
        if f"event: {event}" in text:
            return parsed(text)
    raise AssertionError("the stream ended")


def run(check: Any) -> None:
    async def checked() -> None:
        await asyncio.wait_for(check(), 20)

    asyncio.run(checked())


def test_every_client_gets_what_changed_and_one_that_comes_back_what_it_missed() -> None:
    async def check() -> None:
        fleet = Fleet()
        caster = Broadcaster(fleet, period_s=0.01)
        one, other = caster.listen(), caster.listen()
        hello = await until(one, "hello")
        await until(other, "hello")
        await asyncio.sleep(0.1)
        fleet.rows["a"] = {"seen": 1}
        first = await until(one, "rows")
        assert first["data"] == {"rows": {"a": {"seen": 1}}, "gone": []}
        assert await until(other, "rows") == first
        await other.aclose()  # type: ignore[attr-defined]
        del fleet.rows["b"]
        second = await until(one, "rows")
        assert second["data"]["gone"] == ["b"] and caster.clients == 1
        back = caster.listen(first["id"])
        assert await until(back, "rows") == second
        assert (await until(caster.listen("other-5"), "reset"))["id"] == second["id"]
        assert (await until(caster.listen(hello["id"][:-1] + "99"), "reset"))["event"] == "reset"
        caster.close()

    run(check)


def test_listeners_are_bounded_and_a_slow_one_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_CLIENTS", 1)
    monkeypatch.setattr(live, "_QUEUE", 2)

    async def check() -> None:
        fleet = Fleet()
        caster = Broadcaster(fleet, period_s=0.005)
        lines = caster.listen()
        await until(lines, "hello")
        with pytest.raises(TooManyClientsError):
            caster.listen()
        number = 0
        while caster.clients:
            number += 1
            fleet.rows["a"] = {"seen": number}
            await asyncio.sleep(0.01)
        # Its stream ends, so that the browser connects again with the last id that it saw.
        assert [text async for text in lines] == []
        caster.close()

    run(check)


def test_a_quiet_stream_has_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "COMMENT_S", 0.02)

    async def check() -> None:
        caster = Broadcaster(Fleet(), period_s=5)
        async for text in caster.listen():
            if text.startswith(":"):
                break
        caster.close()

    run(check)
