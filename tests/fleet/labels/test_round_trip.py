"""What a format writes, it reads back: every kind of label that it carries, drawn and real."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from tests.fleet.labels import items as given

from misfire_fleet.labels.content import BoxesLabel, ClassLabel, PointsLabel
from misfire_fleet.labels.formats.base import Answer, ImportedLabel, Known
from misfire_fleet.labels.formats.parts.mask_pixels import mask_label, mask_of_runs, runs_of
from misfire_fleet.labels.formats.registry import NAMES, format_of, recognised
from misfire_train.data import load_dataset
from proving_ground.services import data_root

CARRIED = [(name, kind) for name in NAMES for kind in sorted(format_of(name).kinds)]


@pytest.mark.parametrize(("name", "kind"), CARRIED)
def test_labels_come_back_as_they_left(name: str, kind: str, tmp_path: Path) -> None:
    items = given.items_of(kind)
    form = format_of(name)
    written = form.write(iter(items), tmp_path, given.plan())
    found = given.read_all(form, tmp_path, given.known_of(items, kind=kind))
    labelled = {each.sample: each.label for each in items if each.label is not None}
    assert written.samples == len(items)
    assert written.labelled == len(labelled)
    assert found.keys() == labelled.keys()
    for sample, label in labelled.items():
        assert label is not None
        assert given.same(label, found[sample].label), (label, found[sample].label)


@pytest.mark.parametrize(("name", "kind"), CARRIED)
def test_an_export_is_recognised_by_its_look(name: str, kind: str, tmp_path: Path) -> None:
    format_of(name).write(iter(given.items_of(kind)), tmp_path, given.plan())
    form, seen = recognised(tmp_path)
    assert form.name == name, seen


@pytest.mark.parametrize("name", ["coco", "csv", "fiftyone", "parquet", "voc", "webdataset", "yolo"])
def test_turned_boxes_come_back_turned(name: str, tmp_path: Path) -> None:
    item = given.item(given.drawn(1), given.TURNED)
    form = format_of(name)
    form.write(iter([item]), tmp_path, given.plan())
    found = given.read_all(form, tmp_path, given.known_of([item], kind="boxes"))
    assert given.same(given.TURNED, found[item.sample].label, within=1e-5)


@pytest.mark.parametrize("name", ["coco", "csv", "fiftyone", "parquet", "voc", "webdataset"])
def test_crowds_and_ignored_boxes_stay_what_they_are(name: str, tmp_path: Path) -> None:
    item = given.item(given.drawn(1), given.FLAGGED)
    form = format_of(name)
    form.write(iter([item]), tmp_path, given.plan())
    found = given.read_all(form, tmp_path, given.known_of([item], kind="boxes"))
    assert given.same(given.FLAGGED, found[item.sample].label)


def test_yolo_leaves_crowds_out_and_counts_them(tmp_path: Path) -> None:
    item = given.item(given.drawn(1), given.FLAGGED)
    written = format_of("yolo").write(iter([item]), tmp_path, given.plan())
    assert written.left_out == {"boxes of crowds or to be ignored, which YOLO has no place for": 2}
    found = given.read_all(format_of("yolo"), tmp_path, given.known_of([item]))
    assert given.same(given.boxes(("Auto", 1, 1, 5, 9)), found[item.sample].label)


@pytest.mark.parametrize("name", ["coco", "csv", "fiftyone", "parquet", "voc", "webdataset"])
def test_the_annotator_and_the_time_travel_with_the_label(name: str, tmp_path: Path) -> None:
    item = given.item(given.drawn(1), given.boxes(("Auto", 1, 1, 5, 9)))
    form = format_of(name)
    form.write(iter([item]), tmp_path, given.plan())
    found = given.read_all(form, tmp_path, given.known_of([item]))[item.sample]
    assert found.annotator == "Zoë"
    assert found.at in (given.NOON, None)


REAL = {
    "boxes": lambda: list(given.carla(40)),
    "class": lambda: list(given.traffic_lights(60)),
    "points": lambda: list(given.people()),
    "mask": lambda: list(given.street_masks(8)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [each for each in CARRIED if each[1] in REAL])
def test_real_pictures_come_back(name: str, kind: str, tmp_path: Path) -> None:
    items = REAL[kind]()
    form = format_of(name)
    form.write(iter(items), tmp_path, given.plan(classes=()))
    found = given.read_all(form, tmp_path, given.known_of(items, kind=kind))
    assert len(found) == len({each.sample for each in items})
    for each in items:
        label = each.label
        if name == "yolo" and isinstance(label, BoxesLabel):
            label = BoxesLabel(boxes=tuple(box for box in label.boxes if not box.ignore))
        assert label is not None and given.same(label, found[each.sample].label, within=1e-5), each.sample


@pytest.mark.parametrize(("name", "reader"), [("coco", "coco-boxes"), ("yolo", "yolo"), ("voc", "voc")])
def test_the_trainer_reads_boxes_as_they_were_labelled(name: str, reader: str, tmp_path: Path) -> None:
    items = [*given.carla(30), given.item(given.drawn(5, kind="image/jpeg"))]
    format_of(name).write(iter(items), tmp_path, given.plan(classes=()))
    dataset = load_dataset(f"{reader}:{tmp_path}?size=640x380")
    labels = {each.sample: each.label for each in items if each.label is not None}
    found = {}
    for half in (dataset.train, dataset.test):
        found |= {Path(i).stem: boxes for i, boxes in zip(half.ids, half.targets, strict=True)}
    # The picture without a label is not among them: it would count as one without an object.
    assert found.keys() == labels.keys()
    for sample, boxes in found.items():
        expected = [
            [b.x0, b.y0, b.x1, b.y1, dataset.classes.index(b.name), float(b.ignore)]
            for b in labels[sample].boxes
            if not (b.ignore and name == "yolo")
        ]
        np.testing.assert_allclose(boxes, np.array(expected).reshape(-1, 6), atol=0.02)


def test_the_trainer_reads_masks_and_class_folders(tmp_path: Path) -> None:
    for name in ("m", "f"):
        (tmp_path / name).mkdir()
    masks = [
        given.item(given.drawn(n), mask_label(np.full((48, 64), n % 2, np.uint8), {0: "road", 1: "Fußweg"}))
        for n in range(6)
    ]
    format_of("masks").write(iter(masks), tmp_path / "m", given.plan(classes=("road", "Fußweg")))
    dataset = load_dataset(f"masks:{tmp_path / 'm'}?size=64x48")
    assert dataset.classes == ("road", "Fußweg")
    numbers = {
        Path(i).stem: int(m.max()) for i, m in zip(dataset.train.ids, dataset.train.targets, strict=True)
    }
    assert all(numbers[each.sample] == n % 2 for n, each in enumerate(masks) if each.sample in numbers)
    assert numbers

    sorted_pictures = [given.item(given.drawn(n), ClassLabel(name=f"Größe {n % 2}")) for n in range(8)]
    format_of("folder").write(iter(sorted_pictures), tmp_path / "f", given.plan(classes=()))
    dataset = load_dataset(f"image-folder:{tmp_path / 'f'}")
    assert dataset.classes == ("Größe 0", "Größe 1")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_reads_boxes_crowds_masks_and_skeletons(tmp_path: Path) -> None:
    for name in ("b", "m", "p"):
        (tmp_path / name).mkdir()
    frames = list(given.carla(20))
    format_of("coco").write(
        iter([*frames, given.item(given.drawn(1), given.FLAGGED)]), tmp_path / "b", given.plan()
    )
    coco = COCO(str(tmp_path / "b/annotations/instances.json"))
    expected = sum(len(f.label.boxes) for f in frames if isinstance(f.label, BoxesLabel)) + 3
    assert (len(coco.getImgIds()), len(coco.getAnnIds())) == (21, expected)
    assert len(coco.getAnnIds(iscrowd=True)) == 1
    assert all(coco.annToMask(coco.anns[i]).shape for i in coco.getAnnIds())

    shape = np.full((11, 23), 255, np.uint8)
    shape[1:5, 0:9], shape[5:, 3:20] = 0, 1
    masked = given.item(
        given.drawn(2, width=23, height=11), mask_label(shape, {0: "a", 1: "b"}), size=(23, 11)
    )
    format_of("coco").write(iter([masked]), tmp_path / "m", given.plan(classes=("a", "b")))
    coco = COCO(str(tmp_path / "m/annotations/instances.json"))
    for annotation in coco.loadAnns(coco.getAnnIds()):
        number = annotation["category_id"] - 1
        assert (coco.annToMask(annotation).astype(bool) == (shape == number)).all()
        assert annotation["area"] == (shape == number).sum()

    skeleton = given.labels_of("points")[0][0]
    format_of("coco").write(
        iter([given.item(given.drawn(3), skeleton)]), tmp_path / "p", given.plan(points=("nose", "eye"))
    )
    coco = COCO(str(tmp_path / "p/annotations/instances.json"))
    (annotation,) = coco.loadAnns(coco.getAnnIds())
    assert annotation["num_keypoints"] == 2
    assert coco.loadCats([annotation["category_id"]])[0]["keypoints"] == ["nose", "eye", "2"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_run_lengths_agree_with_pycocotools() -> None:
    rng = np.random.default_rng(4)
    for height, width in ((1, 1), (1, 300), (300, 1), (37, 53)):
        for share in (0.0, 0.02, 0.5, 1.0):
            mask = rng.random((height, width)) < share
            theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert (
                mask_of_runs({"size": [height, width], "counts": theirs["counts"].decode()}) == mask
            ).all()
            ours = coco_mask.frPyObjects(runs_of(mask), height, width)
            assert (coco_mask.decode(ours).astype(bool) == mask).all()
            assert (mask_of_runs(runs_of(mask)) == mask).all()


def test_real_skeletons_of_coco_are_read(tmp_path: Path) -> None:
    file = data_root() / "coco_pose_ccby" / "person_keypoints.json"
    document = json.loads(file.read_text())
    of_image = Counter(each["image_id"] for each in document["annotations"] if each["num_keypoints"])
    found = list(format_of("coco").read(file, Known(kind="points")))
    assert len(found) == 16
    alone = [each for each in found if isinstance(each, ImportedLabel)]
    assert len(alone) == sum(count == 1 for count in of_image.values())
    assert all(isinstance(each.label, PointsLabel) and len(each.label.points) == 17 for each in alone)
    as_boxes = list(format_of("coco").read(file, Known()))
    assert sum(len(each.label.boxes) for each in as_boxes if isinstance(each, ImportedLabel)) == len(
        document["annotations"]
    )


def test_answers_are_beside_the_labels_and_never_become_labels(tmp_path: Path) -> None:
    answer = Answer(given.boxes(("Auto", 1, 2, 30, 40)), confidence=(0.8,), p_correct=(0.31,))
    item = given.item(given.drawn(1), answer=answer)
    for name in NAMES:
        form = format_of(name)
        folder = tmp_path / name
        folder.mkdir()
        written = form.write(iter([item]), folder, given.plan())
        assert written.answered == int(form.answers)
        assert given.read_all(form, folder, given.known_of([item])) == {}
        text = "".join(
            f.read_text("utf-8", "replace") for f in folder.rglob("*") if f.suffix != ".png" and f.is_file()
        )
        assert name == "parquet" or "score 0.93 is above 0.9" in text
    results = json.loads((tmp_path / "coco/annotations/predictions.json").read_text())
    assert [(r["bbox"], r["score"], r["p_correct"]) for r in results] == [([1.0, 2.0, 29.0, 38.0], 0.8, 0.31)]
    sample = json.loads((tmp_path / "fiftyone/samples.json").read_text())["samples"][0]
    (detection,) = sample["predictions"]["detections"]
    assert (detection["confidence"], detection["p_correct"]) == (0.8, 0.31)
    assert sample["percentile"] == 0.93
    assert sample["context_weather"] == "Nebel, dicht"
    assert (tmp_path / f"yolo/predictions/{item.sample}.txt").read_text().split()[-1] == "0.8"


def test_pictures_leave_byte_for_byte_with_the_ending_of_their_type(tmp_path: Path) -> None:
    kinds = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
    for name in NAMES:
        folder = tmp_path / name
        folder.mkdir()
        items = [given.item(given.drawn(n, kind=kind)) for n, kind in enumerate(kinds.values())]
        format_of(name).write(iter(items), folder, given.plan())
        for item in items:
            if name == "parquet":
                continue
            if name == "webdataset":
                with tarfile.open(folder / "shard-000000.tar") as archive:
                    stream = archive.extractfile(item.file_name)
                    assert stream is not None and stream.read() == item.read()
                continue
            (file,) = folder.rglob(
                f"{item.sample}.*g" if item.media_type != "image/webp" else f"{item.sample}.webp"
            )
            assert file.read_bytes() == item.read()
            assert kinds[file.suffix] == item.media_type


@pytest.mark.parametrize("name", NAMES)
def test_the_same_items_make_the_same_bytes(name: str, tmp_path: Path) -> None:
    kind = sorted(format_of(name).kinds)[0]
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        format_of(name).write(iter(given.items_of(kind)), tmp_path / run, given.plan())
    files = sorted(f.relative_to(tmp_path / "a") for f in (tmp_path / "a").rglob("*") if f.is_file())
    assert files
    assert not [f for f in files if f.name.endswith(".part")]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
