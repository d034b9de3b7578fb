"""GStreamer for real: pictures byte for byte, odd widths, restarts, silence, pipelines that are wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from misfire_runtime.errors import SourceError
from misfire_runtime.sources import FrameReader, open_source
from misfire_runtime.sources.gstreamer import PROGRAM, GStreamerPipeline
from proving_ground.services import find_program


@pytest.fixture(autouse=True)
def program() -> str:
    return find_program(PROGRAM, install="apt-get install gstreamer1.0-tools gstreamer1.0-plugins-base")


@contextmanager
def stopping() -> Iterator[threading.Event]:
    stop = threading.Event()
    yield stop
    stop.set()


def take(source: GStreamerPipeline, count: int) -> list[np.ndarray]:
    with stopping() as stop:
        frames = source.frames(stop)
        found = [frame.image for frame in islice(frames, count)]
        stop.set()
        assert list(frames) == []
    return found


@pytest.mark.parametrize("width", [960, 321])
def test_the_real_drive_comes_through_byte_for_byte(tmp_path: Path, clip: Path, width: int) -> None:
    """Frames of the dash-cam clip as raw pictures in a file, through filesrc; odd widths have padded rows."""
    with av.open(str(clip)) as container:
        pictures = [
            frame.to_ndarray(format="rgb24")[:, :width] for frame in islice(container.decode(video=0), 12)
        ]
    stride = (3 * width + 3) // 4 * 4
    with (tmp_path / "raw").open("wb") as file:
        for picture in pictures:
            rows = np.zeros((540, stride), np.uint8)
            rows[:, : 3 * width] = picture.reshape(540, -1)
            file.write(rows.tobytes())
    pipeline = f"filesrc location={tmp_path}/raw ! rawvideoparse width={width} height=540 format=rgb"
    found = take(GStreamerPipeline(pipeline), 12)
    assert all(np.array_equal(one, other) for one, other in zip(found, pictures, strict=True))


def test_a_pipeline_written_for_appsink_and_another_colour_order_works() -> None:
    source = open_source(
        "gst:videotestsrc pattern=red ! video/x-raw,width=64,height=48 ! videoconvert ! "
        "video/x-raw,format=BGR ! appsink drop=1 max-buffers=1"
    )
    assert isinstance(source, GStreamerPipeline) and source.live
    image = take(source, 1)[0]
    assert image.shape == (48, 64, 3) and (image == (255, 0, 0)).all()


def test_a_live_camera_is_read_by_its_newest_frame_and_what_it_replaced_is_counted() -> None:
    source = GStreamerPipeline("videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=50/1")
    reader = FrameReader([source])
    deadline = time.monotonic() + 60
    while source.counts.dropped < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    first = reader.next(5.0)
    reader.close()
    assert first is not None and first.index >= 5 <= source.counts.dropped


def test_a_pipeline_that_ends_is_started_again() -> None:
    source = GStreamerPipeline("videotestsrc num-buffers=3 ! video/x-raw,width=64,height=48", max_wait_s=0.1)
    with stopping() as stop:
        assert [frame.index for frame in islice(source.frames(stop), 7)] == list(range(7))
    assert source.counts.reconnects == 2 and source.counts.problems[0].endswith("the pipeline ended")


@pytest.mark.parametrize(
    ("pipeline", "problem"),
    [
        ("no-such-element ! videoconvert", 'no element "no-such-element"'),
        ("filesrc location=/not/there ! rawvideoparse width=64 height=48 format=rgb", "filesrc0: "),
        ("audiotestsrc", "could not link"),
    ],
)
def test_a_pipeline_that_is_wrong_says_why_and_is_tried_again(pipeline: str, problem: str) -> None:
    source = GStreamerPipeline(pipeline, max_wait_s=0.05)
    with stopping() as stop:
        thread = threading.Thread(target=lambda: list(source.frames(stop)))
        thread.start()
        deadline = time.monotonic() + 60
        while source.counts.reconnects < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        stop.set()
        thread.join(10)
    assert problem in source.counts.problems[0]


@pytest.mark.slow
def test_a_pipeline_that_falls_silent_is_ended_and_started_again() -> None:
    source = GStreamerPipeline(
        "videotestsrc num-buffers=2 ! video/x-raw,width=64,height=48 ! identity sleep-time=60000000",
        silence_s=1.0,
        max_wait_s=0.05,
    )
    with stopping() as stop:
        thread = threading.Thread(target=lambda: list(source.frames(stop)))
        thread.start()
        deadline = time.monotonic() + 60
        while source.counts.reconnects < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
    assert source.counts.problems[0].endswith("no frame for 1 s")


def test_without_gstreamer_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SourceError, match="apt-get install gstreamer1"):
        open_source("gst:videotestsrc")


def test_quotes_that_do_not_close_are_named() -> None:
    with pytest.raises(SourceError, match="No closing quotation"):
        open_source('gst:filesrc location="a.raw')
