"""What leaves a vehicle has been masked, blurred and cropped; where that cannot be done, nothing leaves."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from vehicle_support import EVERY, make, run

from misfire_runtime.config.tables import parse_config
from misfire_runtime.errors import PrivacyError
from misfire_runtime.preprocess import decode_image, encode_png
from misfire_runtime.samples.privacy import Privacy
from misfire_runtime.sources import Frame, open_source
from misfire_runtime.triggers.random_stream import RandomStream, recorded_identity

SIZE, CELL = 64, 8


def white_detector(path: Path, *, layout: str = "detections", broken: bool = False) -> Path:
    """A real detector of white regions: the mean of each 8x8 cell is the score of its box."""
    cells = SIZE // CELL
    corners = [
        [x * CELL, y * CELL, (x + 1) * CELL, (y + 1) * CELL] for y in range(cells) for x in range(cells)
    ]
    boxes = np.asarray([corners], np.float32)
    if layout == "yolo":
        boxes = np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], 2)
    nodes = [
        helper.make_node("ReduceMean", ["image", "one"], ["gray"], keepdims=1),
        helper.make_node("AveragePool", ["gray"], ["means"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Pow", ["means", "power"], ["sharp"]),
        helper.make_node("Reshape", ["sharp", "column"], ["column_scores"]),
    ]
    if broken:
        nodes[2] = helper.make_node("Div", ["means", "zero"], ["sharp"])
    outputs = {
        "detections": [helper.make_node("Concat", ["boxes", "column_scores"], ["found"], axis=2)],
        "yolo": [
            helper.make_node("Concat", ["boxes", "column_scores"], ["rows"], axis=2),
            helper.make_node("Transpose", ["rows"], ["found"], perm=[0, 2, 1]),
        ],
        "boxes+scores": [helper.make_node("Identity", ["boxes"], ["found"])],
    }[layout]
    constants = {
        "one": np.int64([1]),
        "power": np.float32([8.0]),
        "zero": np.float32([0.0]),
        "column": np.int64([1, cells * cells, 1]),
        "boxes": boxes,
    }
    results = [helper.make_tensor_value_info("found", TensorProto.FLOAT, None)]
    if layout == "boxes+scores":
        results.append(helper.make_tensor_value_info("column_scores", TensorProto.FLOAT, None))
    graph = helper.make_graph(
        [*nodes, *outputs],
        "white",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        results,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def scene() -> np.ndarray:
    """128x192 of dark noise with a white, finely striped plate in x 96..144, y 32..64."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 60, (128, 192, 3)).astype(np.uint8)
    image[32:64, 96:144] = 255
    image[32:64, 96:144:4] = 180
    return image


def stage(text: str) -> Privacy:
    table = parse_config(text).privacy
    assert table is not None
    return Privacy(table)


@pytest.mark.parametrize("layout", ["detections", "yolo", "boxes+scores"])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_what_the_detector_finds_is_blurred_beyond_recognition(
    tmp_path: Path, layout: str, resize: str
) -> None:
    model = white_detector(tmp_path / "white.onnx", layout=layout)
    privacy = stage(
        f'[[privacy.blur]]\nmodel="{model}"\nlabel="plates"\nlayout="{layout}"\nresize="{resize}"\ngrow=0.5\n'
    )
    before = scene()
    after, labels, changed = privacy.apply(before, source="front")
    assert changed and labels[0].startswith("blur:plates:")
    stripes = np.abs(np.diff(after[40:56, 104:136, 0].astype(int), axis=1))
    assert np.abs(np.diff(before[40:56, 104:136, 0].astype(int), axis=1)).max() == 75
    assert stripes.max() < 20
    assert np.array_equal(before, scene())
    assert np.array_equal(after[100:, :60], before[100:, :60])


def test_a_frame_without_findings_keeps_its_pixels_and_says_it_was_looked_at(tmp_path: Path) -> None:
    privacy = stage(f'[[privacy.blur]]\nmodel="{white_detector(tmp_path / "w.onnx")}"\nlabel="plates"\n')
    dark = np.zeros((50, 70, 3), np.uint8)
    after, labels, changed = privacy.apply(dark, source="front")
    assert after is dark and labels == ["blur:plates:0"] and not changed


