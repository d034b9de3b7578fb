"""The gate on detectors and segmenters that were trained: by the commands, as a user judges a candidate."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
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
from misfire_runtime.cli import app
from misfire_runtime.messages import Clock, Trigger
from misfire_runtime.placement import Placement
from misfire_runtime.preprocess import encode_png
from misfire_runtime.testing import make_offer
from misfire_train.data import Dataset, load_dataset
from misfire_train.fit import train_run
from misfire_train.runs import Run, run_splits
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


def trained(out: Path, epochs: int, **overrides: Any) -> Run:
    fixed = {"training.epochs": epochs, "head.strength": 1.0, "head.columns": "all", "head.steps": 20}
    config = parse_train_config({}, overrides={**fixed, "head.copies": 1, **overrides})
    return train_run(config, out=out)


def exported(run: Run, dataset: Dataset, out: Path, version: str) -> Path:
    options = Options("candidate", version, shifts=Shifts(families=()))
    return export_run(run, frames_of_run(run, dataset), out=out, options=options).path


def store_labelled(folder: Path, pictures: list[tuple[NDArray[np.uint8], Label]]) -> None:
    """Stores pictures of several drives in sun and fog, and freezes about all as the test side of "exam"."""
    new, said = [], []
    for i, (image, label) in enumerate(pictures):
        data = encode_png(image)
        offer = make_offer(
            data,
            vehicle=f"car-{i % 3}",
            media_type="image/png",
            bundle="candidate@1.0.0",
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
    return done.exit_code, done.output


def checked(found: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["status"] for check in found["checks"]}


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A fleet with boxes of a street, a detector after six epochs, and one after one."""
    folder = tmp_path_factory.mktemp("detectors")
    street = load_dataset("street")
    small = {
        "dataset": "street",
        "model.options": {"width": 8, "tower": 16},
        "split.limit": 400,
        "split.field": 0.3,
        "split.calibration": 0.6,
        "training.batch": 16,
        "training.mosaic": 0.0,
        "head.recipe": "none",
    }
    runs = [trained(folder / f"run-{epochs}", epochs, **small) for epochs in (6, 1)]
    field = run_splits(runs[0], street)["field"]
    pictures: list[tuple[NDArray[np.uint8], Label]] = []
    for i in range(len(field)):
        image, rows = field.images[i], field.targets[i]
        height, width = image.shape[:2]
        corners = Placement.of(width, height, street.contract).to_image(rows[:, :4])
        boxes = tuple(
            Box(name=street.classes[int(row[4])], x0=x0, y0=y0, x1=x1, y1=y1, ignore=bool(row[5]))
            for row, (x0, y0, x1, y1) in zip(rows, corners.astype(float).tolist(), strict=True)
        )
        pictures.append((image, BoxesLabel(boxes=boxes)))
    store_labelled(folder / "fleet", pictures)
    made = [exported(run, street, folder / f"bundle-{n}", f"{n}.0.0") for n, run in enumerate(runs, 1)]
    return folder / "fleet", made[0], made[1]


@pytest.fixture(scope="module")
def segmenters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A fleet with masks of bands, a segmenter after eight epochs, and one after one."""
    folder = tmp_path_factory.mktemp("segmenters")
    source = f"masks:{scenes(folder / 'scenes', 240)}"
    small = {"dataset": source, "model.options": {"width": 4}, "split.calibration": 0.5, "training.batch": 16}
    runs = [trained(folder / f"run-{epochs}", epochs, **small) for epochs in (8, 1)]
    dataset = load_dataset(source)
    names = dict(enumerate(dataset.classes))
    pictures: list[tuple[NDArray[np.uint8], Label]] = []
    for i in range(120):
        image, mask = scene(1000 + i)
        pictures.append((image, MaskLabel(png=base64.b64encode(encode_png(mask)).decode(), names=names)))
    store_labelled(folder / "fleet", pictures)
    made = [exported(run, dataset, folder / f"bundle-{n}", f"{n}.0.0") for n, run in enumerate(runs, 1)]
    return folder / "fleet", made[0], made[1]


@pytest.mark.parametrize("kind", ["detectors", "segmenters"])
def test_a_better_trained_bundle_passes_and_a_worse_one_does_not(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    fleet, good, bad = request.getfixturevalue(kind)
    report = tmp_path / "report.html"
    code, text = gate(fleet, good, bad, "--json", "--html", str(report))
    found = json.loads(text)
    task = next(check for check in found["checks"] if check["name"] == "task")["measures"][0]
    assert code == 0 and found["passed"], found["reasons"]
    assert task["difference"]["low"] > 0 and 0 < task["incumbent"] < task["candidate"] <= 1
    kinds = {each["kind"] for each in found["detail"]["slices"]}
    assert {"vehicle", "weather"} <= kinds and ("class" in kinds) == (kind == "detectors")
    page = report.read_text()
    assert "data:image/" in page and "fog" in page and "Passed" in page
    code, text = gate(fleet, bad, good, "--json")
    back = json.loads(text)
    assert code == 1 and checked(back)["task"] == "failed" and back["frames"] == found["frames"]
    if kind == "segmenters":
        # An offer carries no mask: the failure rate is told by running the bundle on the pictures again.
        words = ["fleet", "truth", "--bundle-dir", str(good), "--fleet-dir", str(fleet), "--json"]
        rate = json.loads(CliRunner().invoke(app, words).output.splitlines()[-1])["reports"][0]["whole"]
        assert (rate["labels"], rate["failures"]) == (120, back["failures"][1])
