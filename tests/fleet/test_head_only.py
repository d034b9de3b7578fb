"""`misfire retrain BUNDLE --head-only`: the head learns a shift from labels, and the network stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from misfire_export.delta.reading import why_not
from misfire_export.delta.refit import FieldFrames, RoundOptions, refit_bundle
from misfire_export.errors import CalibrationError, ExportError
from misfire_fleet.datasets.lineage import trace
from misfire_fleet.datasets.snapshots import Plan, Snapshots
from misfire_fleet.datasets.splits import Shares
from misfire_fleet.errors import StoreError
from misfire_fleet.labels.content import ClassLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.retrain.head_only import next_version, retrain_head
from misfire_fleet.store import Store
from misfire_fleet.store.records import ANY, NewSample, SampleFilter
from misfire_runtime.bundle import MANIFEST, Bundle, Manifest, hash_files, write_manifest
from misfire_runtime.cli import app
from misfire_runtime.delta import Delta
from misfire_runtime.errors import BundleError, ConfigError
from misfire_runtime.messages import Clock, Trigger
from misfire_runtime.preprocess import encode_png
from misfire_runtime.testing import make_offer
from misfire_train.data import Examples, load_dataset
from misfire_train.data.corruptions import corrupt_all
from misfire_train.metrics import auroc
from proving_ground.headed_bundle import HEAD, headed_bundle

pytestmark = pytest.mark.slow
SPLIT = Plan(shares=Shares(0.25, 0.1), seed=1)
RANDOM = Trigger(name="random", random=True, rate=0.01)
FIELD = range(600, 1040)
"""Digits in the field: neither network nor head has seen them."""
LABELLED = 320


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return headed_bundle(tmp_path_factory.mktemp("headed") / "base")


@pytest.fixture(scope="module")
def field() -> Examples:
    """Frames of a weather that the head has never seen."""
    return corrupt_all(load_dataset("digits").train.take(FIELD), "contrast", severity=3, seed=5)


@pytest.fixture(scope="module")
def filled(field: Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet folder with drives of ten frames: labelled ones, a quarter of them uploads, and others."""
    folder = tmp_path_factory.mktemp("fleet")
    classes = load_dataset("digits").classes
    with Store.open_folder(folder) as store:
        new, said = [], []
        for i, target in enumerate(field.targets):
            data = encode_png(field.images[i])
            clock = Clock(wall=1_700_000_000.0 + i, monotonic=5.0, boot_id=f"boot-{i // 10}")
            chosen = {} if i % 4 == 3 and i < LABELLED else {"trigger": RANDOM}
            offer = make_offer(data, vehicle="car", media_type="image/png", captured_at=clock, **chosen)
            new.append(NewSample(offer, data, 8, 8, "collector-1"))
            if i < LABELLED:
                said.append(NewLabel(offer.id, ClassLabel(name=classes[int(target)]), source="file"))
        store.add_many(new)
        assert LabelLedger(store).add(said, add_classes=True).written
        Snapshots(store).create("first", ANY, plan=SPLIT)
    return folder


@pytest.fixture
def fleet(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "fleet"))


@pytest.fixture
def store(fleet: Path) -> Iterator[Store]:
    with Store.open_folder(fleet) as opened:
        yield opened


@pytest.fixture(scope="module")
def round_of(base: Bundle, filled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """What the command prints as JSON, and the folder with the delta and the next bundle."""
    folder = tmp_path_factory.mktemp("round")
    words = ["retrain", str(base.path), "--head-only", "--uploads", str(filled), "--snapshot", "first"]
    words += ["--out", str(folder / "delta"), "--bundle-out", str(folder / "next"), "--json"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output), folder


def answers_of(bundle: Bundle, frames: Examples) -> dict[str, Any]:
    session = ort.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    images = frames.batch(range(len(frames)), bundle.manifest.input).numpy()
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def test_the_head_learns_the_shift_and_the_network_answers_bit_for_bit(
    base: Bundle, field: Examples, round_of: tuple[Any, Path]
) -> None:
    said, folder = round_of
    made = Bundle.open(folder / "next")
    unseen = corrupt_all(load_dataset("digits").train.take(range(1040, 1340)), "contrast", severity=3, seed=6)
    before, after = answers_of(base, unseen), answers_of(made, unseen)
    for name, values in before.items():
        assert (values.tobytes() == after[name].tobytes()) == (name != f"score.{HEAD}"), name
    failed = before["logits"].argmax(1) != unseen.targets
    old, new = (auroc(each[f"score.{HEAD}"].astype(float), failed) for each in (before, after))
    assert new > old + 0.02, (old, new)
    assert said["strength"] > 0 and said["left_out"]["gain"] > 0
    assert said["network_compared_on"] == 64
    assert made.manifest.version == "1.0.1" and made.manifest.head == base.manifest.head


def test_the_delta_applied_is_the_bundle_that_was_refitted(
    base: Bundle, round_of: tuple[Any, Path], tmp_path: Path
) -> None:
    said, folder = round_of
    Delta.open(folder / "delta").apply(base.path, out=tmp_path / "next")
    files = sorted(path.name for path in (folder / "next").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "next").iterdir())
    for name in files:
        assert (tmp_path / "next" / name).read_bytes() == (folder / "next" / name).read_bytes()
    assert said["delta_bytes"] == sum(path.stat().st_size for path in (folder / "delta").iterdir()) < 100_000


