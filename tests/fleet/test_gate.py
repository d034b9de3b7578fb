"""The gate of a candidate: real bundles on stored pictures, by ONNX Runtime."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.fleet import gates
from tests.fleet.consoles import browsing
from typer.testing import CliRunner

from misfire_fleet.candidates import Verdict, judge_candidate
from misfire_fleet.candidates.answers import Columns
from misfire_fleet.candidates.archive import digest, pack, unpack
from misfire_fleet.candidates.comparing import Resampling, widened
from misfire_fleet.candidates.publishing import bundle_folder, listed, publish_bundle
from misfire_fleet.candidates.rules import Rules
from misfire_fleet.datasets.snapshots import Plan, Snapshots
from misfire_fleet.datasets.splits import Shares
from misfire_fleet.errors import StoreError
from misfire_fleet.labels.content import (
    Box,
    BoxesLabel,
    ClassesLabel,
    ClassLabel,
    Label,
    MaskLabel,
    Point,
    PointsLabel,
    ValuesLabel,
)
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_fleet.store.curated import candidates
from misfire_fleet.store.curated.lineage import Link, record
from misfire_fleet.store.records import ANY
from misfire_fleet.store.schema import lineage
from misfire_runtime.bundle import Bundle
from misfire_runtime.cli import app
from misfire_runtime.errors import BundleError, ConfigError
from misfire_train.metrics.bootstrap import estimate
from misfire_train.tasks.answers.heatmaps import render_targets

pytestmark = pytest.mark.slow
# Times on a machine that is busy with other tests prove nothing.
FRAMES = 280
QUICK = Rules(replicates=200, latency=False)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return gates.incumbent(tmp_path_factory.mktemp("old") / "bundle")


@pytest.fixture(scope="module")
def same(old: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return gates.changed(old, tmp_path_factory.mktemp("same") / "bundle", version="2.0.0")


@pytest.fixture(scope="module")
def worse(old: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return gates.changed(old, tmp_path_factory.mktemp("worse") / "bundle", version="2.1.0", noise=3.0)


@pytest.fixture(scope="module")
def filled(old: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled") / "fleet"
    with Store.open_folder(folder) as store:
        gates.fill(store, old, count=FRAMES)
        gates.freeze(store)
    return folder


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Iterator[Store]:
    with Store.open_folder(Path(shutil.copytree(filled, tmp_path / "fleet"))) as opened:
        yield opened


def judge(store: Store, new: Bundle, old: Bundle, *, rules: Rules = QUICK, **options: object) -> Verdict:
    return judge_candidate(new.path, old.path, store=store, snapshot="exam", rules=rules, **options)  # type: ignore[arg-type]


def status(verdict: Verdict) -> dict[str, str]:
    return {check.name: check.status for check in verdict.checks}


def test_the_same_network_passes_and_a_damaged_one_does_not(
    store: Store, old: Bundle, same: Bundle, worse: Bundle
) -> None:
    verdict = judge(store, same, old)
    assert verdict.passed and not verdict.reasons and set(status(verdict).values()) == {"passed"}
    task = verdict.checks[0].measures[0]
    assert task.candidate == task.incumbent and task.difference is not None
    # Not one frame differs, and still the interval is not a point.
    assert -0.02 < task.difference.low < 0 < task.difference.high
    failed = judge(store, worse, old)
    assert not failed.passed and failed.reasons[0].startswith("task: worse: accuracy")
    assert status(failed)["slices"] == "failed"
    recorded = candidates.verdicts(store.database)
    assert [(v.candidate, v.passed) for v in recorded] == [("small@2.1.0", False), ("small@2.0.0", True)]
    assert recorded[0].summary["reasons"] == failed.reasons
    json.dumps(failed.to_dict(), allow_nan=False)


def test_numbers_are_those_of_the_frames_counted_by_hand(store: Store, old: Bundle, worse: Bundle) -> None:
    verdict = judge(store, worse, old)
    images = gates.pictures(FRAMES)
    truth = {}
    for sample in store.newest(FRAMES):
        truth[sample.id] = LabelLedger(store).history(sample.id)[0].label.name  # type: ignore[union-attr]
    ids = [s.id for s in sorted(store.newest(FRAMES), key=lambda s: s.seq)]
    right = []
    for bundle in (worse, old):
        answers = [gates.CLASSES[k] for k in gates.logits_of(bundle, images).argmax(1)]
        right.append(np.mean([truth[i] == answer for i, answer in zip(ids, answers, strict=True)]))
    task = verdict.checks[0].measures[0]
    assert (task.candidate, task.incumbent) == (pytest.approx(right[0]), pytest.approx(right[1]))
    assert verdict.failures == (round(FRAMES * (1 - right[0])), round(FRAMES * (1 - right[1])))
    weather = next(each for each in verdict.detail["slices"] if each["kind"] == "weather")
    assert {row["value"]: row["frames"] for row in weather["rows"]} == {
        "fog": FRAMES // 4,
        "sun": 3 * FRAMES // 4,
    }


def test_few_frames_are_neither_a_pass_nor_a_silent_failure(
    old: Bundle, same: Bundle, tmp_path: Path
) -> None:
    other = gates.changed(old, tmp_path / "other", version="3.0.0", noise=1e-4)
    with Store.open_folder(tmp_path / "fleet") as store:
        gates.fill(store, old, count=20, drives=20)
        gates.freeze(store)
        few = judge(store, same, old)
    assert not few.passed and "20 frames are too few to judge, 30 are needed" in few.reasons[0]
    assert status(few)["task"] == "unknown" and status(few)["failure score"] == "unknown"
    with Store.open_folder(tmp_path / "more") as store:
        gates.fill(store, old, count=60, drives=10)
        gates.freeze(store)
        open_ = judge(store, other, old)
        # Another score of the same network needs no exam of its answers.
        assert judge(store, same, old).passed
    assert "too few frames: 60 do not exclude a loss of 2 points, about" in open_.reasons[0]
    assert "10 groups are too few to draw whole groups" in open_.notes[0]


def test_a_slice_that_got_worse_fails_though_the_whole_did_not(old: Bundle, tmp_path: Path) -> None:
    """The candidate is right on everything in the sun, and wrong in the fog."""
    right = np.float32([4.0, -4.0])
    new = gates.constant(tmp_path / "new", "multi-label", right, classes=("a", "b"), version="2.0.0")
    before = gates.constant(tmp_path / "old", "multi-label", -right, classes=("a", "b"))
    said: list[Label] = [ClassesLabel(names=("b",) if i % 5 == 0 else ("a",)) for i in range(200)]
    with Store.open_folder(tmp_path / "fleet") as store:
        gates.label_all(store, said)
        verdict = judge(store, new, before)
    assert status(verdict)["task"] == "passed" and status(verdict)["slices"] == "failed"
    assert "worse in class b" in verdict.reasons[0]
    gap = next(each for each in verdict.detail["slices"] if each["kind"] == "class")["gaps"][0]
    assert gap["candidate"]["value"] == pytest.approx(1.0) and gap["worst"] == "b"


def mask(number: int) -> str:
    return base64.b64encode(cv2.imencode(".png", np.full((16, 16), number, np.uint8))[1].tobytes()).decode()


def points(x: float) -> PointsLabel:
    return PointsLabel(points=(Point(x=x, y=9.5),))


def heat(x: float) -> NDArray[np.float32]:
    """The heatmap that a perfect network would answer."""
    wanted, _ = render_targets(torch.tensor([[[x, 9.5, 2.0]]]), size=(4, 4))
    return np.asarray(wanted[0].numpy(), np.float32)


def box(x: float) -> BoxesLabel:
    return BoxesLabel(boxes=(Box(name="car", x0=x, y0=2, x1=x + 6, y1=8),))


PLANES = np.stack([np.full((16, 16), 3.0), np.full((16, 16), -3.0)]).astype(np.float32)
NAMES = {0: "road", 1: "sky"}
CASES = {
    "regression": (
        np.float32([1.0]),
        np.float32([5.0]),
        ValuesLabel(values=(1.0,)),
        ValuesLabel(values=(9.0,)),
        ("speed",),
    ),
    "segmentation": (
        PLANES,
        -PLANES,
        MaskLabel(png=mask(0), names=NAMES),
        MaskLabel(png=mask(1), names=NAMES),
        ("road", "sky"),
    ),
    "keypoints": (heat(5.5), heat(13.5), points(5.5), points(1.5), ("nose",)),
    "detection": (
        np.float32([[2, 2, 8, 8, 0.9, 0]]),
        np.float32([[9, 9, 15, 15, 0.9, 0]]),
        box(2),
        box(5.5),
        ("car",),
    ),
}


@pytest.mark.parametrize("task", list(CASES))
def test_every_task_is_judged(task: str, tmp_path: Path) -> None:
    good, bad, usual, rare, classes = CASES[task]
    before = gates.constant(tmp_path / "old", task, good, classes=classes)
    again = gates.constant(tmp_path / "again", task, good, classes=classes, version="2.0.0")
    after = gates.constant(tmp_path / "new", task, bad, classes=classes, version="3.0.0")
    said = [rare if i % 5 == 0 else usual for i in range(100)]
    with Store.open_folder(tmp_path / "fleet") as store:
        gates.label_all(store, said)
        passed = judge(store, again, before, html=tmp_path / "report.html")
        assert passed.passed and passed.checks[0].measures[0].candidate == pytest.approx(0.8, abs=0.21)
        assert passed.failures == (20, 20)
        failed = judge(store, after, before, html=tmp_path / "worse.html")
    assert status(failed)["task"] == "failed" and failed.failures[0] >= 80
    assert "data:image" in (tmp_path / "worse.html").read_text()


def test_what_does_not_compare_is_refused_in_a_sentence(store: Store, old: Bundle, tmp_path: Path) -> None:
    values = gates.constant(tmp_path / "values", "regression", np.float32([1.0]), classes=("speed",))
    with pytest.raises(
        ConfigError, match=r"constant@1\.0\.0 is for regression, small@1\.0\.0 for classification"
    ):
        judge(store, values, old)
    renamed = gates.changed(
        old, tmp_path / "renamed", version="2.0.0", classes=("street", "sky", "tree", "car")
    )
    with pytest.raises(
        ConfigError, match=r"small@2\.0\.0 has no class road, which labels of snapshot exam name"
    ):
        judge(store, renamed, old)
    with pytest.raises(ConfigError, match="has labels of kind class; regression needs labels of kind values"):
        judge(store, values, values)
    with pytest.raises(BundleError):
        judge_candidate(tmp_path / "nothing", old.path, store=store, snapshot="exam")
    assert not candidates.verdicts(store.database)


def test_classes_are_known_by_name_not_by_place(store: Store, old: Bundle, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    order = [2, 3, 0, 1]
    made = gates.changed(old, tmp_path / "turned", version="2.0.0")
    model = onnx.load(made.model_path)
    for each in model.graph.initializer:
        if each.name == "head":
            turned = np.ascontiguousarray(numpy_helper.to_array(each)[:, order])
            each.CopyFrom(numpy_helper.from_array(turned, "head"))
    source = tmp_path / "source"
    shutil.copytree(made.path, source)
    onnx.save(model, source / "model.onnx")
    names = tuple(gates.CLASSES[k] for k in order)
    from misfire_runtime.bundle import hash_files, write_manifest

    changed = made.manifest.model_copy(update={"classes": names, "files": hash_files(source)})
    write_manifest(source, changed)
    verdict = judge(store, Bundle.open(source), old)
    task = verdict.checks[0].measures[0]
    assert task.candidate == task.incumbent and verdict.passed


def test_only_a_frozen_test_side_is_judged_on(
    store: Store, old: Bundle, same: Bundle, tmp_path: Path
) -> None:
    with Store.open_folder(tmp_path / "open") as other:
        gates.fill(other, old, count=40)
        for name, test, why in (("half", 0.5, "not frozen"), ("none", 0.0, "has no test side")):
            Snapshots(other).create(name, ANY, plan=Plan(shares=Shares(0.0, test)))
            with pytest.raises(StoreError, match=why):
                judge_candidate(same.path, old.path, store=other, snapshot=name)
    with pytest.raises(StoreError, match="there is none of that name"):
        judge_candidate(same.path, old.path, store=store, snapshot="nobody")
    taken = Snapshots(store).create("winter", ANY, plan=Plan(test_from="exam", shares=Shares(0.0, 0.0)))
    assert taken.manifest.counts()["test"] == FRAMES
    assert judge_candidate(same.path, old.path, store=store, snapshot="winter", rules=QUICK).frames == FRAMES


def test_a_candidate_that_was_trained_on_the_test_does_not_pass(
    store: Store, old: Bundle, same: Bundle
) -> None:
    """A snapshot that trains on these samples was made before they were frozen."""
    from misfire_fleet.store.schema import snapshot_samples

    ids = [sample.id for sample in store.newest(3)]
    rows = [{"snapshot": "summer", "sample": key, "side": "train", "label": "0" * 64} for key in ids]
    with store.database.write() as connection:
        connection.execute(snapshot_samples.insert(), rows)
    links = [
        Link("bundle", "small@2.0.0", "run", "run-2"),
        Link("run", "run-2", "run", "run-1"),
        Link("run", "run-1", "snapshot", "summer"),
    ]
    record(store.deletion, links, actor="ann")
    verdict = judge(store, same, old)
    assert verdict.reasons == [
        "test frames: trained on 3 of the test samples, so its numbers here mean nothing"
    ]
    back = judge(store, old, same)
    assert back.passed and "The incumbent was trained on 3 of the test samples" in back.notes[0]


def test_a_candidate_of_a_csv_is_not_known_to_be_apart_from_a_later_test(
    store: Store, old: Bundle, same: Bundle
) -> None:
    links = [
        Link("bundle", "small@2.0.0", "run", "run-2"),
        Link("run", "run-2", "run", "run-1", detail={"uploads": {"train": 9, "holdout": 3}}),
    ]
    record(store.deletion, links, actor="ann")
    # It was trained after the exam was frozen, and a retraining refuses what is frozen.
    assert status(judge(store, same, old))["test frames"] == "passed"
    with store.database.write() as connection:
        connection.execute(lineage.update().values(at=1.0))
    check = next(each for each in judge(store, same, old).checks if each.name == "test frames")
    assert check.status == "unknown" and "retrained on 12 uploads of a CSV before exam" in check.sentence


def test_two_that_find_nothing_are_alike_and_pass_nothing(tmp_path: Path) -> None:
    nothing = np.float32([[2, 2, 8, 8, 0.0, 0]])
    sides = [
        gates.constant(tmp_path / name, "detection", nothing, classes=("car",), version=f"{name}.0.0")
        for name in ("1", "2")
    ]
    with Store.open_folder(tmp_path / "fleet") as store:
        gates.label_all(store, [box(2)] * 60)
        verdict = judge(store, sides[1], sides[0])
    assert not verdict.passed and "neither is right about anything" in verdict.reasons[0]


def test_altered_deleted_and_broken_pictures(store: Store, old: Bundle, same: Bundle) -> None:
    first, second = (sample.id for sample in store.newest(2))
    store.deletion.delete(sample=first, reason="asked for")
    verdict = judge(store, same, old)
    assert verdict.frames == FRAMES - 1 and "1 test samples were deleted" in verdict.notes[0]
    data = bytearray(store.read_blob(second))
    data[-1] ^= 1
    store.blobs.publish([store.blobs.stage(second, bytes(data))])
    with pytest.raises(StoreError, match="its bytes were altered"):
        judge(store, same, old)


def test_a_score_that_is_not_finite_fails(store: Store, old: Bundle, tmp_path: Path) -> None:
    from proving_ground.bundles import write_bundle

    poisoned = write_bundle(tmp_path / "poisoned", size=gates.SIZE, seed=3, version="2.0.0", poison="entropy")
    verdict = judge(store, poisoned, old)
    assert re.match(r"finite scores: entropy is not finite for \d+ of 280 frames", verdict.reasons[0])


def test_the_report_needs_no_network_and_is_read_in_light_and_dark(
    store: Store, old: Bundle, worse: Bundle, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    judge(store, worse, old, html=file)
    text = file.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "<script" not in text
    with browsing() as page:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            for width in (1200, 400):
                page.set_viewport_size({"width": width, "height": 800})
                page.goto(file.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width
            colour = page.evaluate("getComputedStyle(document.body).color")
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            dark = [sum(map(int, re.findall(r"\d+", each)[:3])) for each in (colour, paper)]
            assert abs(dark[0] - dark[1]) > 450 and (dark[0] > dark[1]) == (scheme == "dark")
        assert page.get_by_text("Not passed").is_visible() and page.get_by_text("class", exact=True).count()
        assert page.locator("figure img").count() >= 8


def test_publishing_needs_a_pass_or_a_reason(
    store: Store, old: Bundle, same: Bundle, worse: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="never judged"):
        publish_bundle(store, same.path, actor="ann")
    judge(store, same, old)
    row = publish_bundle(store, same.path, actor="ann")
    assert not row.forced and row.sha256 == digest(same)[0]
    # What a vehicle's engine leaves in the folder is no part of the bundle.
    (same.path / "engine").mkdir()
    (same.path / "engine" / "cache.bin").write_bytes(b"compiled here")
    assert publish_bundle(store, same.path, actor="bob") == row
    judge(store, worse, old)
    with pytest.raises(ConfigError, match=r"did not pass against small@1\.0\.0 on exam: task: worse"):
        publish_bundle(store, worse.path, actor="ann")
    with pytest.raises(ConfigError, match="--force needs --reason"):
        publish_bundle(store, worse.path, actor="ann", force=True)
    forced = publish_bundle(store, worse.path, actor="ann", force=True, reason="the fleet waits for it")
    assert forced.forced
    _, actor, action, detail = store.deletion.audit(limit=1)[0]
    assert (actor, action, detail["forced"]) == ("ann", "publish", True)
    assert detail["reason"] == "the fleet waits for it"
    other = gates.changed(old, tmp_path / "other", version="2.0.0", noise=0.01)
    with pytest.raises(StoreError, match="published already, with other content"):
        publish_bundle(store, other.path, actor="ann", force=True, reason="same name")
    assert [(each.label, each.published is not None) for each in listed(store)] == [
        ("small@2.1.0", True),
        ("small@2.0.0", True),
    ]
    # What is kept is the bundle, to the byte.
    kept = unpack(candidates.archive_bytes(store.blobs, row), tmp_path / "kept")
    assert pack(kept) == pack(same) and kept.manifest == same.manifest


def test_an_archive_leads_nowhere_else(tmp_path: Path) -> None:
    import io
    import tarfile

    for name, kind in (("../out", tarfile.REGTYPE), ("/abs", tarfile.REGTYPE), ("link", tarfile.SYMTYPE)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
        with pytest.raises(StoreError, match="no plain file"):
            unpack(buffer.getvalue(), tmp_path / name.strip("./"))
    with pytest.raises(StoreError, match="archive of a bundle"):
        unpack(b"no archive" * 100, tmp_path / "broken")


def test_the_commands(store: Store, old: Bundle, same: Bundle, worse: Bundle, tmp_path: Path) -> None:
    place = ["--fleet-dir", str(tmp_path / "fleet")]
    runner = CliRunner()
    quick = ["--snapshot", "exam", "--replicates", "100", "--max-slowdown", "100"]
    words = ["fleet", "gate", str(same.path), "--against", str(old.path), *quick, *place]
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.rstrip().endswith("\npassed") and max(map(len, done.stdout.splitlines())) <= 80
    assert runner.invoke(app, ["fleet", "publish", str(same.path), *place]).exit_code == 0
    # From now on the incumbent is known by its name.
    report = tmp_path / "r.html"
    words = ["fleet", "gate", str(worse.path), "--against", "small@2.0.0", *quick, *place]
    failed = runner.invoke(app, [*words, "--json", "--html", str(report)])
    assert failed.exit_code == 1 and report.is_file()
    found = json.loads(failed.stdout)
    assert not found["passed"] and found["incumbent"]["label"] == "small@2.0.0"
    refused = runner.invoke(app, ["fleet", "publish", str(worse.path), *place])
    assert refused.exit_code != 0 and "did not pass" in refused.output + str(refused.exception)
    forced = ["--force", "--reason", "tested on the track"]
    assert runner.invoke(app, ["fleet", "publish", str(worse.path), *forced, *place]).exit_code == 0
    text = runner.invoke(app, ["fleet", "candidates", *place]).stdout
    assert "small@2.1.0" in text and "forced: tested on the track" in text and "task: worse" in text
    log = runner.invoke(app, ["fleet", "audit", *place]).stdout
    assert "publish" in log and "tested on the track" in log and '"passed": false' in log


def test_a_label_made_later_does_not_change_the_exam(store: Store, old: Bundle, same: Bundle) -> None:
    before = judge(store, same, old)
    sample = store.newest(1)[0].id
    new = NewLabel(sample, ClassLabel(name="car"), source="person", annotator="bob")
    assert LabelLedger(store).add([new], add_classes=True).written
    assert judge(store, same, old).failures == before.failures


def test_the_interval_of_the_task_metric_holds_the_truth() -> None:
    """One frame in fifty gets worse and three get better; a bootstrap alone is too narrow there."""
    rng, frames, inside = np.random.default_rng(0), 100, 0
    resampling = Resampling.of([str(i) for i in range(frames)], QUICK)
    ones = np.ones(frames)
    for _ in range(300):
        u, base = rng.random(frames), rng.random(frames) < 0.8
        new = np.where(u < 0.02, 0.0, np.where(u < 0.08, 1.0, base))
        old = np.where(u < 0.02, 1.0, np.where(u < 0.08, 0.0, base))
        sides = tuple(Columns(right, ones, right < 1, ones, ones, None, ones) for right in (new, old))
        drawn = resampling.ratios(new, ones) - resampling.ratios(old, ones)
        plain = estimate(float(new.mean() - old.mean()), drawn)
        found = widened(plain, (sides[0], sides[1]), np.arange(frames))
        inside += found.low <= 0.04 <= found.high
    assert inside / 300 >= 0.93


def test_the_gate_and_publishing_work_on_both_databases(anywhere: Store, old: Bundle, same: Bundle) -> None:
    gates.fill(anywhere, old, count=120, drives=24)
    gates.freeze(anywhere)
    verdict = judge(anywhere, same, old)
    assert verdict.passed and verdict.frames == 120 and verdict.groups == 24
    row = publish_bundle(anywhere, same.path, actor="ann")
    with bundle_folder(anywhere, "small@2.0.0") as folder:
        assert digest(Bundle.open(folder))[0] == row.sha256
    assert [each.published for each in listed(anywhere)] == [row]
    for name in ("small@9.0.0", "nowhere"):
        with pytest.raises(ConfigError, match="there is no such folder"), bundle_folder(anywhere, name):
            pass
