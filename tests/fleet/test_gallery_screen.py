"""The gallery, the map, the sample and the datasets in a real Chromium; and every page looked at by axe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from tests.fleet.consoles import add, browsing, serving

from misfire_fleet.console.navigation import PLACES
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.store import Store
from misfire_fleet.store.records import SampleFilter
from misfire_runtime.messages import Trigger, pack_embedding

Numbered = Callable[[int], bytes]
BOXES = {
    "boxes": [
        {"class": "car", "score": 0.93, "p": 0.31, "box": [100, 100, 400, 300]},
        {"class": "truck", "score": 0.5, "p": 0.9, "box": [600, 100, 900, 300]},
    ],
    "size": [1280, 720],
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, jpeg: Numbered) -> Iterator[tuple[Store, str, list[str]]]:
    """A store, its console, and the ids of its samples."""
    rng = np.random.default_rng(0)
    with Store.open_folder(tmp_path_factory.mktemp("screen") / "fleet") as store:
        LabelLedger(store).add_classes(["car"], actor="test")
        ids = [
            add(
                store,
                jpeg(number),
                vehicle=f"car-{number % 3}",
                scores={"expected_errors": 1.4},
                prediction=BOXES,
                context={"weather": "rain", "temporal": "a truck seen for 9 frames vanished"},
                trigger=Trigger(name="temporal"),
                embedding=pack_embedding(rng.normal(size=8)),
            )
            for number in range(10)
        ]
        with serving(store) as address:
            yield store, address, ids[::-1]


@pytest.fixture
def page() -> Iterator[Page]:
    with browsing() as opened:
        opened.add_init_script("localStorage.setItem('misfire.name', 'Ann')")
        yield opened


def judged(store: Store, verdict: str) -> set[str]:
    return {row.id for row in store.newest(50, SampleFilter(verdict=verdict))}


def test_one_key_judges_what_is_selected_and_undo_takes_it_back(
    page: Page, house: tuple[Store, str, list[str]]
) -> None:
    store, console, _ = house
    page.goto(f"{console}/uploads?vehicle=car-1")
    cards = page.locator(".card")
    expect(cards).to_have_count(3)
    shown = [str(card.get_attribute("data-id")) for card in cards.all()]
    cards.first.locator(".pick").click()
    cards.nth(2).click(modifiers=["Shift"])
    expect(page.locator("#acts-count")).to_have_text("3 selected")
    page.keyboard.press("w")
    expect(cards.first.locator(".said")).to_have_text("wrong")
    expect(page.locator("#toast")).to_contain_text("3 judged wrong")
    assert judged(store, "wrong") == set(shown)
    page.keyboard.press("u")
    expect(page.locator("#toast")).to_contain_text("Taken back")
    assert judged(store, "any") == set()
    # By keyboard alone: the focused picture is judged, and the next one is in focus.
    cards.first.locator(".open").focus()
    page.keyboard.press("r")
    expect(cards.nth(1).locator(".open")).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("x")
    expect(page.locator("#acts-count")).to_have_text("1 selected")
    page.keyboard.press("p")
    expect(cards.nth(2)).to_have_class(re.compile("pinned"))
    assert judged(store, "right") == {shown[0]}
    page.keyboard.press("c")
    page.fill("#ask-input", "night cars")
    page.keyboard.press("Enter")
    expect(page.locator("#toast")).to_contain_text("1 added to night cars")
    page.goto(f"{console}/uploads?selection=night+cars&pinned=yes")
    expect(page.locator(".card")).to_have_count(1)
    page.locator(".pick").click()
    page.keyboard.press("Delete")
    page.fill("#ask-input", "a face")
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(0)
    assert store.tombstoned([shown[2]]) == {shown[2]}


def test_a_lasso_on_the_map_opens_in_the_gallery(page: Page, house: tuple[Store, str, list[str]]) -> None:
    _, console, _ = house
    page.goto(f"{console}/uploads?show=map")
    expect(page.locator("#plane")).to_have_attribute("data-points", re.compile(r"\d+"))
    box = page.locator("#plane-canvas").bounding_box()
    assert box is not None
    corners = [(2, 2), (box["width"] - 3, 2), (box["width"] - 3, box["height"] - 3), (2, box["height"] - 3)]
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    for x, y in corners[1:]:
        page.mouse.move(box["x"] + x, box["y"] + y, steps=3)
    page.mouse.up()
    expect(page.locator("#plane-open")).to_be_enabled()
    count = str(page.get_attribute("#plane", "data-points"))
    expect(page.locator("#plane-open")).to_have_text(f"Open {count} in the gallery")
    page.click("#plane-open")
    page.click("#ask-yes")
    page.wait_for_url("**/uploads?selection=*")
    expect(page.locator(".card")).to_have_count(int(count))


def test_a_sample_says_why_and_its_layers_are_toggled(
    page: Page, house: tuple[Store, str, list[str]]
) -> None:
    _, console, ids = house
    page.goto(f"{console}/samples/{ids[0]}")
    expect(page.locator("#why")).to_have_text("1.4 errors expected: a truck seen for 9 frames vanished.")
    expect(page.locator(".neighbours a")).to_have_count(
        9 if page.locator(".neighbours a").count() == 9 else 8
    )
    expect(page.locator("svg.overlay")).to_be_visible()
    page.uncheck("#show-answer")
    expect(page.locator("svg.overlay")).to_be_hidden()


def test_every_page_is_free_of_errors_and_of_serious_findings(
    page: Page, house: tuple[Store, str, list[str]]
) -> None:
    _, console, ids = house
    paths = [place.path for place in PLACES]
    paths += ["/uploads?show=boxes", "/uploads?show=map", f"/samples/{ids[0]}", "/vehicles/car-0"]
    found: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        page.goto(console + path)
        page.wait_for_load_state("load")
        for violation in Axe().run(page).response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                targets = [node["target"] for node in violation["nodes"][:3]]
                found.setdefault(path, []).append(f"{violation['id']}: {json.dumps(targets)}")
    assert found == {}