def test_calibration_is_of_the_random_stream_alone(
    base: Bundle, filled: Path, round_of: tuple[Any, Path]
) -> None:
    said, folder = round_of
    manifest = Bundle.open(folder / "next").manifest
    with Store.open_folder(filled) as store:
        members = Snapshots(store).read("first")[0].members
        used = {m.id for m in members if m.side != "test"}
        random = {s.id for s in store.newest(1000, SampleFilter(random=True))}
        fitted = {m.group for m in members if m.side == "train"}
    assert said["labelled"]["fitted_on"] == sum(m.side == "train" for m in members)
    assert said["labelled"]["of_the_random_stream"] + said["labelled"][
        "held_out_of_the_random_stream"
    ] == len(used & random)
    # Labelled ones of both sides, and the unlabelled frames of other drives.
    unlabelled = len(FIELD) - LABELLED
    assert len(fitted) > 10 and said["stream_frames"] == len(used & random) + unlabelled
    spec, old = manifest.score(HEAD), base.manifest.score(HEAD)
    assert spec.calibration.quantiles.count == said["stream_frames"]
    assert spec.calibration.quantiles.values != old.calibration.quantiles.values
    assert spec.calibration.expected_loss is not None and spec.calibration.loss_scale is not None
    points = spec.operating_points
    assert [point.upload_rate for point in points] == sorted(point.upload_rate for point in points)
    assert points[-1].failure_recall is not None and 0 < points[-1].failure_recall.value <= 1
    # The other scores keep what the laboratory measured.
    for name in ("entropy", "msp"):
        assert manifest.score(name) == base.manifest.score(name)
    assert manifest.lineage.snapshot_id == said["snapshot"]


def test_lineage_leads_from_a_label_to_the_bundle(
    base: Bundle, filled: Path, round_of: tuple[Any, Path]
) -> None:
    with Store.open_folder(filled) as store:
        down = {(node.kind, node.id) for node in trace(store, "first").down}
        up = {(node.kind, node.id) for node in trace(store, "digits@1.0.1").up}
    assert ("bundle", "digits@1.0.1") in down
    assert {("snapshot", "first"), ("run", base.manifest.lineage.run_id)} <= up


def test_the_table_for_people_says_what_was_shown(
    base: Bundle, store: Store, fleet: Path, tmp_path: Path
) -> None:
    # Few frames of the random stream: perhaps nothing can be shown, but the calibration is new.
    few = {s.id for s in store.newest(1000, SampleFilter(labelled=True))}
    keep = sorted(few)[:90]
    Snapshots(store).create("few", SampleFilter(ids=tuple(keep)), plan=Plan(shares=Shares(0.2, 0.0), seed=1))
    words = ["retrain", str(base.path), "--head-only", "--uploads", str(fleet), "--snapshot", "few"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "delta"), "--version", "1.1.0"])
    assert result.exit_code == 0, result.output
    assert "digits@1.0.0 -> digits@1.1.0" in result.output
    assert "the network is unchanged" in result.output and "note: calibrated on" in result.output


def test_nothing_of_a_frozen_test_is_read(base: Bundle, store: Store, tmp_path: Path) -> None:
    tested = {m.id for m in Snapshots(store).read("first")[0].members if m.side == "test"}
    store.blobs.delete_many(tested)
    Snapshots(store).create("exam", ANY, plan=Plan(shares=Shares(0.25, 0.1), seed=1, frozen=True))
    # Now some drives with unlabelled frames could be frozen by a later exam: none of them may be read.
    made = retrain_head(base.path, store, snapshot="exam", out=tmp_path / "delta")
    assert made.delta.about.report["labelled"]["fitted_on"] > 0
    # The first snapshot trains on nothing frozen; one with another seed would.
    Snapshots(store).create("other", ANY, plan=Plan(shares=Shares(0.25, 0.2), seed=9, frozen=True))
    with pytest.raises(StoreError, match="frozen test set"):
        retrain_head(base.path, store, snapshot="first", out=tmp_path / "delta2")
    assert not (tmp_path / "delta2").exists()


