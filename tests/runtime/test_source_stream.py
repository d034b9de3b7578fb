"""Live streams over real RTSP and HTTP: frames arrive, a stream that goes comes back, silence is noticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import pytest
from drawn_files import draw_video, overwrite_payload
from rtsp_camera import RtspCamera

from misfire_runtime.sources import FrameReader, open_source
from misfire_runtime.sources.stream import LiveStream
from proving_ground.services import free_port


@contextmanager
def reading(source: LiveStream, **options: float) -> Iterator[FrameReader]:
    reader = FrameReader([source], **options)  # type: ignore[arg-type]
    try:
        yield reader
    finally:
        reader.close()


def frames_until(reader: FrameReader, count: int, *, limit_s: float = 30.0) -> list[int]:
    found: list[int] = []
    deadline = time.monotonic() + limit_s
    while len(found) < count and time.monotonic() < deadline:
        frame = reader.next(0.2)
        if frame is not None:
            assert frame.image.shape == (540, 960, 3)
            found.append(frame.index)
    return found


def test_an_rtsp_camera_plays_and_comes_back_after_it_was_gone(clip: Path) -> None:
    camera = RtspCamera(clip)
    source = LiveStream(camera.url, silence_s=3.0, max_wait_s=0.5)
    with reading(source) as reader:
        first = frames_until(reader, 10)
        assert len(first) == 10 and first == sorted(first)
        camera.close()
        gone = time.monotonic() + 20
        while source.counts.reconnects == 0 and time.monotonic() < gone:
            reader.next(0.2)
        assert source.counts.reconnects > 0 and not reader.ended
        again = RtspCamera(clip, port=camera.port)
        second = frames_until(reader, 10)
        assert len(second) == 10 and second[0] > first[-1]
        again.close()
    assert source.counts.problems


@pytest.mark.slow
def test_an_rtsp_camera_that_falls_silent_is_stalled_then_reconnected(clip: Path) -> None:
    camera = RtspCamera(clip, silent_after=120)
    source = LiveStream(camera.url, silence_s=2.0, max_wait_s=0.2)
    with reading(source, stall_s=0.7) as reader:
        assert frames_until(reader, 5)
        deadline = time.monotonic() + 20
        while source.counts.reconnects == 0 and time.monotonic() < deadline:
            reader.next(0.1)
        assert source.counts.stalls >= 1 and source.counts.reconnects >= 1
    camera.close()


def test_a_camera_that_was_never_there_is_tried_again_until_stopped() -> None:
    source = open_source(f"rtsp://127.0.0.1:{free_port()}/front", name="front")
    assert isinstance(source, LiveStream)
    source._max_wait_s = 0.1
    with reading(source) as reader:
        deadline = time.monotonic() + 20
        while source.counts.reconnects < 3 and time.monotonic() < deadline:
            assert reader.next(0.1) is None
        assert source.counts.reconnects >= 3 and not reader.ended
    assert "front:" in source.counts.problems[0]


def test_stopping_is_quick_while_a_stream_is_silent(clip: Path) -> None:
    camera = RtspCamera(clip, silent_after=120)
    source = LiveStream(camera.url, silence_s=3.0)
    with reading(source) as reader:
        assert frames_until(reader, 1)
        began = threading.active_count()
    assert threading.active_count() < began
    camera.close()


def test_a_v4l2_device_that_is_not_there_is_live_and_named(tmp_path: Path) -> None:
    source = open_source("/dev/video77")
    assert isinstance(source, LiveStream) and source.live
    source._max_wait_s = 0.1
    with reading(source) as reader:
        deadline = time.monotonic() + 10
        while source.counts.reconnects < 1 and time.monotonic() < deadline:
            reader.next(0.1)
    assert "/dev/video77: No such file" in source.counts.problems[0]


def test_pyav_can_open_v4l2_here() -> None:
    assert any("v4l2" in name for name in av.formats_available)


@pytest.mark.parametrize("url", ["rtsp://user:secret@10.0.0.9/s", "http://user:secret@10.0.0.9/s"])
def test_a_source_is_never_named_by_its_password(url: str) -> None:
    assert "secret" not in open_source(url).name


def test_damaged_frames_of_a_stream_are_left_out_up_to_the_next_key_frame(tmp_path: Path) -> None:
    slices = {"g": "25", "bf": "0", "x264-params": "scenecut=0:slices=1:sliced-threads=0"}
    whole = draw_video(tmp_path / "whole.mp4", frames=150, options=slices)
    damaged = overwrite_payload(whole, tmp_path / "damaged.mp4", begin=0.66, end=0.70)
    truth = {frame.image.tobytes() for frame in open_source(str(whole)).frames(threading.Event())}
    source, stop = LiveStream(str(damaged), max_wait_s=0.01), threading.Event()
    seen = 0
    for frame in source.frames(stop):
        if source.counts.reconnects:
            stop.set()
            break
        assert frame.image.tobytes() in truth
        seen += 1
    assert seen >= 10 and source.counts.unreadable >= 10


def test_a_stream_without_key_frames_comes_back_after_damage(tmp_path: Path) -> None:
    options = {"bf": "0", "x264-params": "intra-refresh=1:keyint=20:slices=1:sliced-threads=0"}
    whole = draw_video(tmp_path / "whole.mp4", frames=420, options=options)
    damaged = overwrite_payload(whole, tmp_path / "damaged.mp4", begin=0.10, end=0.13)
    source = open_source(str(damaged))
    indices = [frame.index for frame in source.frames(threading.Event())]
    assert len(indices) > 50 and 300 <= source.counts.unreadable < 360
