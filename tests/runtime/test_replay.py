"""Drives recorded as MCAP: both message kinds in every encoding, torn files, and messages that lie."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcap.writer import Writer

from misfire_runtime.errors import SourceError
from misfire_runtime.preprocess import encode_jpeg, encode_png
from misfire_runtime.sources import Frame, open_source
from misfire_runtime.sources.replay import Compressed, from_cdr, from_json, from_protobuf, from_ros1

PERIOD_NS = 100_000_000


def jpeg(number: int) -> bytes:
    image = np.full((32, 48, 3), 20 * number, np.uint8)
    image[:, : number + 1] = 255
    return encode_jpeg(image)


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, head = len(payload), bytes([number << 3 | 2])
    while size >= 0x80:
        head += bytes([size & 0x7F | 0x80])
        size >>= 7
    return head + bytes([size]) + payload


def protobuf(data: bytes) -> bytes:
    """foxglove.CompressedImage: timestamp = 1, data = 2, format = 3, frame_id = 4."""
    return field(1, b"\x08\x01\x10\x02") + field(4, b"front") + field(2, data) + field(3, b"jpeg")


def as_json(data: bytes) -> bytes:
    return json.dumps({"data": base64.b64encode(data).decode(), "format": "jpeg", "frame_id": "f"}).encode()


def cdr(data: bytes, *, order: str = "<", form: bytes = b"jpeg") -> bytes:
    """sensor_msgs/msg/CompressedImage as ROS 2 writes it; strings end in NUL and are aligned to 4."""
    body = struct.pack(f"{order}iI", 7, 8)
    for text in (b"camera_link\0", form + b"\0"):
        body += b"\0" * (-len(body) % 4) + struct.pack(f"{order}I", len(text)) + text
    body += b"\0" * (-len(body) % 4) + struct.pack(f"{order}I", len(data)) + data
    return (b"\x00\x01" if order == "<" else b"\x00\x00") + b"\0\0" + body


def ros1(data: bytes) -> bytes:
    body = struct.pack("<III", 1, 7, 8)
    for text in (b"camera", b"jpeg", data):
        body += struct.pack("<I", len(text)) + text
    return body


KINDS: dict[str, tuple[str, str, str, Callable[[bytes], bytes]]] = {
    "foxglove protobuf": ("foxglove.CompressedImage", "protobuf", "protobuf", protobuf),
    "foxglove json": ("foxglove.CompressedImage", "jsonschema", "json", as_json),
    "ros 2 cdr": ("sensor_msgs/msg/CompressedImage", "ros2msg", "cdr", cdr),
    "ros 1": ("sensor_msgs/CompressedImage", "ros1msg", "ros1", ros1),
}


CDR_IMAGE = ("sensor_msgs/msg/CompressedImage", "ros2msg", "cdr")
START_NS = 1_700_000_000 * 10**9


def record_topics(
    path: Path,
    topics: dict[str, list[bytes]],
    *,
    begin_s: float = 0.0,
    schema: tuple[str, str, str] = CDR_IMAGE,
) -> Path:
    """One message of every topic per period, in the order in which they are given."""
    with path.open("wb") as stream:
        writer = Writer(stream)
        writer.start()
        name, encoding, message_encoding = schema
        number = writer.register_schema(name, encoding, b"x")
        channels = {topic: writer.register_channel(topic, message_encoding, number) for topic in topics}
        for index in range(max(len(messages) for messages in topics.values())):
            at = START_NS + int(begin_s * 1e9) + index * PERIOD_NS
            for topic, messages in topics.items():
                writer.add_message(channels[topic], at, messages[index], at)
        writer.finish()
    return path


def record(
    path: Path, kind: str, messages: list[bytes], *, topic: str = "/front", chunk: int = 1 << 20
) -> Path:
    schema, encoding, message_encoding, _pack = KINDS[kind]
    with path.open("wb") as stream:
        writer = Writer(stream, chunk_size=chunk)
        writer.start()
        other = writer.register_schema("std_msgs/msg/String", "ros2msg", b"string data")
        noise = writer.register_channel("/chatter", "cdr", other)
        images = writer.register_channel(
            topic, message_encoding, writer.register_schema(schema, encoding, b"x")
        )
        rear = writer.register_channel(
            "/rear", message_encoding, writer.register_schema(schema, encoding, b"x")
        )
        for number, message in enumerate(messages):
            at = 10**18 + number * PERIOD_NS
            writer.add_message(noise, at, b"hello", at)
            writer.add_message(images, at, message, at)
            writer.add_message(rear, at, KINDS[kind][3](jpeg(11)), at)
        writer.finish()
    return path


def play(path: Path, *, topic: str | None = None, start: int = 0) -> tuple[list[Frame], list[str]]:
    source = open_source(str(path), topic=topic)
    frames = list(source.frames(threading.Event(), start=start))
    return frames, list(source.counts.problems)


@pytest.mark.parametrize("kind", KINDS)
def test_a_drive_is_replayed_with_its_times_and_bytes(tmp_path: Path, kind: str) -> None:
    path = record(tmp_path / "drive.mcap", kind, [KINDS[kind][3](jpeg(n)) for n in range(10)])
    frames, problems = play(path)
    assert problems == []
    assert [frame.original for frame in frames] == [jpeg(n) for n in range(10)]
    assert [frame.pts_s for frame in frames] == pytest.approx([n * 0.1 for n in range(10)])
    assert frames[3].image.shape == (32, 48, 3) and frames[3].media_type == "image/jpeg"
    assert frames[3].name == "/front"
    rear, _ = play(path, topic="/rear", start=8)
    assert [frame.index for frame in rear] == [8, 9] and rear[0].original == jpeg(11)


def test_a_rosbag2_folder_is_played_file_by_file(tmp_path: Path) -> None:
    for part in range(2):
        record(
            tmp_path / f"bag_{part}.mcap", "ros 2 cdr", [cdr(jpeg(n)) for n in range(part * 3, part * 3 + 3)]
        )
    (tmp_path / "metadata.yaml").write_text("rosbag2_bagfile_information:\n")
    frames, _ = play(tmp_path)
    assert [frame.original for frame in frames] == [jpeg(n) for n in range(6)]
    assert [frame.index for frame in frames] == list(range(6))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_torn_recording_gives_what_it_has_and_is_named(tmp_path: Path, share: float) -> None:
    whole = record(tmp_path / "w.mcap", "ros 2 cdr", [cdr(jpeg(n % 11)) for n in range(40)], chunk=4096)
    torn = tmp_path / "torn.mcap"
    torn.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    frames, problems = play(torn)
    assert 0 < len(frames) <= 40
    assert any("torn.mcap: damaged or truncated" in problem for problem in problems) or share > 0.9


def test_messages_that_lie_are_skipped_and_named(tmp_path: Path) -> None:
    good = cdr(jpeg(1))
    messages = [good, good[:20], b"", good[:-40], cdr(b"no image"), cdr(jpeg(2))]
    frames, problems = play(record(tmp_path / "d.mcap", "ros 2 cdr", messages))
    assert [frame.index for frame in frames] == [0, 5]
    assert len(problems) == 4 and problems[0].startswith("/front[1]: malformed message")


def test_a_recording_without_images_and_a_file_that_is_none_are_said(tmp_path: Path) -> None:
    path = record(tmp_path / "d.mcap", "ros 2 cdr", [cdr(jpeg(1))])
    with pytest.raises(SourceError, match="has no topic '/nope'"):
        play(path, topic="/nope")
    (tmp_path / "junk.mcap").write_bytes(b"not an mcap file at all, not even nearly one")
    frames, problems = play(tmp_path / "junk.mcap")
    assert frames == [] and "junk.mcap: damaged" in problems[0]
    with pytest.raises(SourceError, match="no such file"):
        open_source(str(tmp_path / "gone.mcap"))


def test_big_endian_and_odd_protobuf_fields_are_read() -> None:
    assert from_cdr(cdr(b"picture", order=">")) == Compressed(b"picture", "jpeg")
    assert from_ros1(ros1(b"picture")) == Compressed(b"picture", "jpeg")
    assert from_json(as_json(b"picture")) == Compressed(b"picture", "jpeg")
    extra = b"\x28\xac\x02" + b"\x31" + b"8" * 8 + b"\x3d" + b"4" * 4
    assert from_protobuf(extra + protobuf(b"picture")) == Compressed(b"picture", "jpeg")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parsers(data: bytes) -> None:
    for parse in (from_cdr, from_ros1, from_protobuf, from_json):
        with contextlib.suppress(ValueError, struct.error, KeyError, TypeError, IndexError):
            assert isinstance(parse(data).data, bytes)


def test_a_split_recording_is_played_in_the_order_of_its_times(tmp_path: Path) -> None:
    for part in range(12):
        messages = [cdr(jpeg(part))] * 2
        record_topics(tmp_path / f"drive_{part}.mcap", {"/front": messages}, begin_s=part)
    frames, problems = play(tmp_path)
    assert problems == []
    assert [frame.original for frame in frames] == [jpeg(part) for part in range(12) for _ in range(2)]
    times = [frame.pts_s for frame in frames]
    assert times == sorted(times)


def test_parts_whose_names_say_nothing_are_played_in_the_order_of_their_times(tmp_path: Path) -> None:
    for name, begin_s in (("zebra", 0.0), ("ant", 20.0), ("mole", 10.0)):
        record_topics(tmp_path / f"{name}.MCAP", {"/front": [cdr(jpeg(int(begin_s / 10)))]}, begin_s=begin_s)
    whole = (tmp_path / "mole.MCAP").read_bytes()
    (tmp_path / "mole.MCAP").write_bytes(whole[:-60])  # torn: without its index, and with all its messages
    (tmp_path / "bat.mcap").write_bytes(b"no recording at all")
    frames, problems = play(tmp_path)
    assert [frame.original for frame in frames] == [jpeg(0), jpeg(1), jpeg(2)]
    assert any("bat.mcap: damaged" in problem for problem in problems)


def test_frames_say_when_they_were_recorded(tmp_path: Path) -> None:
    frames, _ = play(record_topics(tmp_path / "d.mcap", {"/front": [cdr(jpeg(n)) for n in range(3)]}))
    assert [frame.recorded_at for frame in frames] == pytest.approx([1.7e9, 1.7e9 + 0.1, 1.7e9 + 0.2])
    simulated = record_topics(tmp_path / "s.mcap", {"/front": [cdr(jpeg(1))]}, begin_s=12.0 - START_NS / 1e9)
    frames, _ = play(simulated)
    assert [frame.recorded_at for frame in frames] == [None]  # a clock that starts at 0 is no date


def test_depth_maps_in_front_of_the_camera_are_passed_over(tmp_path: Path) -> None:
    depth = [
        cdr(b"\0" * 12 + encode_png(np.zeros((8, 8, 3), np.uint8)), form=b"16UC1; compressedDepth png"),
        cdr(encode_png(np.zeros((8, 8, 3), np.uint8)), form=b"16UC1; png compressed bgr8"),
    ]
    colour = cdr(jpeg(3), form=b"rgb8; jpeg compressed bgr8")
    topics = {"/depth": [depth[0]] * 3, "/range": [depth[1]] * 3, "/junk": [cdr(b"h264")] * 3}
    path = record_topics(tmp_path / "d.mcap", {**topics, "/colour": [colour] * 3})
    frames, problems = play(path)
    assert [frame.name for frame in frames] == ["/colour"] * 3 and problems == []
    assert [frame.index for frame in play(path, start=1)[0]] == [1, 2]
    only_depth = record_topics(tmp_path / "only.mcap", {"/depth": [depth[0]]})
    with pytest.raises(SourceError, match=r"/depth \(sensor_msgs/msg/CompressedImage, cdr, 16UC1; compr"):
        play(only_depth)


def test_a_recording_without_compressed_images_names_the_topics_it_has(tmp_path: Path) -> None:
    raw = ("sensor_msgs/msg/Image", "ros2msg", "cdr")
    path = record_topics(tmp_path / "raw.mcap", {"/cam/image_raw": [b"x"], "/rear": [b"y"]}, schema=raw)
    with pytest.raises(SourceError) as caught:
        play(path)
    assert str(caught.value).endswith(
        "has no topic of compressed images. "
        "Topics: /cam/image_raw (sensor_msgs/msg/Image, cdr); /rear (sensor_msgs/msg/Image, cdr)"
    )
    with pytest.raises(SourceError, match=r"has no topic '/rear' of compressed images. Topics: /cam"):
        play(path, topic="/rear")


def test_padded_pictures_in_a_recording_are_read_and_kept_without_padding(tmp_path: Path) -> None:
    path = record_topics(tmp_path / "d.mcap", {"/front": [cdr(jpeg(n) + bytes(4096)) for n in range(3)]})
    frames, problems = play(path)
    assert problems == [] and [frame.original for frame in frames] == [jpeg(n) for n in range(3)]


def test_a_recording_is_known_by_its_content_and_may_have_any_name(tmp_path: Path) -> None:
    given = record_topics(tmp_path / "d.mcap", {"/front": [cdr(jpeg(1))]})
    renamed = given.rename(tmp_path / os.fsdecode(b"fahrt-\xfc"))
    source = open_source(str(renamed))
    assert source.name == r"fahrt-\xfc"
    assert len(list(source.frames(threading.Event()))) == 1
