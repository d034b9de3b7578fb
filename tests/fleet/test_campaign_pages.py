"""Campaigns in the console: the API's rules, and the pages in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page, expect
from tests.fleet.consoles import add, browsing, serving

from misfire_fleet.campaigns.documents import Documents
from misfire_fleet.campaigns.ledger import CampaignLedger
from misfire_fleet.campaigns.merging import Merged
from misfire_fleet.console.access.settings import AccessSettings
from misfire_fleet.console.app import create_app
from misfire_fleet.store import Store
from misfire_runtime.messages import Desired, Reported, State, Trigger

FOG: dict[str, Any] = {
    "name": "fog",
    "what": {"score": "entropy", "level": 0.9, "slice": {"weather": "fog"}},
    "how_much": {"samples": 4},
}


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    with TestClient(
        create_app(store, access=AccessSettings(open_to_all=True)),
        base_url="http://localhost",
        raise_server_exceptions=False,
    ) as client:
        yield client


def deliver(store: Store) -> None:
    """Two vehicles have the campaign, one refused it, and one cannot run it."""
    documents = Documents(store)
    for vehicle, accepted in (("car-1", True), ("car-2", False)):
        documents.wanted(vehicle, Desired(version=7), Merged(("fog",)))
        documents.published({vehicle: 7})
        answer = Reported(version=7, bundle="b@1", accepted=accepted, reason="" if accepted else "too <hot>")
        documents.reported({vehicle: answer})
    documents.wanted(
        "car-3", Desired(version=7), Merged((), left_out={"fog": "its bundle has no score entropy"})
    )


def test_a_campaign_goes_from_draft_to_its_end(client: TestClient, store: Store) -> None:
    made = client.post("/api/campaigns", json=FOG)
    assert made.status_code == 201 and made.json()["state"] == "draft"
    assert client.post("/api/campaigns", json=FOG).status_code == 409
    assert client.put("/api/campaigns/fog", json={**FOG, "priority": 8}).json()["spec"]["priority"] == 8
    assert client.put("/api/campaigns/fog", json={**FOG, "name": "x"}).status_code == 422
    assert client.post("/api/campaigns/fog/start", json={"reason": "winter"}).json()["state"] == "running"
    assert client.put("/api/campaigns/fog", json=FOG).status_code == 409
    assert client.post("/api/campaigns/fog/pause", json={}).json()["state"] == "paused"
    assert client.post("/api/campaigns/fog/end", json={}).json()["state"] == "ended"
    assert client.post("/api/campaigns/fog/start", json={}).status_code == 409
    assert client.post("/api/campaigns/fog/fly", json={}).status_code == 422
    assert client.get("/api/campaigns/none").status_code == 404
    assert [each["name"] for each in client.get("/api/campaigns?state=ended").json()] == ["fog"]
    assert client.get("/api/campaigns?state=running").json() == []
    actors = {who for _at, who, _action, _detail in store.deletion.audit()}
    assert len(actors) == 1 and "" not in actors


@pytest.mark.parametrize(
    "body",
    [
        {**FOG, "what": {}},
        {**FOG, "what": {"when": "open('/etc/passwd')"}},
        {**FOG, "name": "../x"},
        {**FOG, "name": "new"},
        {**FOG, "how_much": {"samples": 10**400}},
        {**FOG, "spool": {"path": "/"}},
        {**FOG, "what": {"near": {"sample": "0" * 64}}},
        [],
    ],
)
def test_what_is_wrong_is_refused_and_kept_nowhere(client: TestClient, body: Any, store: Store) -> None:
    answer = client.post("/api/campaigns", json=body)
    assert answer.status_code in (404, 422), answer.text
    assert CampaignLedger(store).listed() == []


def test_budget_and_tags_are_set_and_audited(client: TestClient, store: Store) -> None:
    assert client.get("/api/budget").json() == {"bytes_per_day": None}
    assert client.put("/api/budget", json={"bytes_per_day": 3 * 10**9}).json()["bytes_per_day"] == 3 * 10**9
    assert client.put("/api/budget", json={"bytes_per_day": -1}).status_code == 422
    assert client.patch("/api/tags/car-1", json={"tags": {"region": "eu"}}).json() == {"region": "eu"}
    assert client.patch("/api/tags/car-1", json={"tags": {"": "x"}}).status_code == 422
    assert client.get("/api/tags").json() == {"car-1": {"region": "eu"}}
    budget = next(d for _at, _who, action, d in store.deletion.audit() if action == "fleet-budget")
    assert budget == {"before": None, "after": 3 * 10**9}


def test_the_page_shows_every_vehicles_answer(client: TestClient, store: Store) -> None:
    assert "No campaign yet" in client.get("/campaigns").text
    client.post("/api/campaigns", json={**FOG, "note": "<script>alert(1)</script>"})
    client.post("/api/campaigns/fog/start", json={"reason": "it's <b>winter</b>"})
    deliver(store)
    add(store, b"one", vehicle="car-1", trigger=Trigger(name="campaign.fog"))
    listed = client.get("/campaigns").text
    assert (
        "1 accepted" in listed
        and "1 refused" in listed
        and "1 left out" in listed
        and 'value="0.2500"' in listed
    )
    page = client.get("/campaigns/fog").text
    assert "too &lt;hot&gt;" in page and "its bundle has no score entropy" in page
    assert "<script>alert" not in page and "<b>winter" not in page
    assert "start (it" in page, "who did what, and why"
    rows = client.get("/api/campaigns/fog/vehicles").json()
    assert [(row["vehicle"], row["state"], row["samples"]) for row in rows] == [
        ("car-2", "refused", 0),
        ("car-3", "left out", 0),
        ("car-1", "accepted", 1),
    ]
    assert client.get("/campaigns/none").status_code == 404
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE campaigns SET spec = 'x'")
    assert "Cannot be read, and run nowhere: fog" in client.get("/campaigns").text


@pytest.fixture
def page(store: Store) -> Iterator[Page]:
    with serving(store) as address, browsing() as page:
        page.goto(address + "/campaigns")
        yield page


def test_a_campaign_is_made_tried_started_and_ended_in_the_browser(page: Page, store: Store) -> None:
    store.vehicles.record_states({"car-1": State(online=True, bundle="b@1")})
    page.get_by_role("link", name="New campaign").click()
    page.get_by_label("name", exact=True).fill("fog")
    page.get_by_label("by score").select_option("level")
    page.get_by_label("score", exact=True).fill("entropy")
    page.get_by_role("button", name="Save draft").click()
    expect(page.get_by_role("alert")).to_have_text("value: say how high the score has to be")
    page.get_by_label("value", exact=True).fill("0.9")
    page.get_by_label("and the context is").fill("weather=fog")
    page.get_by_label("samples", exact=True).fill("50")
    page.get_by_role("button", name="Dry run").click()
    expect(page.locator("#estimate")).to_contain_text("no estimate: no heartbeat and no frame")
    page.get_by_role("button", name="Save draft").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("fog draft")
    assert CampaignLedger(store).get("fog").spec.what.slice == {"weather": "fog"}
    page.get_by_label("Why").fill("winter")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("fog running")
    page.get_by_role("button", name="Dry run").click()
    expect(page.get_by_text("No estimate:")).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="End").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("fog ended")
    page.get_by_role("link", name="Campaigns", exact=True).first.click()
    page.get_by_label("GB per day").fill("2.5")
    page.get_by_role("button", name="Set").click()
    expect(page.locator("#budget")).to_contain_text("Set by")
    assert store.deletion.audit(limit=1)[0][2] == "fleet-budget"
