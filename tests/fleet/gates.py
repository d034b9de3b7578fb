"""Real bundles whose quality is known, and fleets with labelled pictures that they are judged on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from misfire_fleet.datasets.snapshots import Plan, Snapshots
from misfire_fleet.datasets.splits import Shares
from misfire_fleet.labels.content import ClassLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_fleet.store.records import ANY, NewSample
from misfire_runtime.bundle import MODEL, Bundle, Manifest, hash_files, write_manifest
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.messages import Clock, Trigger
from misfire_runtime.preprocess import encode_png
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
