"""The gate on detectors and segmenters whose answers depend on the picture, by the commands."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from tests.fleet import gates
from typer.testing import CliRunner

from misfire_export.measure.trigger import Shifts
from misfire_export.options import Options
from misfire_export.sources.frames import frames_of_run
from misfire_export.sources.run import export_run
from misfire_fleet.datasets.snapshots import Plan, Snapshots
from misfire_fleet.datasets.splits import Shares
from misfire_fleet.labels.content import Box, BoxesLabel, Label, MaskLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_fleet.store.records import ANY, NewSample
from misfire_runtime.bundle import MODEL, Bundle, Manifest, hash_files, write_manifest
from misfire_runtime.cli import app
from misfire_runtime.messages import Clock, Trigger
from misfire_runtime.preprocess import encode_png
from misfire_runtime.testing import make_offer
from misfire_train.data import load_dataset
from misfire_train.fit import train_run
from misfire_train.train_config import parse_train_config

pytestmark = pytest.mark.slow
DRIVES = 25


def scene(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image [16,24,3] of three bands of grey in noise, and the band's number for each pixel."""
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.integers(4, 20, 2))
    mask = np.zeros((16, 24), np.uint8)
    mask[:, edges[0] :] = 1
    mask[:, edges[1] + 1 :] = 2
    return (rng.integers(0, 90, (16, 24, 3)) + 70 * mask[..., None]).astype(np.uint8), mask


def scenes(folder: Path, count: int) -> Path:
    """A folder of pictures and masks, as `misfire train --dataset masks:FOLDER` reads it."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        image, mask = scene(i)
        (folder / "images" / f"{i}.png").write_bytes(encode_png(image))
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return folder


def png_of(mask: NDArray[np.uint8]) -> str:
    return base64.b64encode(cv2.imencode(".png", mask)[1].tobytes()).decode()


def damaged(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle as version 2.0.0, with noise on its weights."""
    folder.mkdir()
    model, rng = onnx.load(bundle.model_path), np.random.default_rng(0)
    for each in model.graph.initializer:
        values = numpy_helper.to_array(each)
        if values.ndim == 4:
            noisy = values + rng.normal(0, 0.5 * values.std(), values.shape)
            each.CopyFrom(numpy_helper.from_array(noisy.astype(values.dtype), each.name))
    onnx.save(model, folder / MODEL)
    fields = {"version": "2.0.0", "files": hash_files(folder)}
    write_manifest(folder, Manifest.model_validate(bundle.manifest.model_dump() | fields))
    return Bundle.open(folder)


def store_labelled(folder: Path, pictures: list[tuple[NDArray[np.uint8], Label]]) -> None:
    """Stores pictures of several drives in sun and fog, and freezes about all as the test side of "exam"."""
    new, said = [], []
    for i, (image, label) in enumerate(pictures):
        data = encode_png(image)
        offer = make_offer(
            data,
            vehicle=f"car-{i % 3}",
            media_type="image/png",
            bundle="segmenter@1.0.0",
            captured_at=Clock(wall=1_700_000_000.0 + i, monotonic=5.0, boot_id=f"boot-{i % DRIVES}"),
            trigger=Trigger(name="random", random=True, rate=0.1),
            context={"weather": "fog" if i % 4 == 0 else "sun"},
        )
        new.append(NewSample(offer, data, image.shape[1], image.shape[0], "collector-1"))
        said.append(NewLabel(offer.id, label, source="file"))
    with Store.open_folder(folder) as store:
        store.add_many(new)
        assert LabelLedger(store).add(said, add_classes=True).written
        Snapshots(store).create("exam", ANY, plan=Plan(shares=Shares(0.0, 0.99), frozen=True, seed=1))