def test_masks_and_crops_are_per_source() -> None:
    privacy = stage(
        """
        [[privacy.masks]]
        box = [0.0, 0.75, 1.0, 0.25]
        [[privacy.masks]]
        box = [0.0, 0.0, 0.1, 0.1]
        source = "rear"
        [[privacy.crops]]
        box = [0.5, 0.5, 0.5, 0.5]
        source = "rear"
        """
    )
    image = np.full((100, 200, 3), 200, np.uint8)
    front, labels, changed = privacy.apply(image, source="front")
    assert changed and labels == ["mask"] and front.shape == image.shape
    assert front[75:].max() == 0 and front[:75].min() == 200
    rear, labels, _changed = privacy.apply(image, source="rear")
    assert labels == ["mask", "crop"] and rear.shape == (50, 100, 3) and rear[25:].max() == 0


@pytest.mark.parametrize("kind", ["missing", "garbage", "not finite", "wrong layout"])
def test_a_blur_that_cannot_work_closes_the_vehicle(tmp_path: Path, kind: str) -> None:
    model, layout = tmp_path / "m.onnx", "detections"
    if kind == "garbage":
        model.write_bytes(b"not a model")
    elif kind == "not finite":
        white_detector(model, broken=True)
    elif kind == "wrong layout":
        white_detector(model)
        layout = "boxes+scores"
    privacy = stage(f'[[privacy.blur]]\nmodel="{model}"\nlayout="{layout}"\n')
    assert privacy.problem is not None and "m.onnx" in privacy.problem
    with pytest.raises(PrivacyError):
        privacy.apply(scene(), source="front")


def test_a_crop_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(PrivacyError, match="keeps nothing"):
        stage("[[privacy.crops]]\nbox = [0.5, 0.5, 0.0, 0.0]").apply(scene(), source="front")


def test_nothing_unblurred_reaches_the_spool(bundle: Any, store: Any, tmp_path: Path) -> None:
    model = white_detector(tmp_path / "w.onnx")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "plate.png").write_bytes(encode_png(scene()))
    (tmp_path / "in" / "empty.png").write_bytes(encode_png(np.zeros((64, 64, 3), np.uint8)))
    text = EVERY + f'[[privacy.blur]]\nmodel="{model}"\nlabel="plates"\n'
    run(make(bundle, store, tmp_path, tmp_path / "in", text))
    by_name = {offer.source: (offer, store.samples[offer.id][0]) for offer in store.offers}
    offer, payload = by_name["plate.png"]
    assert offer.media_type == "image/jpeg" and offer.privacy[0].startswith("blur:plates:")
    edges = cv2.Sobel(decode_image(payload)[40:56, 104:136, 0], cv2.CV_32F, 1, 0)
    assert np.abs(edges).mean() < 30 < np.abs(cv2.Sobel(scene()[40:56, 104:136, 0], cv2.CV_32F, 1, 0)).mean()
    offer, payload = by_name["empty.png"]
    assert offer.privacy == ["blur:plates:0"]
    assert payload == (tmp_path / "in" / "empty.png").read_bytes()


def taken(frames: list[Frame], *, seed: int) -> int:
    stream = RandomStream(rate=0.5, seed=seed)
    return sum(stream.takes(recorded_identity(frame)) for frame in frames)


def test_a_closed_vehicle_scores_on_and_counts_what_it_held_back(
    bundle: Any, store: Any, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "plate.png").write_bytes(encode_png(scene()))
    (tmp_path / "in" / "zebra.png").write_bytes(encode_png(scene()[::-1].copy()))
    frames = list(open_source(str(tmp_path / "in")).frames(threading.Event()))
    seed = next(seed for seed in range(99) if taken(frames, seed=seed) == 1)
    text = f'[random]\nrate = 0.5\nseed = {seed}\n[triggers.none]\nkind = "threshold"\nabove = 1e9\n'
    text += f'[[privacy.blur]]\nmodel="{tmp_path / "gone.onnx"}"\n[clips]\n'
    vehicle = make(bundle, store, tmp_path, tmp_path / "in", text)
    report = run(vehicle)
    assert report.frames == 2 and report.spooled == 0 and store.samples == {}
    assert report.lost == {"privacy": 1}