def test_what_cannot_be_done_is_said_in_one_sentence(base: Bundle, store: Store, tmp_path: Path) -> None:
    def attempt(bundle: Path = base.path, **options: Any) -> None:
        chosen: dict[str, Any] = {"snapshot": "first", "out": tmp_path / "delta"} | options
        retrain_head(bundle, store, **chosen)

    plain = Path(shutil.copytree(base.path, tmp_path / "plain"))
    (plain / MANIFEST).unlink()
    bare = {"head": None, "files": hash_files(plain)}
    write_manifest(plain, Manifest.model_validate(base.manifest.model_dump() | bare))
    with pytest.raises(ExportError, match="no learned head that can be fitted again"):
        attempt(plain)
    nameless = Path(shutil.copytree(base.path, tmp_path / "nameless"))
    unnamed = base.manifest.model_dump() | {"classes": ()}
    write_manifest(nameless, Manifest.model_validate(unnamed))
    with pytest.raises(ConfigError, match="does not name its classes"):
        attempt(nameless)
    with pytest.raises(ConfigError, match="needs a snapshot"):
        attempt(snapshot=None)
    with pytest.raises(ConfigError, match=r"1\.0\.0: that is the version"):
        attempt(version="1.0.0")
    with pytest.raises(BundleError, match="is this a bundle"):
        attempt(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("x")
    with pytest.raises(BundleError, match="exists and is not a delta"):
        attempt(out=tmp_path / "mine")
    ids = sorted(m.id for m in Snapshots(store).read("first")[0].members if m.side == "train")
    whole = Plan(shares=Shares(0.0, 0.0))
    Snapshots(store).create("tiny", SampleFilter(ids=tuple(ids[:30])), plan=whole)
    with pytest.raises(ConfigError, match="at least 40 labelled frames"):
        attempt(snapshot="tiny")
    assert not (tmp_path / "delta").exists()
    words = ["retrain", str(base.path), "--head-only", "--uploads", str(tmp_path / "fleet"), "--epochs", "3"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "delta")])
    assert "--epochs does not go with --head-only" in str(result.exception)


def test_a_head_of_strength_0_gets_one_if_it_was_exported_for_it(tmp_path: Path) -> None:
    weak = headed_bundle(tmp_path / "weak", weak=True, refittable=True)
    assert weak.manifest.score(HEAD).definition.endswith("alone: no correction earned its place")
    unseen = load_dataset("digits").train.take(range(600, 700))
    said = answers_of(weak, unseen)
    # Until a round gives it a strength it orders frames as its free score does.
    assert weak.manifest.head is not None
    free = said[f"score.{weak.manifest.head.options['base']}"]
    assert (np.argsort(said[f"score.{HEAD}"]) == np.argsort(free)).all()
    frames = corrupt_all(load_dataset("digits").train.take(FIELD), "contrast", severity=3, seed=5)
    given = FieldFrames(
        frames.take(range(320)), np.ones(320, bool), stream=frames.take(range(320, len(FIELD)))
    )
    found = refit_bundle(weak, given, RoundOptions("1.0.1"))
    assert found.report["strength"] > 0 and found.report["left_out"]["gain"] > 0
    assert found.manifest.score(HEAD).definition.endswith("fitted in the field")
    # Without the option the graph computes no correction, and there is nothing to fit.
    closed = weak.manifest.model_copy(update={"head": None})
    assert "export it with --refittable" in why_not(closed)
    boxes = closed.model_copy(update={"task": "detection"})
    assert "is a detector: its learned score corrects candidate boxes" in why_not(boxes)


def test_the_next_version_is_one_higher() -> None:
    assert [next_version(v) for v in ("1.0.0", "1.2.9-rc1", "3.4.5+a.1")] == ["1.0.1", "1.2.10", "3.4.6"]


def test_too_few_frames_of_the_stream_are_refused(base: Bundle, field: Examples) -> None:
    frames = FieldFrames(field.take(range(60)), np.arange(60) < 30)
    with pytest.raises(CalibrationError, match="has 30 frames; at least 50"):
        refit_bundle(base, frames, RoundOptions("1.0.1"))
