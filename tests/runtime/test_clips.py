"""Frames before and after a chosen one: which, with what times, and as a video that plays."""

from __future__ import annotations

import io
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from drawn_files import HEIGHT, WIDTH, exif, jpeg_with_exif, scene
from vehicle_support import make, run, scored_frame

from misfire_runtime import triggers
from misfire_runtime.messages import Trigger
from misfire_runtime.preprocess import decode_image, encode_jpeg
from misfire_runtime.samples.clips import ClipRecorder
from misfire_runtime.samples.encoding import Encoded
from misfire_runtime.sources import Frame, open_source
from misfire_runtime.sources.video import upright
from misfire_runtime.triggers import Choice

pytestmark = pytest.mark.slow

AROUND_100 = """
[random]
rate = 0.0
[triggers.once]
kind = "rule"
when = "context.never > 1"
[clips]
before_s = 1.0
after_s = 0.8
fps = 5
format = "%s"
"""


class _At(triggers.Trigger):
    """Fires on given frames alone."""

    name = "once"

    def __init__(self, *counts: int) -> None:
        self._counts = counts

    def look(self, frame: Any) -> Any:
        return triggers.TriggerEvent("once", "by index", 7) if frame.count in self._counts else None


def drive(
    bundle: Any, store: Any, folder: Path, source: Path, form: str, *counts: int, more: str = ""
) -> Any:
    vehicle = make(bundle, store, folder, source, AROUND_100 % form + more)
    vehicle.selector.triggers = (_At(*counts),)
    # A ring gives frames up when the writer is behind, as on a busy machine; these tests count frames.
    vehicle.writer._queue.maxsize = 10_000
    return run(vehicle)


def test_frames_before_and_after_are_samples_tied_together(
    bundle: Any, store: Any, tmp_path: Path, clip: Path
) -> None:
    report = drive(bundle, store, tmp_path, clip, "frames", 100)
    key = next(offer for offer in store.offers if offer.trigger.name == "once")
    around = [offer for offer in store.offers if offer.trigger.name == "clip"]
    assert key.frame == 100 and report.chosen == {"once": 1, "clip": len(around)}
    offsets = [offer.context["clip_offset_s"] for offer in around]
    assert len([o for o in offsets if o < 0]) == 5 and len([o for o in offsets if o > 0]) == 4
    assert min(offsets) >= -1.0 and max(offsets) <= 0.81
    assert {offer.context["clip"] for offer in around} == {key.id[:16]}
    assert not any(offer.trigger.random for offer in around)
    assert all(decode_image(store.samples[offer.id][0]).shape == (540, 960, 3) for offer in around)


def test_a_video_plays_with_the_times_of_the_drive(
    bundle: Any, store: Any, tmp_path: Path, clip: Path
) -> None:
    drive(bundle, store, tmp_path, clip, "video", 100)
    offer = next(offer for offer in store.offers if offer.trigger.name == "clip")
    assert offer.media_type == "video/mp4" and offer.context["clip_frames"] == 10
    with av.open(io.BytesIO(store.samples[offer.id][0])) as container:
        pictures = list(container.decode(video=0))
    assert len(pictures) == 10
    assert np.diff([picture.time for picture in pictures]) == pytest.approx(0.2, abs=0.09)
    key = next(o for o in store.offers if o.trigger.name == "once")
    still = decode_image(store.samples[key.id][0]).astype(int)
    shown = min(pictures, key=lambda p: abs(p.time - 1.0)).to_ndarray(format="rgb24").astype(int)
    assert np.abs(still - shown).mean() < 3


def test_a_second_firing_prolongs_a_clip_and_the_end_of_the_drive_completes_it(
    bundle: Any, store: Any, tmp_path: Path, clip: Path
) -> None:
    drive(bundle, store, tmp_path, clip, "video", 200, 212)
    clips = [offer for offer in store.offers if offer.trigger.name == "clip"]
    assert len(clips) == 1
    assert clips[0].context["clip_frames"] >= 9


@pytest.mark.parametrize("form", ["frames", "video"])
@pytest.mark.parametrize("every", [1, 3, 10**9])
def test_memory_is_bounded_however_often_frames_are_chosen(form: Any, every: int) -> None:
    """Pixels and outputs count: a trigger that always fires would otherwise hold all frames of a drive."""
    recorder = ClipRecorder(before_s=60, after_s=60, fps=60, form=form, max_bytes=2_000_000)
    choice = Choice(Trigger(name="t"), priority=5, budgeted=True)
    alive, clips = [], 0
    for index in range(300):
        chosen = index % every == every - 1
        frame = scored_frame(
            SimpleNamespace(nbytes=50_000),
            image=np.full((128, 128, 3), index % 250, np.uint8),
            time_s=index / 30,
            choice=choice if chosen else None,
        )
        picture = Encoded(encode_jpeg(frame.image), "image/jpeg", [], frame)
        alive.append(weakref.ref(frame.image))
        pieces = recorder.see(picture, sample=f"{index:064}" if chosen else None)
        clips += len(pieces)
        del frame, picture, pieces
    held = sum(image() is not None for image in alive)
    assert held <= 2_000_000 // (128 * 128 * 3 + 50_000) + 3
    assert clips > 0 or every > 300 or (form == "frames" and every == 1)


def test_the_ring_is_bounded_in_bytes(bundle: Any, store: Any, tmp_path: Path, clip: Path) -> None:
    more = "max_bytes = 3_600_000\n"
    drive(bundle, store, tmp_path, clip, "frames", 100, more=more)
    before = [o for o in store.offers if o.trigger.name == "clip" and o.context["clip_offset_s"] < 0]
    assert 1 <= len(before) <= 2


def test_clips_pay_from_the_budget(bundle: Any, store: Any, tmp_path: Path, clip: Path) -> None:
    report = drive(bundle, store, tmp_path, clip, "frames", 100, more="[limits]\nsamples_per_day = 3\n")
    assert report.spooled == 3 and report.lost["budget"] > 0


class Paced:
    """A folder of pictures as a drive of ten per second."""

    live = False
    identity = ""

    def __init__(self, inner: Any) -> None:
        self.name, self.counts, self._inner = inner.name, inner.counts, inner

    def frames(self, stop: threading.Event, *, start: int = 0) -> Iterator[Frame]:
        for frame in self._inner.frames(stop, start=start):
            yield replace(frame, pts_s=frame.index / 10)

    def close(self) -> None:
        pass


def test_a_video_of_turned_pictures_is_upright_and_of_one_size(
    bundle: Any, store: Any, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    turned = np.ascontiguousarray(np.rot90(scene(0)))
    (pictures / "0.jpg").write_bytes(encode_jpeg(turned))  # portrait: another size than the rest
    for number in range(1, 4):
        (pictures / f"{number}.jpg").write_bytes(jpeg_with_exif(turned, exif(orientation=6)) + b"x" * number)
    text = (AROUND_100 % "video").replace("fps = 5", "fps = 60") + "[encode]\njpeg_quality = 95\n"
    source = Paced(open_source(str(pictures)))
    vehicle = make(bundle, store, tmp_path, [source], text)
    vehicle.selector.triggers = (_At(2),)
    run(vehicle)
    offer = next(offer for offer in store.offers if offer.trigger.name == "clip")
    with av.open(io.BytesIO(store.samples[offer.id][0])) as container:
        shown = [upright(picture) for picture in container.decode(video=0)]
    assert len(shown) == offer.context["clip_frames"] == 3
    for image in shown:
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert np.abs(image.astype(int) - scene(0)).mean() < 12