def gate(folder: Path, new: Path, old: Path, *words: str) -> tuple[int, str]:
    place = ["--snapshot", "exam", "--fleet-dir", str(folder), "--replicates", "200", "--max-slowdown", "100"]
    done = CliRunner().invoke(app, ["fleet", "gate", str(new), "--against", str(old), *place, *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.stdout


def checked(found: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["status"] for check in found["checks"]}


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A fleet with boxes of bright blocks, a detector that finds most, and one that misses the dim ones."""
    folder = tmp_path_factory.mktemp("detectors")
    rng = np.random.default_rng(4)
    pictures: list[tuple[NDArray[np.uint8], Label]] = []
    for i in range(120):
        image, boxes = rng.integers(0, 60, (16, 16, 3)), []
        for cell in rng.permutation(16)[: rng.integers(0, 4)].tolist():
            x, y = 4 * (cell % 4), 4 * (cell // 4)
            # In fog, every fourth frame, they are dim.
            image[y : y + 4, x : x + 4] = rng.integers(90, 190) if i % 4 == 0 else rng.integers(140, 255)
            boxes.append(Box(name="block", x0=x, y0=y, x1=x + 4, y1=y + 4))
        pictures.append((image.astype(np.uint8), BoxesLabel(boxes=tuple(boxes))))
    store_labelled(folder / "fleet", pictures)
    good = gates.finder(folder / "good", least=0.4)
    bad = gates.finder(folder / "bad", least=0.7, version="2.0.0")
    return folder / "fleet", good.path, bad.path


@pytest.fixture(scope="module")
def segmenters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A fleet with masks of bands, a segmenter that was trained on such, and the same with noise in it."""
    folder = tmp_path_factory.mktemp("segmenters")
    source = f"masks:{scenes(folder / 'scenes', 240)}"
    config = parse_train_config(
        {},
        overrides={
            "dataset": source,
            "model.options": {"width": 4},
            "split.calibration": 0.5,
            "training.batch": 16,
            "training.epochs": 6,
            "head.recipe": "none",
        },
    )
    run, dataset = train_run(config, out=folder / "run"), load_dataset(source)
    names = dict(enumerate(dataset.classes))
    pictures: list[tuple[NDArray[np.uint8], Label]] = []
    for i in range(120):
        image, mask = scene(1000 + i)
        pictures.append((image, MaskLabel(png=png_of(mask), names=names)))
    store_labelled(folder / "fleet", pictures)
    options = Options("segmenter", "1.0.0", shifts=Shifts(families=()))
    good = export_run(run, frames_of_run(run, dataset), out=folder / "good", options=options)
    return folder / "fleet", good.path, damaged(good, folder / "bad").path


@pytest.mark.parametrize("kind", ["detectors", "segmenters"])
def test_a_better_bundle_passes_and_a_worse_one_does_not(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    fleet, good, bad = request.getfixturevalue(kind)
    report = tmp_path / "report.html"
    code, text = gate(fleet, good, bad, "--json", "--html", str(report))
    found = json.loads(text)
    task = next(check for check in found["checks"] if check["name"] == "task")["measures"][0]
    assert code == 0 and found["passed"], found["reasons"]
    assert task["difference"]["low"] > 0 and 0 < task["incumbent"] < task["candidate"] <= 1
    assert {"vehicle", "weather"} <= {each["kind"] for each in found["detail"]["slices"]}
    page = report.read_text()
    assert "data:image/" in page and "fog" in page and "Passed" in page
    code, text = gate(fleet, bad, good, "--json")
    back = json.loads(text)
    assert code == 1 and checked(back)["task"] == "failed" and back["frames"] == found["frames"]
    if kind == "segmenters":
        # An offer carries no mask: the failure rate is told by running the bundle on the pictures again.
        words = ["fleet", "truth", "--bundle-dir", str(good), "--fleet-dir", str(fleet), "--json"]
        rate = json.loads(CliRunner().invoke(app, words).stdout)["reports"][0]["whole"]
        assert (rate["labels"], rate["failures"]) == (120, back["failures"][1])
