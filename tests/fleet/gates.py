"""Real bundles whose quality is known, and fleets with labelled pictures that they are judged on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from misfire_fleet.datasets.snapshots import Plan, Snapshots
from misfire_fleet.datasets.splits import Shares
from misfire_fleet.labels.content import ClassLabel, Label
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_fleet.store.records import ANY, NewSample
from misfire_runtime.boxes import BoxRule
from misfire_runtime.bundle import (
    MODEL,
    Bundle,
    Calibration,
    Lineage,
    Manifest,
    OutputSpec,
    QuantileTable,
    ScoreSpec,
    hash_files,
    write_manifest,
)
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.messages import Clock, Trigger
from misfire_runtime.preprocess import InputContract, encode_png
from misfire_runtime.testing import make_offer
from proving_ground.bundles import CLASSES, write_bundle

SIZE = 16
NOISE = 0.25
"""Of the labels: the incumbent is wrong on about a tenth of the frames, mostly where it is unsure."""


def incumbent(folder: Path) -> Bundle:
    """A small classifier of four classes, version 1.0.0."""
    return write_bundle(folder, size=SIZE, seed=3)


def changed(bundle: Bundle, folder: Path, *, version: str, noise: float = 0.0, **fields: object) -> Bundle:
    """The same bundle with noise in its last layer, and other fields of the manifest."""
    folder.mkdir(parents=True)
    model = onnx.load(bundle.model_path)
    for each in model.graph.initializer:
        if each.name == "head":
            old = numpy_helper.to_array(each)
            new = old + np.random.default_rng(1).normal(0, noise, old.shape).astype(np.float32)
            each.CopyFrom(numpy_helper.from_array(np.asarray(new, np.float32), "head"))
    onnx.save(model, folder / MODEL)
    made = bundle.manifest.model_copy(update={"version": version, "files": hash_files(folder), **fields})
    write_manifest(folder, Manifest.model_validate(made.model_dump()))
    return Bundle.open(folder)


def pictures(count: int, *, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Noise of a random colour and contrast, on which the networks' answers vary."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        base, spread = rng.uniform(0, 255, 3), rng.uniform(5, 120)
        noise = rng.normal(0, spread, (SIZE, SIZE, 3)) + base
        found.append(np.clip(noise, 0, 255).astype(np.uint8))
    return found


def logits_of(bundle: Bundle, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Logits [N,4] of a bundle."""
    scorer = Scorer.load(bundle)
    try:
        return np.concatenate([np.asarray(scorer.score(image).outputs["logits"]) for image in images])
    finally:
        scorer.close()


def fill(store: Store, bundle: Bundle, *, count: int, drives: int = 40, seed: int = 0) -> list[str]:
    """Stores labelled pictures of several drives, of which every second was sent at random; their ids.

    The truth is the bundle's answer with noise on its logits, so the bundle is wrong where it is unsure.
    """
    images = pictures(count, seed=seed)
    logits = logits_of(bundle, images)
    rng = np.random.default_rng(seed + 1)
    spread = NOISE * logits.std()
    truth = (logits + rng.normal(0, spread, logits.shape)).argmax(1)
    new, said, ids = [], [], []
    for i, image in enumerate(images):
        drive = i % drives
        data = encode_png(image)
        offer = make_offer(
            data,
            vehicle=f"car-{drive % 3}",
            media_type="image/png",
            bundle=bundle.manifest.label,
            captured_at=Clock(
                wall=1_700_000_000.0 + 3_600 * drive + i / 10, monotonic=5.0, boot_id=f"boot-{drive}"
            ),
            trigger=Trigger(name="random" if i % 2 else "uncertain", random=bool(i % 2), rate=0.01),
            context={"weather": "fog" if drive % 4 == 0 else "sun"},
        )
        new.append(NewSample(offer, data, SIZE, SIZE, "collector-1"))
        said.append(NewLabel(offer.id, ClassLabel(name=CLASSES[int(truth[i])]), source="file"))
        ids.append(offer.id)
    store.add_many(new)
    assert LabelLedger(store).add(said, add_classes=True).written
    return ids


def freeze(store: Store, name: str = "exam", *, test: float = 0.99) -> None:
    """Makes a snapshot with a frozen test side of about that share of drives."""
    Snapshots(store).create(name, ANY, plan=Plan(shares=Shares(0.0, test), frozen=True, seed=1))


