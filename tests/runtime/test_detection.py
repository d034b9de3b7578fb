"""A detector's boxes reach the offer in pixels of the picture; what can be no box is dropped and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from vehicle_support import scored_frame

from misfire_runtime import cli
from misfire_runtime.engines.answers import brief_of, within
from misfire_runtime.engines.detections import Boxes, find_boxes
from misfire_runtime.engines.masks import mask_of
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import EngineError
from misfire_runtime.messages import MAX_JSON_BYTES, Offer, decode, encode
from misfire_runtime.placement import Placement
from misfire_runtime.preprocess import InputContract, encode_png, resize_image
from misfire_runtime.testing import ListSource, MemoryStore, make_offer
from misfire_runtime.triggers.expression import compile_rule
from misfire_runtime.uplink.side import fit_offer
from proving_ground.detectors import constant_graph, lamps, write_detection_bundle

LAMP = (100, 30, 124, 54)


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer.load(write_detection_bundle(tmp_path_factory.mktemp("finder") / "b"))


def answering(path: Path, rows: list[list[float]], p_tp: list[float] | None = None, **more: Any) -> Scorer:
    """A scorer whose graph answers every picture with these rows, at 96x64."""
    chances = None if p_tp is None else np.array(p_tp, np.float32)
    graph = constant_graph(np.array(rows, np.float32), width=96, height=64, p_tp=chances)
    return Scorer.load(write_detection_bundle(path, graph=graph, **more))


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "letterbox-topleft", "center-crop"])
def test_boxes_are_in_pixels_of_the_picture(tmp_path: Path, resize: str) -> None:
    scorer = Scorer.load(write_detection_bundle(tmp_path / "b", resize=resize))
    prediction = scorer.score(lamps(LAMP)).prediction
    assert prediction["more"] == 0 and "dropped" not in prediction
    # The grid of the finder may cut the lamp: together its boxes are the lamp.
    boxes = np.array([box["box"] for box in prediction["boxes"]])
    whole = [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)]
    assert whole == pytest.approx(LAMP, abs=2.1)
    assert {"class", "score", "p", "box"} == set(prediction["boxes"][0])
    assert prediction["boxes"][0]["p"] == pytest.approx(prediction["boxes"][0]["score"] ** 2, abs=2e-4)


def test_the_best_come_first_and_no_more_than_64_with_the_count_of_the_rest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [[10, 10, 30, 30, score, k % 2] for k, score in enumerate(rng.uniform(0.3, 1, 3000))]
    prediction = answering(tmp_path / "b", rows).score(lamps()).prediction
    scores = [box["score"] for box in prediction["boxes"]]
    assert len(scores) == 64 and scores == sorted(scores, reverse=True)
    assert prediction["more"] == 3000 - 64
    # A letterboxed picture with the longest numbers and names: still a small part of a message.
    data = b"picture"
    sent = encode(make_offer(data, prediction=prediction))
    assert len(sent) < MAX_JSON_BYTES / 4
    assert decode(Offer, sent).prediction == prediction


def test_an_offer_that_is_too_large_for_a_broker_keeps_its_best_boxes() -> None:
    boxes = [{"class": "car", "score": 0.9 - k / 100, "box": [0.0, 0.0, 9.0, 9.0]} for k in range(60)]
    sent = encode(make_offer(b"picture", prediction={"boxes": boxes, "more": 3}))
    assert fit_offer(sent, len(sent) + 512) == sent
    smaller = decode(Offer, fit_offer(sent, len(sent) - 1000))
    assert smaller.prediction == {"boxes": boxes[:8], "more": 55} and smaller.embedding is not None
    assert decode(Offer, fit_offer(sent, 600)).prediction == {}


def test_rows_that_cannot_be_boxes_are_dropped_and_counted(tmp_path: Path) -> None:
    good = [8, 8, 24, 24, 0.9, 0]
    bad = [
        [np.nan, 8, 24, 24, 0.9, 0],
        [8, 8, 24, 24, np.nan, 0],
        [8, 8, np.inf, 24, 0.9, 0],
        [24, 8, 8, 24, 0.9, 0],
        [8, 24, 24, 24, 0.9, 0],
        [8, 8, 24, 24, 7.5, 0],
        [8, 8, 24, 24, 0.9, -1],
        [8, 8, 24, 24, 0.9, 1e9],
        [200, 200, 300, 300, 0.9, 0],
    ]
    padding = [[0.0] * 6, [5, 5, 5, 5, 0, 0]]
    scored = answering(tmp_path / "b", [*bad, *padding, good]).score(lamps())
    assert scored.prediction == {
        "boxes": [{"class": "lamp", "score": 0.9, "p": 0.5, "box": [16.0, 0.0, 48.0, 32.0]}],
        "more": 0,
        "size": [192, 96],
        "dropped": 9,
        "not_finite": 3,
    }


def test_no_box_at_all_is_an_answer(finder: Scorer) -> None:
    assert finder.score(lamps()).prediction == {"boxes": [], "more": 0, "size": [192, 96]}
    assert finder.score(np.zeros((1, 1, 3), np.uint8)).prediction["boxes"] == []


def test_a_chance_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    rows = [[8, 8, 24, 24, 0.9, 0], [30, 30, 50, 50, 0.8, 1], [60, 30, 70, 50, 0.7, 1]]
    boxes = answering(tmp_path / "b", rows, [np.nan, 1.5, -0.5]).score(lamps()).prediction["boxes"]
    assert "p" not in boxes[0] and [box["p"] for box in boxes[1:]] == [1.0, 0.0]


def test_boxes_are_clipped_to_the_picture(tmp_path: Path) -> None:
    boxes = answering(tmp_path / "b", [[-20, -20, 500, 500, 0.9, 7]]).score(lamps()).prediction["boxes"]
    # A class that the manifest does not name keeps its number.
    assert boxes == [{"class": "7", "score": 0.9, "p": 0.5, "box": [0.0, 0.0, 192.0, 96.0]}]


def test_detections_whose_first_axis_is_not_the_frame_are_one_sentence(finder: Scorer) -> None:
    rows = np.zeros((16, 6), np.float32)
    outputs = {"detections": rows, "score.expected_errors": np.zeros(1), "score.box_count": np.zeros(1)}
    from misfire_runtime.engines.scoring import Scored

    with pytest.raises(
        EngineError, match=r"detections has shape \[16, 6\] for one frame; expected \[1,M,6\]"
    ):
        Scored(finder, outputs)


def test_second_inputs_get_the_size_of_the_picture(tmp_path: Path) -> None:
    """As RT-DETR: the graph multiplies shares by the size it is given, here back to network pixels."""
    node = helper.make_node
    nodes = [
        node("Cast", ["orig_size"], ["wh"], to=TensorProto.FLOAT),
        node("Concat", ["wh", "wh"], ["whwh"], axis=1),
        node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        # Width and height of the picture themselves as the corner of a box, in hundredths.
        node("Mul", ["whwh", "corner"], ["places"]),
        node("Mul", ["mean", "zero"], ["nothing"]),
        node("Reshape", ["nothing", "flat"], ["nothing2"]),
        node("Add", ["nothing2", "tail"], ["score_class"]),
        node("Concat", ["places", "score_class"], ["row"], axis=1),
        node("Unsqueeze", ["row", "axis1"], ["detections"]),
        node("Identity", ["mean"], ["score.expected_errors"]),
        node("Identity", ["mean"], ["score.box_count"]),
    ]
    constants = {
        "corner": np.float32([[0, 0, 0.1, 0.1]]),
        "tail": np.float32([[0.75, 1]]),
        "zero": np.float32([0]),
        "axes": np.int64([1, 2, 3]),
        "axis1": np.int64([1]),
        "flat": np.int64([-1, 1]),
    }
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "sized",
        [
            info("image", TensorProto.FLOAT, ["N", 3, 64, 96]),
            info("orig_size", TensorProto.INT64, ["N", 2]),
        ],
        [
            info("detections", TensorProto.FLOAT, ["N", 1, 6]),
            info("score.expected_errors", TensorProto.FLOAT, ["N"]),
            info("score.box_count", TensorProto.FLOAT, ["N"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    bundle = write_detection_bundle(
        tmp_path / "b", graph=model, resize="stretch", inputs={"orig_size": "size-wh"}
    )
    box = Scorer.load(bundle).score(lamps(width=384, height=128)).prediction["boxes"][0]["box"]
    # 38.4 x 12.8 network pixels of 96 x 64, in a picture of 384 x 128.
    assert box == pytest.approx([0, 0, 153.6, 25.6], abs=0.11)


def test_an_input_that_the_manifest_does_not_name_is_refused_at_the_start(tmp_path: Path) -> None:
    graph = constant_graph(np.zeros((1, 6), np.float32), width=96, height=64)
    graph.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]))
    bundle = write_detection_bundle(tmp_path / "b", graph=graph)
    with pytest.raises(EngineError, match="the graph needs scale, too, which the manifest does not name"):
        Scorer.load(bundle)


def test_rules_count_what_the_detector_found(finder: Scorer) -> None:
    frame: Any = scored_frame(finder.score(lamps((50, 10, 60, 20), (150, 50, 190, 90))))
    for rule in ("boxes >= 2", "boxes.lamp > 0", "prediction == 'lamp'", "confidence > 0.5"):
        assert compile_rule(rule, scores=finder.tables, classes=finder.classes)(frame), rule


def test_a_crop_moves_the_boxes_with_the_picture() -> None:
    boxes = [{"class": "lamp", "score": 0.9, "box": [100.0, 30.0, 124.0, 54.0]}]
    outside = {"class": "lamp", "score": 0.8, "box": [0.0, 0.0, 20.0, 20.0]}
    prediction = {"boxes": [*boxes, outside], "more": 2, "points": [[0.5, 0.5, 1.0], [0.0, 0.0, 0.5]]}
    prediction["size"] = [192, 96]
    moved = within(prediction, (90, 20, 192, 96), size=(192, 96))
    assert moved["boxes"] == [{"class": "lamp", "score": 0.9, "box": [10.0, 10.0, 34.0, 34.0]}]
    assert moved["more"] == 2 and moved["size"] == [102, 76]
    assert moved["points"] == [[round(6 / 102, 4), round(28 / 76, 4), 1.0], [None, None, 0.5]]


def test_the_offer_of_a_cropped_picture_has_its_boxes_where_they_are(tmp_path: Path) -> None:
    import threading

    from vehicle_support import parse_config

    from misfire_runtime.preprocess import decode_image
    from misfire_runtime.vehicle.pipeline import Vehicle

    config = parse_config(
        """
        vehicle = "car-1"
        [random]
        rate = 1.0
        [[privacy.crops]]
        box = [0.25, 0.0, 0.75, 1.0]
        """
    )
    scorer, store = Scorer.load(write_detection_bundle(tmp_path / "b")), MemoryStore()
    source = ListSource([lamps(LAMP)])
    vehicle = Vehicle(config, scorer=scorer, store=store, sources=[source], state_dir=tmp_path / "state")
    vehicle.run(threading.Event())
    vehicle.close()
    ((data, offer),) = store.samples.values()
    image, boxes = decode_image(data), offer.prediction["boxes"]
    assert image.shape == (96, 144, 3) and offer.privacy == ["crop"]
    assert isinstance(boxes, list) and boxes
    for box in boxes:
        x0, y0, x1, y1 = (round(side) for side in box["box"])
        # Inside of the box it is bright, whatever JPEG does to its border.
        assert image[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].min() > 150


def test_the_mask_is_that_of_the_picture() -> None:
    contract = InputContract(width=96, height=64, resize="letterbox")
    image = np.zeros((50, 200, 3), np.uint8)
    image[10:30, 40:120] = 255
    bright = resize_image(image, contract)[:, :, 0] > 127
    logits = np.stack([~bright, bright])[None].astype(np.float32)
    mask = mask_of(logits, Placement.of(200, 50, contract), network=(96, 64))
    assert mask.shape == (50, 200) and set(np.unique(mask)) == {0, 1}
    wrong = mask != (image[:, :, 0] > 127)
    assert wrong.mean() < 0.03
    # A map of half the size is the same map; what a crop left out has no class.
    half = mask_of(logits[:, :, ::2, ::2], Placement.of(200, 50, contract), network=(96, 64))
    assert (half != mask).mean() < 0.05
    crop = contract.model_copy(update={"resize": "center-crop"})
    assert 255 in mask_of(logits, Placement.of(200, 50, crop), network=(96, 64))


def test_shares_of_a_mask_leave_the_padding_out() -> None:
    contract = InputContract(width=96, height=64, resize="letterbox")
    place = Placement.of(200, 50, contract)
    logits = np.zeros((1, 2, 32, 48), np.float32)
    # The picture lies in rows 20 to 44 of 64; its upper half is of the second class.
    logits[:, 1, 10:16] = 1
    assert brief_of("segmentation", logits, ("road", "sky"), place) == {"shares": {"road": 0.5, "sky": 0.5}}
    tiny = Placement.of(1, 20_000, contract)
    shares = brief_of("segmentation", logits, ("road", "sky"), tiny)["shares"]
    assert isinstance(shares, dict) and sum(shares.values()) == pytest.approx(1)


def test_boxes_know_their_length() -> None:
    assert len(find_boxes(np.zeros((1, 5, 6), np.float32))) == 0
    assert isinstance(find_boxes(np.zeros((1, 0, 6), np.float32)), Boxes)


def test_a_detector_is_described_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_detection_bundle(tmp_path / "b", pad=114)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(encode_png(lamps(LAMP)))
    cli.app(["bundle", "inspect", str(bundle.path)], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "letterbox on grey 114" in shown and "score from 0.3" in shown
    pictures = str(tmp_path / "pictures")
    cli.app(
        ["bench", str(bundle.path), "--rounds", "10", "--source", pictures, "--json"], standalone_mode=False
    )
    assert json.loads(capsys.readouterr().out)["bundle"]
