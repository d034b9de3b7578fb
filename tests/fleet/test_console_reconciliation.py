"""What the console says of vehicles: books that differ, who is silent, and many of them on pages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from sqlalchemy import text
from tests.fleet.conftest import eventually
from tests.fleet.consoles import add, serving
from tests.fleet.stores import at, sample

from misfire_fleet.console.health import Health
from misfire_fleet.errors import StoreUnavailableError
from misfire_fleet.store import Store
from misfire_runtime.clock import wall_time
from misfire_runtime.messages import Counters, State, Telemetry

Numbered = Callable[[int], bytes]


@pytest.fixture
def console(store: Store) -> Iterator[str]:
    with serving(store) as address:
        yield address


def beat(store: Store, vehicle: str, *, hold: str = "", **counters: object) -> None:
    counted = Counters.model_validate(counters)
    store.vehicles.record_telemetry(
        [(vehicle, Telemetry(at=at(0), bundle="x@1", counters=counted, hold=hold))]
    )


def listed(console: str) -> dict[str, dict[str, object]]:
    return {each["name"]: each for each in httpx.get(f"{console}/api/vehicles").json()["vehicles"]}


def metric(console: str, name: str) -> float:
    lines = httpx.get(f"{console}/metrics").text.splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{name} "))
    return float(value)


def ago(store: Store, vehicle: str, *seconds: float) -> None:
    """Moves a vehicle's last heartbeats, newest first, and its birth into the past."""
    now = wall_time()
    with store.database.write() as connection:
        connection.execute(
            text("UPDATE vehicles SET state_at = :first, telemetry_at = :last WHERE name = :name"),
            {"first": now - seconds[-1], "last": now - seconds[0], "name": vehicle},
        )
        connection.execute(text("DELETE FROM telemetry WHERE vehicle = :name"), {"name": vehicle})
        for each in reversed(seconds):
            connection.execute(
                text("INSERT INTO telemetry (vehicle, received_at, payload) VALUES (:name, :at, '{}')"),
                {"name": vehicle, "at": now - each},
            )


def test_what_a_vehicle_was_told_and_the_fleet_does_not_hold_is_said_and_alarmed(
    console: str, store: Store, jpeg: Numbered
) -> None:
    add(store, jpeg(1), vehicle="honest")
    beat(store, "honest", captured=2, stored=1, pending=1)
    beat(store, "deceived", captured=40, stored=40)
    (missing,) = listed(console)["deceived"]["concerns"]  # type: ignore[misc]
    assert missing == "40 missing: vehicle says 40 stored, fleet holds 0 stored, 0 deleted, 0 copies"
    assert listed(console)["honest"]["concerns"] == [] and listed(console)["honest"]["missing"] == 0
    for path in ("/vehicles", "/vehicles/deceived"):
        assert "vehicle says 40 stored" in httpx.get(console + path).text
    assert "warning" not in httpx.get(f"{console}/vehicles/honest").text
    assert metric(console, "misfire_books_difference") == 40
    assert metric(console, "misfire_books_vehicles_missing") == 1


def test_a_deleted_sample_is_no_difference(console: str, store: Store, jpeg: Numbered) -> None:
    gone = add(store, jpeg(1))
    store.deletion.delete(sample=gone, reason="asked for")
    beat(store, "car-1", captured=1, stored=1)
    assert listed(console)["car-1"]["concerns"] == []
    assert metric(console, "misfire_books_difference") == 0


def test_books_that_do_not_add_up_losses_and_holds_are_said(console: str, store: Store) -> None:
    beat(store, "odd", captured=300, pending=200, declined=51, rejected=3, evicted=1)
    beat(store, "full", lost={"disk full": 3, "queue full": 2, "never": 0})
    beat(store, "holding", hold="20 samples in a row were rejected")
    found = {name: each["concerns"] for name, each in listed(console).items()}
    assert found == {
        "odd": [
            "its counters do not add up: 300 captured, but 255 stored, pending, declined, rejected or evicted"
        ],
        "full": ["3 frames lost: disk full", "2 frames lost: queue full"],
        "holding": ["uploads are held: 20 samples in a row were rejected"],
    }
    assert metric(console, "misfire_books_vehicles_unbalanced") == 1
    assert metric(console, "misfire_frames_lost") == 5


