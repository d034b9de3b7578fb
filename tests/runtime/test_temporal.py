"""What flickers in boxes, masks and classes is found, late by a frame or two, and nothing else is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from misfire_runtime.preprocess import InputContract
from misfire_runtime.temporal import BoxComparison, ClassComparison, MaskComparison
from misfire_runtime.temporal.base import AnswerFormat, Event, Finding
from misfire_runtime.temporal.lane import Lane
from misfire_runtime.temporal.levels import Levels
from proving_ground.erring_detector import THRESHOLD, ErringDetector, found, plan_faults
from proving_ground.street_video import CLASSES, HEIGHT, RATE, WIDTH, StreetVideo

PICTURE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
FORM = AnswerFormat(InputContract(height=HEIGHT, width=WIDTH), CLASSES, THRESHOLD)
CAR, TRUCK = 0, 1
Row = tuple[float, float, float, float, float, int]


def answer(*rows: Row) -> np.ndarray[Any, Any]:
    detections = np.zeros((1, 100, 6), np.float32)
    for at, row in enumerate(rows):
        detections[0, at] = row
    return detections


def car(x: float, *, y: float = 150, side: float = 60, score: float = 0.9, label: int = CAR) -> Row:
    return (x, y, x + side, y + side, score, label)


def events(*frames: list[Row], rate: float = RATE) -> list[tuple[Event, ...]]:
    """The events of each frame; () too where they are not known."""
    lane = Lane(BoxComparison(FORM))
    findings: list[Finding | None] = []
    for number, rows in enumerate(frames):
        findings += lane.see(answer(*rows), PICTURE, number / rate)
    findings += lane.flush()
    assert len(findings) == len(frames)
    return [() if finding is None else finding.events for finding in findings]


def kinds(*frames: list[Row], rate: float = RATE) -> dict[int, list[str]]:
    listed = enumerate(events(*frames, rate=rate))
    return {number: [event.kind for event in seen] for number, seen in listed if seen}


def drive(count: int, *, without: tuple[int, ...] = (), speed: float = 4, **options: Any) -> list[list[Row]]:
    """A car that drives to the right; no box in the frames of `without`."""
    return [[] if at in without else [car(100 + speed * at, **options)] for at in range(count)]


@pytest.mark.parametrize("gone", [(5,), (5, 6)])
def test_a_track_that_misses_one_or_two_frames_breaks(gone: tuple[int, ...]) -> None:
    seen = events(*drive(12, without=gone))
    assert [number for number, found in enumerate(seen) if found] == [5]
    (event,) = seen[5]
    assert event.kind == "break" and event.weight == pytest.approx(0.9)
    assert event.text == "a car seen for 5 frames vanished"
    # The place of the box that was missed, and not of the one that came back.
    assert event.box == pytest.approx((120, 150, 180, 210), abs=4)


def test_what_does_not_come_back_has_left_and_what_was_not_sure_may_go() -> None:
    assert kinds(*drive(12, without=(5, 6, 7))) == {}
    assert kinds(*drive(12, without=tuple(range(5, 12)))) == {}
    assert kinds(*drive(12, without=(5,), score=0.5)) == {}
    # Two frames are too few to be sure that there was a car.
    assert kinds(*drive(12, without=(0, 1, 2, 5))) == {}


def test_at_the_border_an_object_may_leave_and_enter() -> None:
    inside = 20
    assert kinds(*drive(12, without=(5,), speed=0, y=inside)) == {5: ["break"]}
    assert kinds(*drive(12, without=(5,), speed=0, y=2)) == {}
    assert kinds(*[[] if at != 5 else [car(2)] for at in range(12)]) == {}


def test_behind_a_larger_box_an_object_may_be_hidden_but_not_in_front_of_one() -> None:
    behind, front = (80.0, 100.0, 220.0, 240.0, 0.9, TRUCK), (80.0, 60.0, 220.0, 190.0, 0.9, TRUCK)
    for larger, expected in ((behind, {}), (front, {5: ["break"]})):
        frames = [[larger, *rows] for rows in drive(12, without=(5,), speed=0)]
        assert kinds(*frames) == expected


def test_a_box_of_one_frame_is_a_flash_except_in_the_first_frame() -> None:
    assert kinds(*[[car(200)] if at == 4 else [] for at in range(10)]) == {4: ["flash"]}
    assert kinds([car(200)], *[[] for _ in range(5)]) == {}
    flash = events(*[[car(200, score=0.4)] if at == 4 else [] for at in range(10)])[4][0]
    assert flash.weight == pytest.approx(0.4) and flash.text == "a car appeared for one frame"
    assert kinds(*[[car(200)] if at in (4, 5) else [] for at in range(10)]) == {}


def test_a_track_that_changes_its_class_flips_once() -> None:
    frames = [[car(100 + at, label=TRUCK if at % 2 else CAR)] for at in range(4, 14)]
    steady = [[car(100 + at)] for at in range(4)]
    seen = events(*steady, *frames)
    assert [(n, e.kind, e.text) for n, found in enumerate(seen) for e in found] == [
        (5, "flip", "a car seen for 5 frames became a truck")
    ]


def test_a_track_reports_one_event_and_a_blackout_all_of_its_tracks() -> None:
    assert kinds(*drive(30, without=(5, 12, 20))) == {5: ["break"]}
    places = [car(50), car(200, label=TRUCK), car(350), car(500)]
    frames = [[] if at == 6 else places for at in range(12)]
    seen = events(*frames)[6]
    finding = Finding(seen)
    assert len(seen) == 4 and finding.score == pytest.approx(3.6)
    assert finding.reason.endswith("seen for 6 frames vanished, and 3 more")


def test_a_fast_car_is_followed_from_its_second_frame_on() -> None:
    # More than its width per frame: no box overlaps the one before.
    assert kinds(*drive(8, speed=66)) == {}
    assert kinds(*drive(8, speed=50, without=(5,))) == {5: ["break"]}


def test_answers_that_are_no_boxes_do_no_harm() -> None:
    crossed = (300.0, 200.0, 100.0, 150.0, 0.9, CAR)
    huge = (-1e9, -1e9, 1e9, 1e9, 1.0, 77)
    assert kinds(*[[crossed, huge, *rows] for rows in drive(12)]) == {}
    spoilt = car(np.nan)
    assert kinds(*[[spoilt, *rows] for rows in drive(12)]) == {}
    assert kinds(*[[spoilt] if at == 5 else rows for at, rows in enumerate(drive(12))]) == {5: ["break"]}


@given(
    st.lists(
        st.lists(
            st.tuples(*[st.floats(width=32)] * 4, st.floats(width=32), st.floats(width=32)),
            max_size=6,
        ),
        max_size=12,
    )
)
def test_no_answer_ends_the_frame_path(frames: list[list[Any]]) -> None:
    for seen in events(*frames):
        assert all(np.isfinite(event.weight) and event.text for event in seen)


@pytest.mark.slow
def test_in_a_rendered_drive_faults_are_found_and_nothing_else_is() -> None:
    video = StreetVideo(seed=11, seconds=40)
    truths = [truth for _picture, truth in video]
    faults = plan_faults(truths, seed=11)
    disturbed = _drive(video, ErringDetector(seed=11, faults=faults))
    recall = {kind: np.mean(noticed) for kind, noticed in found(faults, disturbed, truths).items()}
    assert len({number for _frame, number in faults.dropped}) > 30
    assert recall["break"] >= 0.9 and recall["flip"] >= 0.9 and recall["flash"] >= 0.9
    undisturbed = _drive(video, ErringDetector(seed=11))
    assert sum(map(len, undisturbed.values())) / 40 <= 0.05


def _drive(video: StreetVideo, detector: ErringDetector) -> dict[int, tuple[Event, ...]]:
    lane = Lane(BoxComparison(FORM))
    findings: list[Finding | None] = []
    for frame, (picture, truth) in enumerate(video):
        findings += lane.see(detector.detect(frame, truth), picture, frame / RATE)
    findings += lane.flush()
    assert sum(finding is None for finding in findings) == 3  # the first, and the last two
    return {frame: () if finding is None else finding.events for frame, finding in enumerate(findings)}


def masks(*maps: np.ndarray[Any, Any], channels: int = 2) -> list[float | None]:
    lane = Lane(MaskComparison(AnswerFormat(InputContract(height=64, width=64), ("road", "lane"))))
    findings: list[Finding | None] = []
    for number, each in enumerate(maps):
        logits = np.stack([1.0 - each, each])[-channels:][None] if channels == 2 else (each - 0.5)[None, None]
        findings += lane.see(logits.astype(np.float32), PICTURE, number / RATE)
    return [None if finding is None else finding.score for finding in [*findings, *lane.flush()]]


@pytest.mark.parametrize("channels", [1, 2])
def test_a_region_with_its_class_for_one_frame_counts_without_its_border(channels: int) -> None:
    empty = np.zeros((64, 64))
    spot = empty.copy()
    spot[10:20, 10:20] = 1
    scores = masks(empty, empty, spot, empty, empty, channels=channels)
    assert scores == [None, 0.0, pytest.approx(64 / 4096), 0.0, None]


def test_an_edge_that_moves_and_a_region_that_stays_count_nothing() -> None:
    maps = []
    for at in range(6):
        edge = np.zeros((64, 64))
        edge[:, : 20 + 2 * at] = 1
        maps.append(edge)
    assert masks(*maps) == [None, 0.0, 0.0, 0.0, 0.0, None]
    before, after = np.zeros((64, 64)), np.ones((64, 64))
    assert masks(before, before, after, after) == [None, 0.0, 0.0, None]


def test_a_large_mask_is_thinned_and_its_class_named() -> None:
    logits = np.zeros((1, 3, 512, 1024), np.float32)
    logits[:, 0] = 1
    odd = logits.copy()
    odd[:, 2, 100:300, 200:500] = 2
    lane = Lane(MaskComparison(AnswerFormat(InputContract(height=512, width=1024), ("road", "sky"))))
    settled = [lane.see(each, PICTURE, at / RATE) for at, each in enumerate([logits, logits, odd, logits])]
    finding = settled[3][0]
    assert finding is not None and finding.score == pytest.approx(200 * 300 / 512 / 1024, rel=0.15)
    assert finding.reason.endswith("% of pixels changed for one frame, most of them to class 2")


def test_a_class_for_one_frame_weighs_what_its_neighbours_were_sure_of() -> None:
    lane = Lane(ClassComparison(AnswerFormat(InputContract(height=8, width=8), ("red", "green"))))
    red, green, unsure = [[4.0, 0.0]], [[0.0, 4.0]], [[0.1, 0.0]]
    findings: list[Finding | None] = []
    for at, each in enumerate([red, red, green, red, unsure, green, unsure]):
        findings += lane.see(np.array(each, np.float32), PICTURE, at / RATE)
    scores = [None if finding is None else round(finding.score, 2) for finding in findings]
    assert scores == [None, 0.0, 0.98, 0.0, 0.0, 0.52]
    assert findings[2] is not None and findings[2].reason == "green for one frame, red before and after"


def test_an_answer_that_is_not_finite_begins_anew() -> None:
    lane = lane_of_classes()
    spoilt = np.array([[np.nan, 0.0]], np.float32)
    settled = [lane.see(spoilt if at == 3 else RED, PICTURE, at / RATE) for at in range(7)]
    assert settled == [[], [None], [Finding()], [None, None], [], [None], [Finding()]]


def lane_of_classes() -> Lane:
    return Lane(ClassComparison(AnswerFormat(InputContract(height=8, width=8), ("red", "green"))))


RED = np.array([[4.0, 0.0]], np.float32)


def test_below_eight_frames_per_second_nothing_is_available_and_the_lane_says_why() -> None:
    for rate, available in ((5.0, False), (8.0, True), (30.0, True)):
        lane = lane_of_classes()
        # As a recording rounds its times.
        settled = [lane.see(RED, PICTURE, round(at / rate, 3)) for at in range(20)]
        assert (lane.problem is None) is available
        assert any(finding is not None for findings in settled for finding in findings) is available
        # Without a comparison to wait for, no frame waits.
        assert available or all(len(findings) == 1 for findings in settled[2:])
    assert lane_of_classes().see(RED, PICTURE, None) == [None]
    slow = lane_of_classes()
    for at in range(5):
        slow.see(RED, PICTURE, at / 5)
    assert slow.problem == "5 frames per second; at least 8 are needed"


def test_a_gap_a_jump_back_a_cut_and_another_size_begin_anew() -> None:
    bright, small = np.full_like(PICTURE, 200), PICTURE[::2, ::2]
    for picture, time_s in ((PICTURE, 10.0), (PICTURE, 0.1), (bright, 0.4), (small, 0.4)):
        lane = lane_of_classes()
        for at in range(10):
            lane.see(RED, PICTURE, at / RATE)
        assert lane.see(RED, picture, time_s) == [None]
        # The frame after it has no neighbour before it.
        assert lane.see(RED, picture, time_s + 0.04) == [None]
        assert lane.see(RED, picture, time_s + 0.08) == [Finding()]


def test_a_frame_that_a_camera_drops_is_no_gap() -> None:
    lane = lane_of_classes()
    times = [at / 30 for at in range(40) if at not in (11, 20, 21)]
    settled = [lane.see(RED, PICTURE, time_s) for time_s in times]
    assert [finding for findings in settled[2:] for finding in findings] == [Finding()] * (len(times) - 2)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.04, 0.04, 0.04, 0.05, 0.5, -1.0, 0.0, float("nan")]),
            st.sampled_from([0, 0, 0, 0, 90]),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_every_frame_comes_out_once_and_in_order(steps: list[tuple[float, int, bool]]) -> None:
    lane = Lane(BoxComparison(FORM))
    time_s, out = 0.0, 0
    for number, (step, brightness, there) in enumerate(steps, 1):
        # NaN: a frame without a time.
        time_s += 0.0 if np.isnan(step) else step
        picture = np.full((36, 64, 3), brightness, np.uint8)
        boxes = answer(car(100)) if there else None
        out += len(lane.see(boxes, picture, None if np.isnan(step) else time_s))
        assert number - 2 <= out <= number
    assert out + len(lane.flush()) == len(steps)


def test_levels_are_those_of_the_frames_before() -> None:
    rng = np.random.default_rng(0)
    scores = np.where(rng.random(5000) < 0.02, rng.gamma(2, 0.4, 5000), 0.0)
    levels = Levels()
    assert levels.level(0.0) == levels.level(3.0) == 0.5
    for score in scores:
        levels.add(float(score))
    for score in (0.0, 0.2, 0.5, 1.0, 50.0):
        exact = (np.mean(scores < score) + np.mean(scores <= score)) / 2
        assert levels.level(score) == pytest.approx(exact, abs=1e-3)
    assert levels.level(50.0) < 1.0
    again = Levels()
    again.relearn(levels.learned())
    assert again.level(0.5) == levels.level(0.5)


def test_levels_forget_what_is_long_ago() -> None:
    levels = Levels(window=200)
    for score in [*[5.0] * 500, *[0.0] * 500]:
        levels.add(score)
    assert levels.level(1.0) > 0.99


def test_reasons_fit_an_offer() -> None:
    names = ("x" * 5000, "car")
    form = AnswerFormat(InputContract(height=HEIGHT, width=WIDTH), names)
    assert len(form.class_name(0)) == 64 and form.class_name(9) == "class 9"
    many = Finding(tuple(Event("break", 0.5, "y" * 400) for _ in range(50)))
    assert len(many.reason) == 256 and many.reason.endswith(", and 49 more")
    assert Counter(kinds(*drive(3))) == {}
