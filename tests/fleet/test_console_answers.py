"""The console draws the answer over the picture, the most doubtful box first, whatever an offer says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Page, expect
from tests.fleet.consoles import add, browsing, serving

from misfire_fleet.console.overlay import answer_of
from misfire_fleet.store import Store
from misfire_fleet.store.records import StoredSample
from misfire_runtime.messages import Offer, decode, encode
from misfire_runtime.preprocess import encode_jpeg
from misfire_runtime.testing import make_offer
from proving_ground.detectors import lamps

LAMPS = ((60, 20, 100, 60), (130, 50, 170, 70))
BOXES = [
    {"class": "lamp", "score": 0.9, "p": 0.95, "box": [60.0, 20.0, 100.0, 60.0]},
    {"class": "wall", "score": 0.6, "p": 0.31, "box": [130.0, 50.0, 170.0, 70.0]},
]
PREDICTION = {"boxes": BOXES, "more": 3, "size": [320, 160]}


@pytest.fixture
def console(store: Store) -> Iterator[str]:
    with serving(store) as address:
        yield address


@pytest.fixture
def page() -> Iterator[Page]:
    with browsing() as opened:
        yield opened


def lit(store: Store, **fields: Any) -> str:
    data = encode_jpeg(lamps(*LAMPS, width=320, height=160))
    return add(store, data, width=320, height=160, **({"prediction": PREDICTION} | fields))


def stored(prediction: dict[str, Any], *, width: int = 320, height: int = 160) -> StoredSample:
    """A row whose offer went over the wire."""
    offer = decode(Offer, encode(make_offer(b"x", prediction=prediction)))
    return StoredSample(
        seq=1,
        id=offer.id,
        vehicle="car-1",
        captured_at=0,
        stored_at=0,
        bundle="b@1.0.0",
        percentile=None,
        media_type="image/jpeg",
        size=1,
        width=width,
        height=height,
        collector="c",
        offer=offer,
    )


def test_boxes_lie_on_what_they_bound(console: str, page: Page, store: Store) -> None:
    sample = lit(store)
    page.goto(f"{console}/samples/{sample}")
    page.wait_for_load_state("networkidle")
    picture = page.locator(".picture img").bounding_box()
    assert picture is not None
    # The picture keeps its shape inside of its frame, so its pixels have one size.
    scale = min(picture["width"] / 320, picture["height"] / 160)
    left = picture["x"] + (picture["width"] - 320 * scale) / 2
    top = picture["y"] + (picture["height"] - 160 * scale) / 2
    drawn = page.locator("#box-2 rect.edge").bounding_box()
    assert drawn is not None
    x0, y0, x1, y1 = 130, 50, 170, 70
    # Half of a stroke of 4 pixels on every side.
    assert drawn["x"] == pytest.approx(left + x0 * scale, abs=3)
    assert drawn["y"] == pytest.approx(top + y0 * scale, abs=3)
    assert drawn["x"] + drawn["width"] == pytest.approx(left + x1 * scale, abs=3)
    assert drawn["y"] + drawn["height"] == pytest.approx(top + y1 * scale, abs=3)
    assert page.locator("#box-2").get_attribute("class") == "box doubtful"
    assert page.locator("#box-2 text").text_content() == "wall 31 %"


def test_the_most_doubtful_box_is_listed_first_and_found_in_the_picture(
    console: str, page: Page, store: Store
) -> None:
    page.goto(f"{console}/samples/{lit(store)}")
    rows = page.locator("table.boxes tr")
    assert "wall" in rows.nth(1).inner_text() and "31.0 %" in rows.nth(1).inner_text()
    assert "5 boxes" in page.inner_text("main") and "3 more" in page.inner_text("main")
    before = page.locator("#box-2 rect").nth(1).evaluate("e => getComputedStyle(e).stroke")
    rows.nth(1).locator("a").click()
    after = page.locator("#box-2 rect").nth(1).evaluate("e => getComputedStyle(e).stroke")
    assert before != after


@pytest.mark.parametrize("path", ["/uploads", "/samples/{}"])
def test_the_answer_can_be_hidden(console: str, page: Page, store: Store, path: str) -> None:
    page.goto(console + path.format(lit(store)))
    overlay = page.locator("svg.overlay").first
    expect(overlay).to_be_visible()
    page.locator("#show-answer").uncheck()
    expect(overlay).to_be_hidden()


def test_a_card_says_how_many_boxes_and_which_is_in_doubt(console: str, page: Page, store: Store) -> None:
    lit(store)
    page.goto(console + "/uploads")
    assert "5 boxes, wall 31 %" in page.locator(".card").inner_text()


def test_joints_and_shares_are_drawn_too(console: str, page: Page, store: Store) -> None:
    joints = lit(store, prediction={"points": [[0.25, 0.5, 0.9], [None, None, 0.1]], "size": [320, 160]})
    page.goto(f"{console}/samples/{joints}")
    circles = page.locator("svg.overlay circle")
    assert circles.count() == 1 and circles.first.get_attribute("cx") == "80.0"
    data = encode_jpeg(lamps(width=160, height=90))
    shares = add(store, data, width=160, height=90, prediction={"shares": {"road": 0.75, "sky": 0.25}})
    page.goto(f"{console}/samples/{shares}")
    widths = page.locator(".stack i").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.02)
    assert "road" in page.inner_text("main") and "75.0 %" in page.inner_text("main")


def test_further_answers_are_named(console: str, store: Store) -> None:
    prediction = {"class": "red", "confidence": 0.9, "scene": {"night": 0.8}, "lanes": {"road": 0.25}}
    sample = lit(store, prediction=prediction)
    text = httpx.get(f"{console}/samples/{sample}").text
    assert "<dt>scene</dt><dd>night 80.0 %</dd>" in text and "<dt>lanes</dt><dd>road 25.0 %</dd>" in text


def test_a_detector_that_sees_nothing_says_so(console: str, store: Store) -> None:
    sample = lit(store, prediction={"boxes": [], "more": 0, "size": [320, 160]})
    text = httpx.get(f"{console}/samples/{sample}").text
    assert "The detector saw nothing" in text and "0 boxes" in text and "<svg" not in text


def test_names_of_classes_are_text_never_markup(console: str, page: Page, store: Store) -> None:
    evil = "</text></svg><script>document.title='owned'</script>"
    box = {"class": evil, "score": 0.9, "p": 0.2, "box": [60.0, 20.0, 100.0, 60.0]}
    sample = lit(store, prediction={"boxes": [box], "more": 0, "size": [320, 160]})
    for path in ("/uploads", f"/samples/{sample}"):
        page.goto(console + path)
        page.wait_for_load_state("networkidle")
        assert page.title() != "owned" and page.locator("main script").count() == 0


@pytest.mark.parametrize(
    "prediction",
    [
        {"boxes": "many"},
        {"boxes": [1, "x", None, True]},
        {"boxes": [{}, {"box": []}, {"box": [1, 2, 3]}, {"box": [4, 4, 1, 1]}, {"box": ["a", 0, 1, 1]}]},
        {"boxes": [{"box": [0, 0, 1e300, 1]}], "more": -5, "size": [0, -1]},
        {"boxes": [{"box": [0, 0, 9, 9], "p": "sure", "score": None}], "size": "large"},
        {"points": [[0.5], "x", [2.0, 0.5], [None, 0.5], [True, True]]},
        {"shares": {"road": "half", "sky": None}},
        {"class": 7, "confidence": "high"},
        {"shares": 3, "points": {}, "boxes": {}, "more": "x", "size": [1.5, 2.5]},
    ],
)
def test_an_answer_of_another_form_breaks_no_page(
    console: str, store: Store, prediction: dict[str, Any]
) -> None:
    sample = lit(store, prediction=prediction)
    for path in ("/uploads", f"/samples/{sample}", "/vehicles", "/api/samples"):
        assert httpx.get(console + path).status_code == 200


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False)
)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "class": st.text(max_size=8) | SCALARS,
        "score": SCALARS,
        "p": SCALARS,
        "box": st.lists(SCALARS, max_size=5) | SCALARS,
    },
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "boxes": st.lists(RECORDS | SCALARS, max_size=4) | SCALARS,
            "points": st.lists(st.lists(SCALARS, max_size=4) | SCALARS, max_size=4) | SCALARS,
            "shares": st.dictionaries(st.text(max_size=4), SCALARS, max_size=3) | SCALARS,
            "more": SCALARS,
            "size": st.lists(SCALARS, max_size=3) | SCALARS,
        },
    )
)
def test_any_valid_prediction_can_be_read(prediction: dict[str, Any]) -> None:
    answer = answer_of(stored(prediction))
    assert answer.width > 0 and answer.height > 0 and answer.more >= 0
    assert all(box.width > 0 and box.height > 0 for box in answer.boxes)
    doubts = [box.doubt for box in answer.boxes if box.doubt is not None]
    assert doubts == sorted(doubts, reverse=True)
    assert all(0 <= bar.share <= 1 for bar in answer.bars)
    assert isinstance(answer.summary, str) and answer.unit > 0


def test_places_belong_to_the_upright_picture() -> None:
    """A photograph that Exif turns: the header says 320x160, the vehicle saw 160x320."""
    answer = answer_of(stored({"boxes": [], "size": [160, 320]}))
    assert (answer.width, answer.height) == (160, 320)
