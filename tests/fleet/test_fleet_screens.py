"""Fleet, vehicle and drift pages in a real browser, by keyboard, in the sizes and colours of an operator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from tests.fleet.conftest import eventually
from tests.fleet.consoles import browsing, serving

from misfire_fleet.simulate.seeding.plan import SeedPlan
from misfire_fleet.simulate.seeding.seeding import seed_store
from misfire_fleet.store import Store
from misfire_fleet.truth.rollups import roll_up

PAGES = ("/", "/vehicles/ham-001", "/drift?bundle=street@1.4.0&by=region")


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open_folder(tmp_path_factory.mktemp("fleet")) as store:
        seed_store(store, SeedPlan(vehicles=10, samples=100, days=3, labels=0.5, verdicts=0, seed=3))
        while roll_up(store):
            pass
        yield store


@pytest.fixture(scope="module")
def address(seeded: Store) -> Iterator[str]:
    with serving(seeded) as url:
        yield url


@pytest.fixture
def page() -> Iterator[Page]:
    with browsing() as opened:
        yield opened


def drawn(page: Page, address: str, path: str) -> None:
    """Opens a page and waits for its charts."""
    page.goto(address + path)
    if path != "/":
        expect(page.locator("#charts canvas").first).to_be_visible()


def test_a_row_changes_when_a_heartbeat_arrives(seeded: Store, address: str, page: Page) -> None:
    drawn(page, address, "/")
    expect(page.locator("#live")).to_contain_text("live")
    row = page.locator('tr[data-name="ham-001"]')
    before = row.locator('[data-cell="spool"]').inner_text()
    beat = seeded.vehicles.heartbeats("ham-001", limit=1)[0][1]
    counters = beat.counters.model_copy(update={"pending": 4321, "captured": beat.counters.captured + 4321})

    def told() -> bool:
        # The first reading after a page opens is what later ones are compared with.
        update = {"counters": counters, "pending_bytes": 10_000_000}
        seeded.vehicles.record_telemetry([("ham-001", beat.model_copy(update=update))])
        return row.locator('[data-cell="spool"]').inner_text() == "4,321, 10.0 MB"

    assert before != "4,321, 10.0 MB"
    assert eventually(told, timeout_s=30)
    expect(row.locator('[data-cell="seen"]')).to_contain_text("s ago")


def test_sorting_and_filters_are_in_the_address_and_work_by_keyboard(address: str, page: Page) -> None:
    drawn(page, address, "/")
    page.locator("thead").get_by_role("link", name="drops").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/?sort=-drops")
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("drops")
    page.get_by_label("region").select_option("lyon")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**region=lyon**")
    assert "sort=-drops" in page.url
    names = page.locator("tbody tr[data-name]").evaluate_all("rows => rows.map(row => row.dataset.name)")
    assert names and all(name.startswith("lyo") for name in names)
    page.locator("#map").focus()
    for key in ("+", "ArrowLeft", "-", "0"):
        page.keyboard.press(key)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_have_no_serious_barrier_and_fit_a_tablet_and_a_phone(
    address: str, page: Page, scheme: str
) -> None:
    axe = Axe()
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for path in PAGES:
        page.set_viewport_size({"width": 1024, "height": 768})
        drawn(page, address, path)
        found = [
            f"{each['id']}: {each['nodes'][0]['target']}"
            for each in axe.run(page).response["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert found == [], path
        for width in (1024, 390):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
