"""Recorded and live frames: all of them, or the newest; what cannot be read is skipped, counted and named."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from misfire_runtime.errors import SourceError
from misfire_runtime.preprocess import encode_jpeg, encode_png
from misfire_runtime.sources import Frame, FrameReader, SourceCounts, open_source
from services import data_root


def read_all(reader: FrameReader, *, limit_s: float = 30.0) -> list[Frame]:
    frames, deadline = [], time.monotonic() + limit_s
    while not reader.ended and time.monotonic() < deadline:
        frame = reader.next(0.2)
        if frame is not None:
            frames.append(frame)
    reader.close()
    return frames


def picture(value: int, *, size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


class Camera:
    """A live source whose timing the test decides."""

    live = True

    def __init__(self, name: str, frames: int, *, period_s: float = 0.0, silent_s: float = 0.0) -> None:
        self.name = name
        self.counts = SourceCounts()
        self._frames, self._period_s, self._silent_s = frames, period_s, silent_s
        self.produced = threading.Event()

    def frames(self, stop: threading.Event, *, start: int = 0) -> Iterator[Frame]:
        for index in range(start, self._frames):
            yield Frame(picture(index % 256), self.name, index, self.name)
            stop.wait(self._period_s)
        self.produced.set()
        stop.wait(self._silent_s)

    def close(self) -> None:
        pass


def test_a_clip_gives_every_frame_with_its_time_in_order(clip: Path) -> None:
    frames = read_all(FrameReader([open_source(str(clip))]))
    assert [frame.index for frame in frames] == list(range(221))
    assert frames[0].image.shape == (540, 960, 3)
    assert frames[50].pts_s == pytest.approx(2.0)
    assert all(frame.original is None for frame in frames)


def test_the_second_clip_plays_too() -> None:
    path = data_root() / "dashcam" / "vehicle_test_video.mp4"
    assert len(read_all(FrameReader([open_source(str(path))]))) == 38


def test_a_folder_gives_images_in_natural_order_with_their_bytes(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        (tmp_path / f"{number}.png").write_bytes(encode_png(picture(number)))
    (tmp_path / "notes.txt").write_text("not an image")
    frames = read_all(FrameReader([open_source(str(tmp_path))]))
    assert [frame.name for frame in frames] == ["1.png", "2.png", "10.png"]
    assert frames[2].original == (tmp_path / "10.png").read_bytes()
    assert frames[2].media_type == "image/png"


def test_unreadable_images_are_skipped_counted_and_named(tmp_path: Path) -> None:
    good = encode_jpeg(picture(90, size=64))
    (tmp_path / "a.jpg").write_bytes(good)
    (tmp_path / "b.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "c.png").write_bytes(b"")
    (tmp_path / "d.png").write_bytes(b"no image at all")
    (tmp_path / "e.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "f.jpg").write_bytes(good)
    source = open_source(str(tmp_path))
    frames = read_all(FrameReader([source]))
    assert [frame.name for frame in frames] == ["a.jpg", "f.jpg"]
    assert source.counts.unreadable == 3
    assert [problem.split(":")[0] for problem in source.counts.problems] == ["b.jpg", "c.png", "d.png"]


def test_a_truncated_video_gives_what_it_has_and_says_what_is_missing(tmp_path: Path) -> None:
    whole = (data_root() / "dashcam" / "vehicle_test_video.mp4").read_bytes()
    remuxed = tmp_path / "whole.mkv"
    clip = data_root() / "dashcam" / "solidWhiteRight.mp4"
    with av.open(str(clip)) as given, av.open(str(remuxed), "w") as target:
        stream = target.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(remuxed.read_bytes()[: remuxed.stat().st_size // 2])
    frames = read_all(FrameReader([open_source(str(cut))]))
    assert 60 < len(frames) < 200
    headless = tmp_path / "headless.mp4"
    headless.write_bytes(whole[: len(whole) // 3])
    source = open_source(str(headless))
    assert len(read_all(FrameReader([source]))) < 38
    assert source.counts.unreadable > 0
    assert "headless.mp4" in source.counts.problems[0]


def test_a_broken_video_among_good_files_does_not_end_the_run(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "1.mp4").write_bytes(b"\0" * 5000)
    shutil.copy(data_root() / "dashcam" / "vehicle_test_video.mp4", tmp_path / "2.mp4")
    (tmp_path / "3.png").write_bytes(encode_png(picture(3)))
    source = open_source(str(tmp_path))
    frames = read_all(FrameReader([source]))
    assert [frame.index for frame in frames] == list(range(39))
    assert source.counts.unreadable == 1
    assert "1.mp4" in source.counts.problems[0]


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("nowhere.mp4", "no such file"),
        ("gopher://camera", "unknown scheme 'gopher'"),
        ("gst:videotestsrc ! fakesink", "without a sink of its own"),
    ],
)
def test_what_cannot_be_a_source_is_named(where: str, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        open_source(where)


def test_an_empty_folder_and_a_text_file_are_no_sources(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no images or videos"):
        open_source(str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(SourceError, match=r"known are .*\.mp4"):
        open_source(str(tmp_path / "a.txt"))


def test_a_reader_goes_on_at_an_index(clip: Path, tmp_path: Path) -> None:
    frames = read_all(FrameReader([open_source(str(clip), name="c")], start={"c": 200}))
    assert [frame.index for frame in frames] == list(range(200, 221))
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(encode_png(picture(number)))
    frames = read_all(FrameReader([open_source(str(tmp_path), name="f")], start={"f": 3}))
    assert [frame.name for frame in frames] == ["3.png", "4.png"]


def test_a_live_source_gives_the_newest_frame_and_counts_the_rest() -> None:
    camera = Camera("front", 50, silent_s=20.0)
    reader = FrameReader([camera])
    assert camera.produced.wait(10)
    frame = reader.next(1.0)
    assert frame is not None and frame.index == 49
    assert camera.counts.dropped == 49
    assert reader.next(0.05) is None
    assert not reader.ended
    reader.close()


def test_a_silent_live_source_is_stalled_not_ended_and_recovers() -> None:
    camera = Camera("front", 3, period_s=0.4, silent_s=30.0)
    reader = FrameReader([camera], stall_s=0.15)
    seen: list[tuple[str, ...]] = []
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and camera.counts.stalls < 2:
        reader.next(0.05)
        seen.append(reader.stalled)
    assert camera.counts.stalls >= 2
    assert ("front",) in seen and () in seen
    assert not reader.ended
    reader.close()


def test_several_cameras_share_a_reader_and_keep_their_order(tmp_path: Path) -> None:
    for camera in ("left", "right"):
        (tmp_path / camera).mkdir()
        for number in range(20):
            (tmp_path / camera / f"{number}.png").write_bytes(encode_png(picture(number)))
    sources = [open_source(str(tmp_path / camera), name=camera) for camera in ("left", "right")]
    frames = read_all(FrameReader(sources))
    for camera in ("left", "right"):
        assert [frame.index for frame in frames if frame.source == camera] == list(range(20))


def test_one_lost_source_does_not_end_the_other_and_is_raised_at_the_end(tmp_path: Path) -> None:
    class Broken(Camera):
        live = False

        def frames(self, stop: threading.Event, *, start: int = 0) -> Iterator[Frame]:
            raise OSError("cable out")
            yield

    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(encode_png(picture(number)))
    reader = FrameReader([Broken("b", 1), open_source(str(tmp_path), name="good")])
    frames = []
    with pytest.raises(SourceError, match="b: OSError: cable out"):
        for _ in range(100):
            frame = reader.next(0.2)
            if frame is not None:
                frames.append(frame)
    reader.close()
    assert len(frames) == 10


def test_closing_ends_the_threads_of_a_source_that_waits(clip: Path) -> None:
    before = threading.active_count()
    reader = FrameReader([open_source(str(clip)), Camera("c", 10**9, period_s=0.01)])
    assert reader.next(5.0) is not None
    reader.close()
    assert threading.active_count() == before
