"""Recorded and live frames: all of them, or the newest; what cannot be read is skipped, counted and named."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from drawn_files import (
    HEIGHT,
    WIDTH,
    copy_packets,
    draw_video,
    exif,
    jpeg_with_exif,
    overwrite_payload,
    png_with_exif,
    scene,
    set_matrix,
)
from vehicle_support import make, run

from misfire_runtime.errors import SourceError
from misfire_runtime.preprocess import encode_jpeg, encode_png
from misfire_runtime.sources import Frame, FrameReader, open_source
from misfire_runtime.testing import ListSource
from proving_ground.services import data_root


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
    *unreadable, passed = source.counts.problems
    assert [problem.split(":")[0] for problem in unreadable] == ["b.jpg", "c.png", "d.png"]
    assert passed.endswith("passed over 1 files that are no images or videos, or hidden: e.jpg")


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
    camera = ListSource(map(picture, range(50)), live=True, silent_s=20.0)
    reader = FrameReader([camera])
    assert camera.exhausted.wait(10)
    frame = reader.next(1.0)
    assert frame is not None and frame.index == 49
    assert camera.counts.dropped == 49
    assert reader.next(0.05) is None
    assert not reader.ended
    reader.close()


def test_a_silent_live_source_is_stalled_not_ended_and_recovers() -> None:
    camera = ListSource(map(picture, range(3)), live=True, period_s=0.4, silent_s=30.0)
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
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(encode_png(picture(number)))
    broken = ListSource([], name="b", failure=OSError("cable out"))
    reader = FrameReader([broken, open_source(str(tmp_path), name="good")])
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
    reader = FrameReader(
        [open_source(str(clip)), ListSource(itertools.repeat(picture(0)), live=True, period_s=0.01)]
    )
    assert reader.next(5.0) is not None
    reader.close()
    assert threading.active_count() == before


RECORDED = datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc).timestamp()
DATED = {"creation_time": "2023-11-14T22:13:20Z"}


def distance(image: np.ndarray, other: np.ndarray) -> float:
    assert image.shape == other.shape
    return float(np.abs(image.astype(int) - other).mean())


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((1, 0, 0, 1), lambda image: image),
    ],
    ids=["90", "180", "270", "mirrored", "upright"],
)
def test_a_rotated_video_gives_upright_frames(tmp_path: Path, suffix: str, matrix: Any, shown: Any) -> None:
    plain = draw_video(tmp_path / f"plain{suffix}", frames=3)
    turned = set_matrix(plain, tmp_path / f"turned{suffix}", matrix)
    frames = read_all(FrameReader([open_source(str(turned))]))
    given = read_all(FrameReader([open_source(str(plain))]))
    assert [frame.image.tobytes() for frame in frames] == [shown(f.image).tobytes() for f in given]
    assert frames[0].image.shape == shown(given[0].image).shape and frames[0].image.flags.c_contiguous


def test_a_rotated_matroska_file_gives_upright_frames(tmp_path: Path) -> None:
    turned = set_matrix(draw_video(tmp_path / "a.mp4", frames=3), tmp_path / "turned.mp4", (0, 1, -1, 0))
    remuxed = tmp_path / "turned.mkv"
    with av.open(str(turned)) as given, av.open(str(remuxed), "w") as target:
        stream = target.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with av.open(str(remuxed)) as container:
        if next(container.decode(video=0)).rotation == 0:
            pytest.fail("the display matrix was lost in remuxing: this test proves nothing")
    frames = read_all(FrameReader([open_source(str(remuxed))]))
    assert [frame.image.shape for frame in frames] == [(WIDTH, HEIGHT, 3)] * 3


def test_a_cut_with_an_edit_list_has_no_unreadable_frames(tmp_path: Path) -> None:
    full = draw_video(tmp_path / "full.mp4")
    source = open_source(str(copy_packets(full, tmp_path / "cut.mp4", start_s=1.3, seconds=2.0)))
    frames = read_all(FrameReader([source]))
    with av.open(str(tmp_path / "cut.mp4")) as container:
        assert container.streams.video[0].frames > len(frames) == 20
    assert source.counts.unreadable == 0 and not source.counts.problems
    assert frames[0].pts_s == pytest.approx(0.0)
    assert distance(frames[0].image, scene(13)) < 12


def test_a_wrong_frame_count_in_a_header_is_no_damage(tmp_path: Path) -> None:
    data = bytearray(draw_video(tmp_path / "a.avi", codec="mpeg4").read_bytes())
    for header, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = data.index(header) + offset
        assert int.from_bytes(data[at : at + 4], "little") == 60
        data[at : at + 4] = (75).to_bytes(4, "little")
    (tmp_path / "a.avi").write_bytes(data)
    source = open_source(str(tmp_path / "a.avi"))
    assert len(read_all(FrameReader([source]))) == 60
    assert source.counts.unreadable == 0 and not source.counts.problems


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"movflags": "faststart"}),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx", {}),
        ("a.avi", "mjpeg", {}),
    ],
)
def test_a_truncated_video_says_how_many_frames_are_missing(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    whole = draw_video(tmp_path / name, codec=codec, container_options=options)
    source = open_source(str(whole))
    assert len(read_all(FrameReader([source]))) == 60 and source.counts.unreadable == 0
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    source = open_source(str(whole))
    frames = read_all(FrameReader([source]))
    assert 10 < len(frames) < 50
    assert len(frames) + source.counts.unreadable == 60
    assert f"{name}: truncated" in source.counts.problems[0]


def test_frames_that_are_damaged_or_built_on_damaged_ones_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = draw_video(tmp_path / "whole.mp4")
    truth = [frame.image for frame in read_all(FrameReader([open_source(str(whole))]))]
    source = open_source(str(overwrite_payload(whole, tmp_path / "damaged.mp4", begin=0.40, end=0.46)))
    with caplog.at_level("WARNING", "misfire_runtime"):
        frames = read_all(FrameReader([source]))
    assert all(distance(frame.image, truth[frame.index]) < 0.01 for frame in frames)
    assert {frame.index for frame in frames} >= {*range(20), *range(50, 60)}  # the other two groups are whole
    assert source.counts.unreadable == 60 - len(frames) >= 10
    assert list(source.counts.problems) == [
        f"damaged.mp4: {60 - len(frames)} frames left out: damaged, or built on damaged ones"
    ]
    assert [record.fields["damaged"] for record in caplog.records if record.msg == "video_damaged"] == [
        60 - len(frames)
    ]


def test_a_cut_picture_in_a_motion_jpeg_video_is_left_out_alone(tmp_path: Path) -> None:
    whole = draw_video(tmp_path / "whole.avi", codec="mjpeg", frames=10)
    source = open_source(str(copy_packets(whole, tmp_path / "cut.avi", cut=(3,))))
    frames = read_all(FrameReader([source]))
    assert [frame.index for frame in frames] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert source.counts.unreadable == 1 and "1 frames left out" in source.counts.problems[0]


def test_a_video_says_when_its_frames_were_recorded(tmp_path: Path) -> None:
    for suffix in (".mp4", ".mkv"):
        path = draw_video(tmp_path / f"a{suffix}", metadata=DATED, frames=30)
        frames = read_all(FrameReader([open_source(str(path))]))
        assert [frame.recorded_at for frame in frames[::10]] == pytest.approx(
            [RECORDED, RECORDED + 1, RECORDED + 2]
        )
    silent = draw_video(tmp_path / "silent.mp4", frames=2)
    never_set = draw_video(
        tmp_path / "1970.mp4", frames=2, metadata={"creation_time": "1970-01-01T00:01:00Z"}
    )
    for path in (silent, never_set):
        assert [f.recorded_at for f in read_all(FrameReader([open_source(str(path))]))] == [None, None]


def test_the_position_in_a_transport_stream_counts_from_its_start(tmp_path: Path) -> None:
    frames = read_all(FrameReader([open_source(str(draw_video(tmp_path / "a.ts", frames=11)))]))
    assert [frames[0].pts_s, frames[10].pts_s] == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_picture_says_when_it_was_taken(tmp_path: Path, order: str) -> None:
    block = exif(taken="2023:11:14 23:13:20", offset="+01:00", fraction="25", order=order)
    (tmp_path / "a.jpg").write_bytes(jpeg_with_exif(scene(0), block))
    (tmp_path / "b.png").write_bytes(png_with_exif(scene(0), block))
    (tmp_path / "c.jpg").write_bytes(jpeg_with_exif(scene(0), exif(taken="0000:00:00 00:00:00", order=order)))
    (tmp_path / "d.jpg").write_bytes(encode_jpeg(scene(0)))
    frames = read_all(FrameReader([open_source(str(tmp_path))]))
    assert [frame.recorded_at for frame in frames] == [RECORDED + 0.25, RECORDED + 0.25, None, None]
    assert all(frame.pts_s is None for frame in frames)


def test_a_picture_without_a_zone_was_taken_in_local_time_and_that_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        data = jpeg_with_exif(scene(0), exif(taken="2023:11:14 23:13:20"))
        (tmp_path / f"{number}.jpg").write_bytes(data)
    monkeypatch.setenv("TZ", "CET-1")  # needs no data base of zones
    time.tzset()
    try:
        with caplog.at_level("WARNING", "misfire_runtime"):
            frames = read_all(FrameReader([open_source(str(tmp_path))]))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [frame.recorded_at for frame in frames] == [RECORDED] * 3
    assert [record.msg for record in caplog.records] == ["recording_time_without_zone"]


def test_offers_say_when_a_frame_was_recorded_and_where_in_the_recording(
    tmp_path: Path, bundle: Any, store: Any
) -> None:
    path = draw_video(tmp_path / "a.mp4", metadata=DATED, frames=11)
    run(make(bundle, store, tmp_path, path))
    first, *_, last = store.offers
    assert (first.recorded_at, first.position_s) == (RECORDED, 0.0)
    assert (last.recorded_at, last.position_s) == (pytest.approx(RECORDED + 1), pytest.approx(1.0))
    assert abs(first.captured_at.wall - time.time()) < 600


def test_a_padded_picture_is_kept_without_its_padding(tmp_path: Path, bundle: Any, store: Any) -> None:
    whole = encode_jpeg(scene(0))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(whole + bytes(4096))
    report = run(make(bundle, store, tmp_path, tmp_path / "pictures"))
    assert report.unreadable == 0
    assert [payload for payload, _offer in store.samples.values()] == [whole]


def test_names_that_are_not_utf_8_are_read_shown_and_sent(tmp_path: Path, bundle: Any, store: Any) -> None:
    folder = tmp_path / os.fsdecode(b"d\xe9pot")
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(encode_png(scene(0)))
    (folder / os.fsdecode(b"kapu\xdf.png")).write_bytes(b"no picture")
    shutil.copy(draw_video(tmp_path / "a.mp4", frames=1), folder / os.fsdecode(b"vid\xe9o.mp4"))
    source = open_source(str(folder))
    assert source.name == r"d\xe9pot"
    vehicle = make(bundle, store, tmp_path, [source])
    report = run(vehicle)
    assert [offer.source for offer in store.offers] == [r"caf\xe9.png", r"vid\xe9o.mp4"]
    assert report.problems == [r"kapu\xdf.png: not an image that OpenCV can decode"]
    single = open_source(str(folder / os.fsdecode(b"caf\xe9.png")))
    assert [frame.name for frame in read_all(FrameReader([single]))] == [r"caf\xe9.png"]
    with pytest.raises(SourceError, match=r"gone\\xe9: no such file"):
        open_source(str(folder / os.fsdecode(b"gone\xe9")))


def test_files_are_known_by_their_content_if_their_suffix_says_nothing(tmp_path: Path) -> None:
    names = ["a.jfif", "b.jpe", "c", "d.JPG", "e.jpg.1", "f.picture"]
    for name in names:
        (tmp_path / name).write_bytes(encode_jpeg(scene(0)))
    shutil.copy(draw_video(tmp_path / "g.mp4", frames=2), tmp_path / "h.dat")
    shutil.copy(draw_video(tmp_path / "i.ts", frames=2), tmp_path / "j")
    shutil.copy(draw_video(tmp_path / "k.mkv", frames=2), tmp_path / "l.video")
    source = open_source(str(tmp_path))
    frames = read_all(FrameReader([source]))
    assert [f.name for f in frames if f.original] == names
    assert {f.name for f in frames if not f.original} == {"g.mp4", "h.dat", "i.ts", "j", "k.mkv", "l.video"}
    assert source.counts.unreadable == 0 and not source.counts.problems
    assert len(read_all(FrameReader([open_source(str(tmp_path / "c"))]))) == 1


def test_what_is_passed_over_in_a_folder_is_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "@eaDir").mkdir()
    for name in ("a.jpg", "._a.jpg", "@eaDir/a.jpg", ".hidden.png"):
        (tmp_path / name).write_bytes(encode_jpeg(scene(0)))
    for name in ("notes.txt", "list.csv", "empty"):
        (tmp_path / name).write_bytes(b"text" if "." in name else b"")
    source = open_source(str(tmp_path), name="drive")
    assert [frame.name for frame in read_all(FrameReader([source]))] == ["a.jpg"]
    (problem,) = source.counts.problems
    assert source.counts.unreadable == 0
    assert problem.startswith("drive: passed over 6 files that are no images or videos, or hidden: ")
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(SourceError, match="no images or videos in this folder; passed over 6 files"):
        open_source(str(tmp_path))


def test_a_command_line_may_name_a_source_that_is_not_utf_8(tmp_path: Path, bundle: Any) -> None:
    name = b"caf\xe9.png"
    (tmp_path / os.fsdecode(name)).write_bytes(encode_png(scene(0)))
    command = [sys.executable, "-m", "misfire_runtime.cli", "run", "--json", "--rate", "1"]
    arguments = ["--bundle", str(bundle.path), "--spool", str(tmp_path / "spool"), "--source", name]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["spooled"] == 1