@pytest.mark.parametrize(
    ("beats", "silent"),
    [
        ((10, 70, 130), False),
        ((170, 230, 290), False),
        ((190, 250, 310), True),
        ((190,), True),
        ((500, 1100, 1700), False),  # every ten minutes
        ((1900, 2500, 3100), True),
        ((500, 7700, 7760), True),  # back after two hours, and gone again
        ((170, 175, 180), False),  # shorter than the default: as the default
    ],
)
def test_a_vehicle_is_online_only_while_its_heartbeats_come(
    beats: tuple[float, ...], silent: bool, anywhere: Store
) -> None:
    for name, online in (("car-1", True), ("car-2", False)):
        anywhere.vehicles.record_states({name: State(online=online)})
        beat(anywhere, name)
        ago(anywhere, name, *beats)
    one, two = anywhere.vehicles.summaries()
    assert (one.online, one.silent, two.online, two.silent) == (True, silent, False, False)
    assert (anywhere.totals().vehicles, anywhere.totals().online) == (2, 0 if silent else 1)


def test_a_silent_vehicle_has_no_green_dot(console: str, store: Store) -> None:
    store.vehicles.record_states({"car-1": State(online=True)})
    beat(store, "car-1")
    assert 'dot online"' in httpx.get(f"{console}/vehicles/car-1").text
    ago(store, "car-1", 44 * 60, 45 * 60)
    for path in ("/vehicles", "/vehicles/car-1"):
        page = httpx.get(console + path).text
        assert 'dot silent"' in page and 'dot online"' not in page and "no heartbeat for 44 min" in page
    assert listed(console)["car-1"]["online"] is False


def test_twenty_thousand_vehicles_are_listed_in_pages(store: Store) -> None:
    with store.database.write() as connection:
        connection.execute(
            text(
                "WITH RECURSIVE n(value) AS (SELECT 0 UNION ALL SELECT value + 1 FROM n WHERE value < 19999) "
                "INSERT INTO vehicles (name, first_seen, online, state, state_at) "
                "SELECT 'car-' || printf('%05d', value), 0, 1, :state, :now FROM n"
            ),
            {"state": State(online=True, bundle="x@1").model_dump_json(), "now": wall_time()},
        )
    with serving(store) as console:
        httpx.get(f"{console}/vehicles")
        began = time.monotonic()
        page = httpx.get(f"{console}/vehicles")
        assert time.monotonic() - began < 1.5  # 0.1 s where nothing else runs
        assert page.text.count("<tr>") == 101 and len(page.content) < 100_000
        assert "20,000" in page.text and "car-00099" in page.text and "car-00100" not in page.text
        assert "20000<span" in httpx.get(f"{console}/fragments/totals").text.replace(",", "")
        second = httpx.get(f"{console}/vehicles?after=car-00099").text
        assert "car-00100" in second and "car-00199" in second and "car-00099</a>" not in second
        got = httpx.get(f"{console}/api/vehicles", params={"limit": 3}).json()
        rest = httpx.get(f"{console}/api/vehicles", params={"limit": 2, "cursor": got["next"]}).json()
        assert [each["name"] for each in rest["vehicles"]] == ["car-00003", "car-00004"]
        assert httpx.get(f"{console}/vehicle?name=car-15000").status_code == 200


def test_the_choices_of_filters_are_in_order(anywhere: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("misfire_fleet.store.store._MANY", 3)
    anywhere.add_many([sample(number, vehicle=f"car-{number}") for number in (5, 3, 1, 4, 2)])
    assert anywhere.distinct()["vehicle"] == ["car-1", "car-2", "car-3"]


def test_health_asks_what_the_pages_ask(console: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert httpx.get(f"{console}/healthz").text == "ok\n"

    def damaged(*_: object, **__: object) -> None:
        raise StoreUnavailableError("database: database disk image is malformed")

    for owner, question in ((store, "newest"), (store, "totals"), (store.vehicles, "summaries")):
        with monkeypatch.context() as broken:
            broken.setattr(owner, question, damaged)
            answer = httpx.get(f"{console}/healthz")
            assert answer.status_code == 503 and "malformed" in answer.text, question
    assert httpx.get(f"{console}/healthz").status_code == 200


def test_health_sees_a_damaged_table(console: str, store: Store) -> None:
    with store.database.write() as connection:
        connection.execute(text("ALTER TABLE refusals RENAME TO gone"))
    answer = httpx.get(f"{console}/healthz")
    assert answer.status_code == 503 and "refusals" in answer.text


def test_health_does_not_wait_for_a_store_that_hangs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health(store, limit_s=0.2)
    with monkeypatch.context() as slow:
        slow.setattr(store, "totals", lambda: time.sleep(1.5))
        began = time.monotonic()
        assert [health.problem() for _ in range(2)] == ["the store does not answer within 0.2 s"] * 2
        assert time.monotonic() - began < 1.4
    assert eventually(lambda: health.problem() == "")
    health.close()
