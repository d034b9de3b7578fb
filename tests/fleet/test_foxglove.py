"""Recordings for Foxglove are read back: pictures, frames of clips, boxes, scores, and what is left out."""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from mcap.reader import make_reader
from tests.fleet.consoles import OPEN, add
from tests.fleet.stores import at
from typer.testing import CliRunner

from misfire_fleet.commands.app import app
from misfire_fleet.console.app import create_app
from misfire_fleet.labels.content import BoxesLabel, parse
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_runtime.sources.replay import McapReplay
from proving_ground.foreign_bytes import clip

Numbered = Callable[[int], bytes]
PREDICTION: dict[str, Any] = {
    "boxes": [{"class": "car", "score": 0.93, "p": 0.31, "box": [100, 100, 400, 300]}],
    "size": [1280, 720],
}


@pytest.fixture
def client(store: Store) -> Iterator[httpx.Client]:
    with TestClient(create_app(store, access=OPEN), base_url="http://127.0.0.1") as opened:
        yield opened


def jpeg_clip() -> bytes:
    """A clip of five JPEG pictures, as vehicles make them."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuvj420p"
        for shade in range(5):
            pixels = np.full((240, 320, 3), 40 * shade, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def messages(data: bytes) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """All messages by topic and schema, in the order of time."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for schema, channel, message in make_reader(io.BytesIO(data)).iter_messages():
        assert schema is not None and (schema.encoding, channel.message_encoding) == ("jsonschema", "json")
        assert json.loads(schema.data)["title"] == schema.name
        found[channel.topic, schema.name].append(json.loads(message.data))
    return found


def test_a_picture_with_its_boxes_label_and_scores_is_read_back(
    client: httpx.Client, store: Store, jpeg: Numbered
) -> None:
    fields = {"prediction": PREDICTION, "captured_at": at(1.5), "scores": {"entropy": 0.7}}
    sample = add(store, jpeg(1), vehicle="car-7", **fields)
    label = parse(
        {"kind": "boxes", "boxes": [{"name": "bus", "x0": 1, "y0": 2, "x1": 30, "y1": 40}]}, where=""
    )
    assert isinstance(label, BoxesLabel)
    added = LabelLedger(store).add([NewLabel(sample, label, "file")], add_classes=True)
    assert added.ok
    answer = client.get(f"/api/samples/{sample}/mcap")
    assert answer.status_code == 200 and "attachment" in answer.headers["content-disposition"]
    found = messages(answer.content)
    (image,) = found["/car-7/image", "foxglove.CompressedImage"]
    assert base64.b64decode(image["data"]) == jpeg(1) and image["format"] == "jpeg"
    assert image["timestamp"] == {"sec": 1_700_000_001, "nsec": 500_000_000}
    (drawn,) = found["/car-7/answer", "foxglove.ImageAnnotations"]
    assert drawn["points"][0]["points"][2] == {"x": 400.0, "y": 300.0} and drawn["points"][0]["type"] == 2
    assert drawn["texts"][0]["text"] == "car 31 %"
    (labelled,) = found["/car-7/label", "foxglove.ImageAnnotations"]
    assert labelled["texts"][0]["text"] == "bus"
    (said,) = found["/car-7/sample", "misfire.Sample"]
    assert (said["id"], said["scores"]) == (sample, {"entropy": 0.7})


@pytest.mark.parametrize(("codec", "form"), [("mjpeg", "jpeg"), ("h264", "h264")])
def test_frames_of_a_clip_are_taken_apart_in_the_decoders_process(
    client: httpx.Client, store: Store, codec: str, form: str
) -> None:
    data = jpeg_clip() if codec == "mjpeg" else clip("mp4", codec)
    sample = add(store, data, media_type="video/mp4", width=320, height=240)
    found = messages(client.get(f"/api/samples/{sample}/mcap").content)
    schema = "foxglove.CompressedVideo" if form == "h264" else "foxglove.CompressedImage"
    (frames,) = (listed for (_topic, name), listed in found.items() if name == schema)
    assert len(frames) == 5 and {each["format"] for each in frames} == {form}
    start = b"\0\0\0\1" if form == "h264" else b"\xff\xd8"
    assert base64.b64decode(frames[0]["data"]).startswith(start)
    times = [(each["timestamp"]["sec"], each["timestamp"]["nsec"]) for each in frames]
    assert times == sorted(set(times))
    broken = add(store, b"no clip", media_type="video/mp4")
    answer = client.get(f"/api/samples/{broken}/mcap")
    assert answer.status_code == 422 and broken[:16] in answer.json()["detail"]


def test_the_command_writes_what_a_vehicle_can_replay(store: Store, jpeg: Numbered, tmp_path: Path) -> None:
    import threading

    ids = [add(store, jpeg(number), vehicle=f"car-{number % 2}") for number in range(4)]
    folder = store.blobs.root.parent  # type: ignore[attr-defined]
    target = tmp_path / "out.mcap"
    command = ["export", str(target), "--to", "mcap", "--fleet-dir", str(folder), "--json"]
    run = CliRunner().invoke(app, [*command, "--where", "vehicle=car-1"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["samples"] == 2
    frames = list(McapReplay(target).frames(threading.Event()))
    assert [frame.original for frame in frames] == [jpeg(1), jpeg(3)]
    again = CliRunner().invoke(app, command)
    assert again.exit_code != 0 and "new file" in str(again.exception)
    assert len(ids) == 4 and [path.name for path in tmp_path.glob("*out*")] == ["out.mcap"]
