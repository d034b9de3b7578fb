"""The console in a real Chromium: uploads as pictures with scores, filters, a sample, the vehicles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from tests.fleet.conftest import eventually
from tests.fleet.consoles import add, browsing, serving

from misfire_fleet.console.app import create_app
from misfire_fleet.store import Store
from misfire_runtime.messages import Clock, State, Trigger

Numbered = Callable[[int], bytes]


@pytest.fixture
def console(store: Store) -> Iterator[str]:
    """The address of a running console over `store`."""
    with serving(store) as address:
        yield address


@pytest.fixture
def page() -> Iterator[Page]:
    """A blank page; anything the browser complains of fails the test."""
    with browsing() as opened:
        yield opened


def pictures_shown(page: Page) -> int:
    return int(
        page.evaluate("[...document.querySelectorAll('main img')].filter(i => i.naturalWidth > 100).length")
    )


def test_the_newest_uploads_are_pictures_with_scores_vehicle_trigger_and_time(
    console: str, page: Page, store: Store, jpeg: Numbered
) -> None:
    add(store, jpeg(1), vehicle="car-1")
    newest = add(
        store,
        jpeg(2),
        vehicle="car-2",
        trigger=Trigger(name="random", random=True),
        scores={"entropy": 0.123, "msp": 0.5},
        percentiles={"entropy": 0.2, "msp": 0.99},
    )
    page.goto(console + "/uploads")
    page.wait_for_load_state("networkidle")
    cards = page.locator(".card")
    assert cards.count() == 2
    first = cards.first
    assert first.get_attribute("data-id") == newest
    text = first.inner_text()
    for part in ("car-2", "random", "entropy", "0.123", "msp", "red", "ago"):
        assert part in text
    assert first.locator(".scores .name").first.inner_text() == "msp"
    assert pictures_shown(page) == 2


def test_filters_narrow_the_gallery_and_stay_in_the_form(
    console: str, page: Page, store: Store, jpeg: Numbered
) -> None:
    for number in range(4):
        add(store, jpeg(number), vehicle=f"car-{number % 2}", percentiles={"entropy": number / 4})
    page.goto(console + "/uploads")
    page.select_option("select[name=vehicle]", "car-1")
    page.fill("input[name=percentile]", "0.5")
    page.click("text=Show")
    expect(page.locator(".card")).to_have_count(1)
    assert page.input_value("select[name=vehicle]") == "car-1"
    assert "1 sample matches" in page.inner_text("h1")
    page.click("text=Clear")
    expect(page.locator(".card")).to_have_count(4)


def test_older_uploads_follow_when_scrolled_to(
    console: str, page: Page, store: Store, jpeg: Numbered
) -> None:
    for number in range(60):
        add(store, jpeg(number))
    page.goto(console + "/uploads")
    assert page.locator(".card").count() == 48
    page.locator(".more").scroll_into_view_if_needed()
    assert eventually(lambda: page.locator(".card").count() == 60)
    assert len({card.get_attribute("data-id") for card in page.locator(".card").all()}) == 60


def test_a_sample_page_shows_the_image_as_it_was_sent(
    console: str, page: Page, store: Store, jpeg: Numbered
) -> None:
    sample = add(store, jpeg(1), context={"weather": "fog"}, privacy=["blur:faces"])
    page.goto(console + "/uploads")
    page.locator(".card").click()
    page.wait_for_url(f"**/samples/{sample}")
    page.wait_for_load_state("networkidle")
    text = page.inner_text("main")
    for part in ("1280 × 720", "blur:faces", "fog", "lights@1.0.0", "above its quantile", sample):
        assert part in text
    assert pictures_shown(page) == 1
    assert httpx.get(f"{console}/blobs/{sample}").content == jpeg(1)


def test_vehicles_are_listed_with_what_they_stored(
    console: str, page: Page, store: Store, jpeg: Numbered
) -> None:
    add(store, jpeg(1), vehicle="car-1")
    store.vehicles.record_states({"car-1": State(online=True, bundle="lights@1.0.0")})
    store.vehicles.record_refusals({("car-1", "declined", "near-duplicate"): 3})
    page.goto(f"{console}/vehicles")
    row = page.locator("table.rows tr", has_text="car-1")
    assert row.locator(".dot.online").count() == 1
    assert "lights@1.0.0" in row.inner_text()
    row.locator("a").click()
    page.wait_for_url("**/vehicles/car-1")
    page.wait_for_load_state("networkidle")
    assert "near-duplicate" in page.inner_text("main")
    assert page.locator(".card").count() == 1


def test_the_totals_follow_without_a_reload(console: str, page: Page, store: Store, jpeg: Numbered) -> None:
    page.goto(console + "/uploads")
    assert page.inner_text("#total-samples") == "0"
    assert "No uploads yet" in page.inner_text("main")
    add(store, jpeg(1))
    assert eventually(lambda: page.inner_text("#total-samples") == "1")


def test_what_a_vehicle_says_is_text_never_markup(
    console: str, page: Page, store: Store, jpeg: Numbered
) -> None:
    evil = "<script>document.title='owned'</script>"
    sample = add(
        store,
        jpeg(1),
        prediction={"class": evil, evil: evil},
        context={evil: evil},
        trigger=Trigger(name="<b>x", reason=evil),
        captured_at=Clock(wall=253_402_300_799, monotonic=0, boot_id=""),
    )
    for path in ("/uploads", f"/samples/{sample}", "/vehicles", "/vehicles/car-1"):
        page.goto(console + path)
        page.wait_for_load_state("networkidle")
        assert page.title() != "owned"
    assert page.locator("main script").count() == 0


def test_the_api_gives_the_same_rows_and_pages_through_them(
    console: str, store: Store, jpeg: Numbered
) -> None:
    ids = [add(store, jpeg(number)) for number in range(5)]
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        got = httpx.get(f"{console}/api/samples", params={"limit": 2, "cursor": cursor}).json()
        seen += [sample["id"] for sample in got["samples"]]
        cursor = got["next"]
    assert seen == ids[::-1]
    one = httpx.get(f"{console}/api/samples/{ids[0]}").json()
    assert one["scores"] == {"entropy": 0.7}
    assert httpx.get(f"{console}{one['blob']}").content == jpeg(0)
    assert httpx.get(f"{console}/api/totals").json()["samples"] == 5
    assert httpx.get(f"{console}/api/vehicles").json()["vehicles"][0]["stored"] == 5
    assert httpx.get(f"{console}/healthz").status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/samples/nothing", 404),
        ("/blobs/../../etc/passwd", 404),
        ("/blobs/" + "0" * 64, 404),
        ("/vehicles/nobody", 404),
        ("/uploads?since=yesterday", 422),
        ("/uploads?percentile=nan", 422),
        ("/uploads?limit=100000", 422),
        ("/api/samples?before=x", 422),
    ],
)
def test_what_is_not_there_or_cannot_be_read_is_said(console: str, path: str, status: int) -> None:
    answer = httpx.get(console + path)
    assert answer.status_code == status
    assert "Traceback" not in answer.text


def test_a_store_that_lost_a_blob_shows_the_rest(
    console: str, page: Page, store: Store, jpeg: Numbered
) -> None:
    lost = add(store, jpeg(1))
    store.blobs.delete_many([lost])
    assert httpx.get(f"{console}/thumbs/{lost}").status_code == 404
    assert httpx.get(f"{console}/uploads").status_code == 200


def test_pages_need_nothing_from_elsewhere(store: Store) -> None:
    package = Path(create_app.__code__.co_filename).parent
    for file in [*(package / "templates").glob("*.html"), package / "static" / "console.css"]:
        text = file.read_text(encoding="utf-8")
        assert "http://" not in text
        assert "https://" not in text