def constant(
    folder: Path, task: str, answer: NDArray[np.float32], *, classes: Sequence[str], version: str = "1.0.0"
) -> Bundle:
    """A bundle of any task that always gives one answer; its score is the picture's brightness."""
    kinds = {
        "multi-label": ("labels", "labels"),
        "regression": ("values", "values"),
        "segmentation": ("logits", "segmentation"),
        "keypoints": ("heatmaps", "heatmaps"),
        "detection": ("detections", "boxes"),
    }
    name, kind = kinds[task]
    folder.mkdir(parents=True)
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["score.msp"], keepdims=0),
        helper.make_node("Mul", ["score.msp", "nothing"], ["zero"]),
        helper.make_node("Reshape", ["zero", "shape"], ["plain"]),
        helper.make_node("Add", ["plain", "answer"], [name]),
    ]
    shape = [1, *answer.shape]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("score.msp", TensorProto.FLOAT, [1]),
        ],
        [
            numpy_helper.from_array(np.int64([1, 2, 3]), "axes"),
            numpy_helper.from_array(np.float32([0.0]), "nothing"),
            numpy_helper.from_array(np.int64([1] * len(shape)), "shape"),
            numpy_helper.from_array(answer[None].astype(np.float32), "answer"),
        ],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / MODEL)
    quantiles = QuantileTable(levels=(0.0, 1.0), values=(-3.0, 3.0), count=100)
    manifest = Manifest(
        name="constant",
        version=version,
        task=task,
        created_at="2025-01-01T00:00:00Z",
        input=InputContract(height=SIZE, width=SIZE),
        outputs=(
            OutputSpec(name=name, kind=kind, shape=(-1, *answer.shape)),
            OutputSpec(name="score.msp", kind="score", shape=(-1,)),
        ),
        classes=tuple(classes),
        detection=BoxRule(min_side=2) if task == "detection" else None,
        scores=(
            ScoreSpec(
                name="msp",
                definition="brightness",
                free=True,
                calibration=Calibration(engine="onnxruntime-cpu", precision="fp32", quantiles=quantiles),
            ),
        ),
        default_score="msp",
        lineage=Lineage(run_id="none", dataset="none", dataset_sha256="0" * 64),
        extra={"calibration": {"failure_threshold": 0.25}} if task in THRESHOLDED else {},
        files=hash_files(folder),
    )
    write_manifest(folder, manifest)
    return Bundle.open(folder)


def finder(folder: Path, *, least: float, version: str = "1.0.0") -> Bundle:
    """A detector of blocks of four pixels that are brighter than `least` (0..1): a network of one layer."""
    made = constant(
        folder.with_name(f"{folder.name}-plain"), "detection", np.zeros((16, 6)), classes=("block",)
    )
    places = [(4.0 * (i % 4), 4.0 * (i // 4)) for i in range(16)]
    corners = np.float32([[x, y, x + 4, y + 4] for x, y in places])
    nodes = [
        helper.make_node("ReduceMean", ["image", "channels"], ["grey"], keepdims=1),
        helper.make_node("AveragePool", ["grey"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Reshape", ["cells", "flat"], ["bright"]),
        helper.make_node("Sub", ["bright", "least"], ["above"]),
        helper.make_node("Mul", ["above", "slope"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["sure"]),
        # The best box first.
        helper.make_node("TopK", ["sure", "count"], ["score", "order"], axis=1),
        helper.make_node("Gather", ["corners", "order"], ["boxes"], axis=0),
        helper.make_node("Unsqueeze", ["score", "last"], ["column"]),
        helper.make_node("Mul", ["column", "nothing"], ["class"]),
        helper.make_node("Concat", ["boxes", "column", "class"], ["rows"], axis=2),
        # Rows that are no boxes are zeros.
        helper.make_node("Greater", ["column", "threshold"], ["is_box"]),
        helper.make_node("Where", ["is_box", "rows", "nothing"], ["detections"]),
        helper.make_node("ReduceMean", ["image", "whole"], ["score.msp"], keepdims=0),
    ]
    values = {
        "channels": np.int64([1]),
        "flat": np.int64([1, 16]),
        "least": np.float32(least),
        "slope": np.float32(12),
        "count": np.int64([16]),
        "corners": corners,
        "last": np.int64([2]),
        "nothing": np.float32(0),
        "threshold": np.float32(0.3),
        "whole": np.int64([1, 2, 3]),
    }
    graph = helper.make_graph(
        nodes,
        "finder",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [
            helper.make_tensor_value_info("detections", TensorProto.FLOAT, [1, 16, 6]),
            helper.make_tensor_value_info("score.msp", TensorProto.FLOAT, [1]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    folder.mkdir(parents=True)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / MODEL)
    fields = {"name": "finder", "version": version, "files": hash_files(folder)}
    write_manifest(folder, Manifest.model_validate(made.manifest.model_dump() | fields))
    return Bundle.open(folder)


THRESHOLDED = ("regression", "segmentation", "keypoints")


def label_all(store: Store, said: Sequence[Label], *, drives: int = 25) -> None:
    """Stores a picture for each label and freezes all of them as the test side of "exam"."""
    new, labels = [], []
    for i, (image, label) in enumerate(zip(pictures(len(said)), said, strict=True)):
        data = encode_png(image)
        clock = Clock(wall=1_700_000_000.0 + i, monotonic=5.0, boot_id=f"boot-{i % drives}")
        offer = make_offer(data, media_type="image/png", captured_at=clock)
        new.append(NewSample(offer, data, SIZE, SIZE, "collector-1"))
        labels.append(NewLabel(offer.id, label, source="file"))
    store.add_many(new)
    assert LabelLedger(store).add(labels, add_classes=True).written
    freeze(store)
