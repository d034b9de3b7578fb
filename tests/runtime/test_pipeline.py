"""The frame path as a whole: every frame, the right bytes, nothing lost in silence, swaps between frames."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from vehicle_support import EVERY, NONE, camera, make, run

from misfire_runtime.bundle import Bundle
from misfire_runtime.config.tables import VehicleConfig, parse_config
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import ConfigError, DiskFullError, EngineError
from misfire_runtime.messages import unpack_embedding
from misfire_runtime.preprocess import decode_image, encode_jpeg, encode_png
from misfire_runtime.sources import Frame, open_source
from misfire_runtime.triggers.random_stream import recorded_identity


def pictures(folder: Path, count: int, *, size: int = 16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        (folder / f"{number:04}.png").write_bytes(
            encode_png(rng.integers(0, 256, (size, size, 3)).astype(np.uint8))
        )
    return folder


@pytest.mark.slow
def test_a_clip_is_scored_frame_by_frame(bundle: Bundle, store: Any, tmp_path: Path, clip: Path) -> None:
    report = run(make(bundle, store, tmp_path, clip, "[random]\nrate = 0.05\nseed = 1"))
    assert report.frames == 221 and report.finished and report.lost == {}
    assert store.counted["frames"] == 221
    assert report.spooled == len(store.samples) > 0
    offer = next(offer for offer in store.offers if offer.trigger.random)
    assert offer.trigger.rate == 0.05
    image = decode_image(store.samples[offer.id][0])
    assert image.shape == (540, 960, 3)
    assert offer.source == "drive.mp4" and offer.bundle == "small@1.0.0"
    assert offer.embedding is not None and unpack_embedding(offer.embedding).shape == (8,)
    assert set(offer.percentiles) == {"entropy", "msp"}


def test_images_arrive_as_their_original_bytes(
    bundle: Bundle, store: Any, tmp_path: Path, stills: Path
) -> None:
    report = run(make(bundle, store, tmp_path, stills))
    files = list(stills.iterdir())
    originals = {path.read_bytes() for path in files}
    assert {payload for payload, _offer in store.samples.values()} == originals
    assert report.frames == len(originals)
    assert {offer.source for offer in store.offers} == {path.name for path in files}


@pytest.mark.slow
def test_the_same_drive_gives_the_same_choices(
    bundle: Bundle, new_store: Any, tmp_path: Path, clip: Path
) -> None:
    text = (
        '[random]\nrate=0.02\nseed=3\n[novelty]\n[triggers.t]\nkind="target-rate"\nrate=0.1\ncool_down_s=0.4'
    )
    chosen = []
    for attempt in ("a", "b"):
        store = new_store()
        run(make(bundle, store, tmp_path / attempt, clip, text))
        chosen.append([(offer.frame, offer.id, offer.scores["entropy"]) for offer in store.offers])
    assert chosen[0] == chosen[1] and chosen[0]


def test_repeated_pictures_are_known_already(bundle: Bundle, store: Any, tmp_path: Path) -> None:
    data = encode_png(np.full((16, 16, 3), 9, np.uint8))
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / "in" / f"{number}.png").write_bytes(data)
    report = run(make(bundle, store, tmp_path, tmp_path / "in"))
    assert (report.frames, report.spooled, report.duplicates) == (5, 1, 4)


def test_a_full_disk_is_counted_named_and_does_not_stop_scoring(
    bundle: Bundle, store: Any, tmp_path: Path
) -> None:
    store.full = True
    vehicle = make(bundle, store, tmp_path, pictures(tmp_path / "in", 10))
    report = run(vehicle)
    assert report.frames == 10 and report.lost == {"disk full": 10}
    assert "no room" in str(vehicle.writer.failure)


def test_frames_that_a_full_disk_could_not_count_are_counted_later(
    bundle: Bundle, store: Any, tmp_path: Path
) -> None:
    real, full = store.count, [True]

    def count(**increments: int) -> None:
        if full[0]:
            raise DiskFullError("no room on the disk")
        real(**increments)

    store.count = count
    vehicle = make(bundle, store, tmp_path, pictures(tmp_path / "in", 10), NONE)
    vehicle.run(threading.Event())
    assert store.counted["frames"] == 0
    full[0] = False
    vehicle.writer.flush({"frames": 0}, {})
    vehicle.close()
    assert store.counted["frames"] == 10


def test_a_store_that_breaks_loses_a_sample_not_the_thread(
    bundle: Bundle, store: Any, tmp_path: Path
) -> None:
    real, calls = store.add, []

    def flaky(payload: bytes, offer: Any, *, priority: int) -> bool:
        calls.append(offer.id)
        if len(calls) == 3:
            raise RuntimeError("driver trouble")
        return bool(real(payload, offer, priority=priority))

    store.add = flaky
    report = run(make(bundle, store, tmp_path, pictures(tmp_path / "in", 10)))
    assert report.lost == {"RuntimeError": 1} and report.spooled == 9


def test_a_slow_disk_slows_a_recording_and_loses_nothing(bundle: Bundle, store: Any, tmp_path: Path) -> None:
    store.slow_s = 0.01
    report = run(make(bundle, store, tmp_path, pictures(tmp_path / "in", 60), EVERY + "[spool]\nqueue = 2\n"))
    assert report.spooled == 60 and report.lost == {}


def test_a_slow_disk_does_not_slow_a_camera_and_what_is_lost_is_counted(
    bundle: Bundle, store: Any, tmp_path: Path
) -> None:
    store.slow_s = 0.2
    text = EVERY + "[spool]\nqueue = 1\n[degrade]\nenabled = false\n"
    report = run(make(bundle, store, tmp_path, [camera(100, period_s=0.005)], text))
    assert report.lost["queue full"] > 20
    assert report.spooled + report.lost["queue full"] == report.frames
    assert report.frames + report.dropped == 100


def test_under_load_a_camera_is_thinned_but_its_random_stream_is_whole(
    bundle: Bundle, store: Any, tmp_path: Path
) -> None:
    vehicle = make(bundle, store, tmp_path, [camera(120, period_s=0.01)], NONE + "[degrade]\nhold_s = 1e6\n")
    vehicle.ladder.step = 4
    vehicle._random.rate = 0.2
    stream, run_id = vehicle._random, vehicle._run_id
    report = run(vehicle)
    expected = sum(stream.takes(f"{run_id}/front/{index}") for index in range(120))
    assert report.spooled == pytest.approx(expected, abs=3) and report.frames < 60
    assert all(offer.trigger.random for offer in store.offers)
    assert report.frames + report.dropped == 120


def test_stopping_leaves_every_chosen_frame_in_the_store_and_a_restart_goes_on(
    bundle: Bundle, store: Any, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "in", 300)
    stop = threading.Event()
    vehicle = make(bundle, store, tmp_path, folder)
    real = vehicle.writer.put

    def put(candidate: Any, **options: Any) -> bool:
        if candidate.frame.index == 120:
            stop.set()
        return real(candidate, **options)

    vehicle.writer.put = put  # type: ignore[method-assign]
    first = run(vehicle, stop)
    assert not first.finished and first.frames == 121 == len(store.samples)
    second = run(make(bundle, store, tmp_path, folder))
    assert second.finished and second.frames == 179 and len(store.samples) == 300
    assert store.counted["frames"] == 300
    third = run(make(bundle, store, tmp_path, folder))
    assert third.frames == 300 and third.duplicates == 300


def test_without_resume_an_interrupted_recording_starts_over(
    bundle: Bundle, store: Any, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "in", 30)
    vehicle = make(bundle, store, tmp_path, folder)
    vehicle._progress.save({vehicle._identities["in"]: 20})
    assert run(make(bundle, store, tmp_path, folder, resume=False)).frames == 30


def test_unreadable_files_are_counted(bundle: Bundle, store: Any, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 3)
    (folder / "0001.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    report = run(make(bundle, store, tmp_path, folder))
    assert (report.frames, report.unreadable) == (2, 1)
    assert store.counted["frames_unreadable"] == 1
    assert report.problems[0].startswith("0001.png: truncated PNG")


def test_a_bundle_is_switched_between_frames(make_bundle: Any, store: Any, tmp_path: Path) -> None:
    one, two = make_bundle(tmp_path / "1"), make_bundle(tmp_path / "2", seed=3, version="2.0.0")
    vehicle = make(one, store, tmp_path, pictures(tmp_path / "in", 40))
    fresh, old = Scorer.load(two), vehicle.scorer
    real = vehicle._score

    def score(frame: Frame) -> Any:
        if frame.index == 19:
            vehicle.use(fresh)
        return real(frame)

    vehicle._score = score  # type: ignore[method-assign]
    report = run(vehicle)
    assert report.frames == 40 and report.bundle == "small@2.0.0"
    labels = [offer.bundle for offer in store.offers]
    assert labels == ["small@1.0.0"] * 20 + ["small@2.0.0"] * 20
    with pytest.raises(EngineError):
        old.score(np.zeros((64, 64, 3), np.uint8))


def test_a_configuration_that_does_not_fit_changes_nothing(
    bundle: Bundle, store: Any, tmp_path: Path
) -> None:
    vehicle = make(bundle, store, tmp_path, pictures(tmp_path / "in", 10))
    with pytest.raises(ConfigError, match="no score 'nope'"):
        vehicle.apply(parse_config('[triggers.t]\nkind = "threshold"\nscore = "nope"\nabove = 0'))
    assert run(vehicle).spooled == 10


def test_an_engine_that_keeps_failing_ends_the_run_with_its_reason(
    bundle: Bundle, store: Any, tmp_path: Path
) -> None:
    vehicle = make(bundle, store, tmp_path, pictures(tmp_path / "in", 30))
    vehicle.scorer.close()
    with pytest.raises(EngineError, match="gave up after 10 failures in a row"):
        vehicle.run(threading.Event())
    vehicle.close()
    assert vehicle.statistics.engine_failures == 10


def test_refused_scores_are_counted_and_trigger_nothing(make_bundle: Any, store: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, value in enumerate((0, 255, 255)):
        data = encode_png(np.full((64, 64, 3), value, np.uint8))
        (tmp_path / "in" / f"{number}.png").write_bytes(data)
    report = run(make(make_bundle(tmp_path / "b", poison="entropy"), store, tmp_path, tmp_path / "in", EVERY))
    assert report.refused_scores == {"entropy": 2}
    assert [offer.frame for offer in store.offers] == [0]


def test_budgets_bound_what_triggers_take_and_credit_comes_back(
    bundle: Bundle, store: Any, tmp_path: Path
) -> None:
    text = EVERY + "[limits]\nsamples_per_hour = 4\n[random]\nrate = 0.1\nseed = 5\n"
    vehicle = make(bundle, store, tmp_path, pictures(tmp_path / "in", 100), text)
    report = run(vehicle)
    triggered = [offer for offer in store.offers if not offer.trigger.random]
    assert len(triggered) == 4
    frames = open_source(str(tmp_path / "in")).frames(threading.Event())
    stream = vehicle._random
    assert report.chosen["random"] == sum(stream.takes(recorded_identity(frame)) for frame in frames) > 0
    vehicle.credit(triggered[0].id)
    vehicle.close()
    again = make(
        bundle,
        store,
        tmp_path,
        pictures(tmp_path / "more", 50, size=17),
        EVERY + "[limits]\nsamples_per_hour = 4\n[random]\nrate = 0.0\n",
    )
    assert run(again).chosen == {"all": 1}


def test_context_goes_into_rules_and_offers(bundle: Bundle, store: Any, tmp_path: Path) -> None:
    text = '[triggers.fast]\nkind = "rule"\nwhen = "context.speed > 10"\n[random]\nrate = 0.0\n'
    vehicle = make(bundle, store, tmp_path, pictures(tmp_path / "in", 5), text)
    vehicle.context.update("speed=30.5 gear=3 raining=true city=Ulm")
    assert run(vehicle).spooled == 5
    assert store.offers[0].context == {"speed": 30.5, "gear": 3.0, "raining": True, "city": "Ulm"}


def test_gray_large_and_old_kinds_of_pictures_go_through(bundle: Bundle, store: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "gray.png"), np.full((8, 8), 80, np.uint8))
    cv2.imwrite(str(tmp_path / "in" / "old.bmp"), np.full((8, 8, 3), 90, np.uint8))
    (tmp_path / "in" / "large.jpg").write_bytes(encode_jpeg(np.zeros((2000, 3000, 3), np.uint8)))
    assert run(make(bundle, store, tmp_path, tmp_path / "in")).spooled == 3
    assert {offer.source: offer.media_type for offer in store.offers} == {
        "gray.png": "image/png",
        "large.jpg": "image/jpeg",
        "old.bmp": "image/jpeg",
    }


def test_ticks_come_from_the_living_frame_path(bundle: Bundle, store: Any, tmp_path: Path) -> None:
    ticks: list[float] = []
    vehicle = make(
        bundle,
        store,
        tmp_path,
        [camera(250, period_s=0.01)],
        on_tick=lambda _vehicle: ticks.append(time.monotonic()),
    )
    stop = threading.Event()
    threading.Timer(2.3, stop.set).start()
    run(vehicle, stop)
    assert len(ticks) >= 2


def test_default_configuration_chooses_by_the_default_score() -> None:
    config = VehicleConfig()
    assert config.triggers["target-rate"].kind == "target-rate"
    assert config.random.rate == 0.01
