"""Files as other tools write them, and as accidents and attackers leave them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as sampled
from hypothesis import strategies as st
from tests.fleet.labels import items as given

from misfire_fleet.labels.content import (
    Box,
    BoxesLabel,
    ClassLabel,
    MaskLabel,
    PointsLabel,
    ValuesLabel,
    parse,
)
from misfire_fleet.labels.formats.base import ImportedLabel, Known, Problem, id_in
from misfire_fleet.labels.formats.parts.geometry import box_from_corners, corners_of
from misfire_fleet.labels.formats.parts.json_stream import JsonParts, members
from misfire_fleet.labels.formats.parts.mask_pixels import mask_of_runs, pixels_of, runs_of
from misfire_fleet.labels.formats.parts.pictures import picture_size
from misfire_fleet.labels.formats.parts.words import label_of, words_of
from misfire_fleet.labels.formats.registry import format_of, recognised
from misfire_runtime.errors import ConfigError

PATIENT = [HealthCheck.too_slow]
"""On a machine that does much else, even making an example may take long."""
ID = "0123456789abcdef" * 4
KNOWN = Known(classes=given.CLASSES, size_of={ID: (200, 100)}.get)


def read(name: str, path: Path, known: Known = KNOWN) -> list[ImportedLabel | Problem]:
    return list(format_of(name).read(path, known))


def only(name: str, path: Path, known: Known = KNOWN) -> Any:
    (found,) = read(name, path, known)
    assert isinstance(found, ImportedLabel), str(found)
    return found.label


def wrong(name: str, path: Path, known: Known = KNOWN) -> str:
    (found,) = read(name, path, known)
    assert isinstance(found, Problem)
    return str(found)


# Names


@pytest.mark.parametrize(
    "name",
    [
        f"{ID}.jpg",
        f"images/{ID}.png",
        f"C:\\export\\{ID.upper()}.JPG",
        f"3f9a1c-{ID}.jpg",
        f"{ID}_jpg.rf.0a1b2c3d4e5f.jpg",
        f"/data/upload/1/8e2f-{ID}.jpg",
        ID,
    ],
)
def test_an_id_is_found_in_the_names_that_tools_make(name: str) -> None:
    assert id_in(name) == ID


def test_two_ids_in_a_name_are_none() -> None:
    assert len(id_in(f"{ID}-{'f' * 64}.jpg")) != 64


# YOLO


def yolo(folder: Path, line: str, *, layout: str = "ultralytics", names: str = "names: [Auto, bus]") -> Path:
    if layout == "darknet":
        (folder / "obj_train_data").mkdir(parents=True)
        (folder / "obj.names").write_text("Auto\nbus\n")
        (folder / "obj.data").write_text("classes = 2\n")
        (folder / "train.txt").write_text(f"data/obj_train_data/{ID}.jpg\n")
        (folder / "obj_train_data" / f"{ID}.txt").write_text(line)
    elif layout == "roboflow":
        (folder / "train" / "labels").mkdir(parents=True)
        (folder / "data.yaml").write_text(f"train: ../train/images\nnc: 2\n{names}\n")
        (folder / "train" / "labels" / f"{ID}_jpg.rf.12ab.txt").write_text(line)
        (folder / "README.dataset.txt").write_text("made by a tool\n")
    else:
        (folder / "labels").mkdir(parents=True)
        (folder / "data.yaml").write_text(f"train: images\n{names}\n")
        (folder / "labels" / f"{ID}.txt").write_text(line)
    return folder


@pytest.mark.parametrize("layout", ["ultralytics", "roboflow", "darknet"])
def test_the_layouts_of_yolo_are_recognised_and_read(layout: str, tmp_path: Path) -> None:
    folder = yolo(tmp_path, "1 0.5 0.5 0.2 0.4\n", layout=layout)
    assert recognised(folder)[0].name == "yolo"
    assert given.same(only("yolo", folder), given.boxes(("bus", 80, 30, 120, 70)))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("7 0.5 0.5 0.2 0.4", "class 7 is not listed; classes are 0 to 1"),
        ("0 0.5 0.5 0.2", "expected class, x, y, width and height, or class and a polygon"),
        ("0 0.5 0.5 x 0.4", "something else than numbers"),
        ("0 0.5 0.5 nan 0.4", "not finite"),
        ("0 0.5 0.5 0 0.4", "has no area"),
        ("0 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5", "no area"),
    ],
)
def test_a_wrong_line_of_yolo_is_named(line: str, why: str, tmp_path: Path) -> None:
    text = wrong("yolo", yolo(tmp_path, f"0 0.5 0.5 0.1 0.1\n{line}\n"))
    assert f"labels/{ID}.txt:2: " in text and why in text


def test_a_polygon_of_yolo_is_the_box_around_it(tmp_path: Path) -> None:
    folder = yolo(tmp_path, "0 0.1 0.1 0.2 0.1 0.3 0.4 0.2 0.5 0.1 0.3\n")
    assert given.same(only("yolo", folder), given.boxes(("Auto", 20, 10, 60, 50)))


def test_a_cropped_picture_beside_yolos_text_is_noticed_and_a_resized_one_is_fine(tmp_path: Path) -> None:
    folder = yolo(tmp_path, "0 0.5 0.5 0.1 0.1\n")
    (folder / "images").mkdir()
    for width, height, fits in ((100, 50, True), (150, 75, True), (100, 100, False)):
        (folder / "images" / f"{ID}.png").write_bytes(given.drawn(1, width=width, height=height))
        (found,) = read("yolo", folder)
        assert isinstance(found, ImportedLabel) is fits, str(found)
    assert "its picture is 100x100, the stored one 200x100" in str(found)


def test_names_that_yaml_would_change_stay(tmp_path: Path) -> None:
    names = (
        "no",
        "on",
        "1.0",
        "0x1f",
        "null",
        "a: b",
        "#hash",
        'quote"',
        "back\\slash",
        "tab\tbed",
        "~",
        "✓ ok",
        "é\u2028x",
    )
    boxes = given.boxes(*((name, 1, 1, 9, 9) for name in names))
    item = given.item(given.drawn(1), boxes)
    format_of("yolo").write(iter([item]), tmp_path, given.plan(classes=names))
    found = given.read_all(format_of("yolo"), tmp_path, given.known_of([item], classes=()))
    assert given.same(found[item.sample].label, boxes)


# VOC


VOC = """<annotation><folder>x</folder><filename>{name}</filename>
<size><width>200</width><height>100</height><depth>3</depth></size>
<object><name>Auto</name><difficult>0</difficult><bndbox>{box}</bndbox>
<part><name>wheel</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>12</xmax><ymax>12</ymax></bndbox></part></object>
</annotation>"""


def sides(*values: object) -> str:
    return "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True))


def test_voc_counts_from_one_unless_a_box_begins_at_zero(tmp_path: Path) -> None:
    (tmp_path / f"{ID}.xml").write_text(VOC.format(name="frame.jpg", box=sides(11, 21, 50, 60)))
    assert recognised(tmp_path)[0].name == "voc"
    assert only("voc", tmp_path) == given.boxes(("Auto", 10, 20, 50, 60))
    (tmp_path / f"{ID}.xml").write_text(VOC.format(name="frame.jpg", box=sides(0, 21, 50, 60)))
    assert only("voc", tmp_path) == given.boxes(("Auto", 0, 21, 50, 60))


def test_the_id_of_voc_may_be_in_the_pictures_name(tmp_path: Path) -> None:
    (tmp_path / "7.xml").write_text(VOC.format(name=f"{ID}.jpg", box=sides(11, 21, 50, 60)))
    (found,) = read("voc", tmp_path)
    assert isinstance(found, ImportedLabel) and found.sample == ID and found.size == (200, 100)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "document type"),
        ("<annotation><object><name>Auto</name></object></annotation>", "has no bndbox"),
        ("<annotation><object></object></annotation>", "object 1 has no name"),
        (VOC.format(name="a", box=sides("a", 1, 2, 3)), "expected xmin, ymin, xmax, ymax"),
        (VOC.format(name="a", box=sides(9, 9, 5, 20)), "has no area"),
        ("<annotation><object>", "cannot be read as XML"),
    ],
)
def test_a_wrong_xml_is_named(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / f"{ID}.xml").write_text(text)
    found = wrong("voc", tmp_path)
    assert found.startswith(f"{ID}.xml: ") and why in found


# COCO


def coco(tmp_path: Path, *annotations: dict[str, Any], **more: Any) -> Path:
    document = {
        "info": {"year": 2026},
        "categories": [{"id": 3, "name": "Auto"}, {"id": 9, "name": "Bus "}],
        "images": [{"id": 5, "file_name": f"frames/{ID}.jpg", "width": 200, "height": 100}],
        "annotations": [{"id": n, "image_id": 5, **each} for n, each in enumerate(annotations)],
    }
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(document | more))
    return file


def test_turned_boxes_of_cvats_coco_are_read(tmp_path: Path) -> None:
    turned = {
        "category_id": 3,
        "bbox": [10, 20, 30, 40],
        "segmentation": [],
        "attributes": {"rotation": 350.0},
    }
    label = only("coco", coco(tmp_path, turned))
    assert label.boxes[0].degrees == pytest.approx(-10)
    assert (label.boxes[0].x0, label.boxes[0].y1) == (10, 60)


def test_polygons_and_both_run_lengths_make_a_mask(tmp_path: Path) -> None:
    from pycocotools import mask as coco_mask

    shape = np.zeros((100, 200), np.uint8)
    shape[10:30, 50:90] = 1
    packed = coco_mask.encode(np.asfortranarray(shape))
    runs = {"size": [100, 200], "counts": packed["counts"].decode()}
    polygon = [[0, 0, 20, 0, 20, 20, 0, 20]]
    file = coco(
        tmp_path,
        {"category_id": 3, "bbox": [0, 0, 20, 20], "segmentation": polygon},
        {"category_id": 9, "bbox": [50, 10, 40, 20], "segmentation": runs},
    )
    label = only("coco", file, Known(kind="mask", size_of={ID: (200, 100)}.get))
    assert isinstance(label, MaskLabel)
    pixels = pixels_of(label)
    assert label.names == {0: "Auto", 1: "Bus"}
    assert (pixels[10:30, 50:90] == 1).all() and (pixels[1:19, 1:19] == 0).all() and pixels[99, 199] == 255


def test_an_order_of_keys_that_nobody_expects_is_read(tmp_path: Path) -> None:
    file = coco(tmp_path, {"category_id": 3, "bbox": [1, 2, 3, 4]})
    document = json.loads(file.read_text())
    order = ("annotations", "images", "info", "categories")
    file.write_text(json.dumps({key: document[key] for key in order}, indent=4))
    assert only("coco", file) == given.boxes(("Auto", 1, 2, 4, 6))
    assert recognised(file)[0].name == "coco"


@pytest.mark.parametrize(
    ("annotation", "why"),
    [
        ({"category_id": 4, "bbox": [1, 2, 3, 4]}, "is of category 4, which is not listed (3 Auto, 9 Bus)"),
        ({"category_id": 3, "bbox": [1, 2, 0, 4]}, "no area"),
    ],
)
def test_a_wrong_annotation_is_named(annotation: dict[str, Any], why: str, tmp_path: Path) -> None:
    assert why in wrong("coco", coco(tmp_path, annotation))


def test_annotations_that_are_none_are_listed_with_the_rest_read(tmp_path: Path) -> None:
    file = coco(
        tmp_path,
        {"category_id": 3, "bbox": [1, 2, 3]},
        {"category_id": 3, "bbox": [1, 2, 3, 4]},
        {"category_id": 3, "bbox": [1, 2, 3, 4], "image_id": 77},
        {"bbox": [1, 2, 3, 4]},
    )
    found = read("coco", file)
    problems = [str(each) for each in found if isinstance(each, Problem)]
    assert len(problems) == 3 and "entry 0" in problems[0] and "entry 3" in problems[1]
    assert "1 annotations are of pictures that it does not list, such as 77" in problems[2]
    (label,) = [each.label for each in found if isinstance(each, ImportedLabel)]
    assert label == given.boxes(("Auto", 1, 2, 4, 6))


def test_a_document_that_is_cut_off_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    text = coco(tmp_path, *({"category_id": 3, "bbox": [1, 2, 3, 4]} for _ in range(20))).read_text()
    cut = tmp_path / "cut.json"
    for length in range(150, len(text) - 1, 97):
        cut.write_text(text[:length])
        with pytest.raises(ConfigError, match=r"cut off|expected|Expecting"):
            list(members(cut))


# JSON


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": [' + "[" * 100_000, "recursion|cut off"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": [Infinity]}', "no number of JSON"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ("7", "expected an object or an array"),
        ('{"a": 1} x', "something after its end"),
        ("", "expected an object or an array"),
        ("[1, 2", "cut off"),
        ('["abc', "cut off"),
        ("[1 2]", "expected , or ]"),
        ('{"a" 1}', "expected a key and a colon"),
    ],
)
def test_json_that_is_none_is_refused_with_its_place(text: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=why):
        list(members(file))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(b'["\xff\xfe"]')
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        list(members(file))


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None, suppress_health_check=PATIENT)
@sampled(st.dictionaries(st.text(), _JSON, max_size=5), st.integers(1, 7), st.sampled_from([None, 2]))
def test_a_document_in_pieces_is_the_document(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any], chunk: int, indent: int | None
) -> None:
    file = tmp_path_factory.mktemp("json") / "x.json"
    file.write_text(json.dumps(document, indent=indent), encoding="utf-8")
    rebuilt: dict[str, Any] = {key: [] for key, value in document.items() if isinstance(value, list)}
    with pytest.MonkeyPatch.context() as patched:
        # A few characters at a time: every place is once the end of what was read.
        patched.setattr("misfire_fleet.labels.formats.parts.json_stream._CHUNK", chunk)
        for key, value in members(file):
            if isinstance(document[key], list):
                rebuilt[key].append(value)
            else:
                rebuilt[key] = value
    assert rebuilt == document


def test_arrays_that_grow_at_once_are_joined_in_order(tmp_path: Path) -> None:
    with JsonParts(tmp_path / "x.json", arrays=("a", "b", "c")) as parts:
        for number in range(5):
            parts.add("b", number)
            parts.add("a", {"n": number})
        parts.join({"first": 1}, {"last": [2]})
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "first": 1,
        "a": [{"n": n} for n in range(5)],
        "b": [0, 1, 2, 3, 4],
        "c": [],
        "last": [2],
    }
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


# Tables


@pytest.mark.parametrize(
    ("text", "kind", "label"),
    [
        ("Auto", None, ClassLabel(name="Auto")),
        ("0", None, ClassLabel(name="Auto")),
        ("Auto,1,2,3.5,4", None, given.boxes(("Auto", 1, 2, 3.5, 4))),
        ("1,1,2,3.5,4", "boxes", given.boxes(("Fußgänger", 1, 2, 3.5, 4))),
        ("a,b,1,2,3,4", "boxes", given.boxes(("a,b", 1, 2, 3, 4))),
        ("", "boxes", given.boxes()),
        ("1 -2.5 1e3", "values", ValuesLabel(values=(1, -2.5, 1000))),
        (
            "1,2,2 3,4,0",
            None,
            parse({"kind": "points", "points": [{"x": 1, "y": 2}, {"x": 3, "y": 4, "visible": 0}]}, where=""),
        ),
        ('{"kind":"boxes","boxes":[]}', None, given.boxes()),
    ],
)
def test_cells_say_labels(text: str, kind: Any, label: Any, tmp_path: Path) -> None:
    assert label_of(text, kind=kind, known=KNOWN, beside=tmp_path, where="x") == label


@pytest.mark.parametrize(
    ("text", "kind", "why"),
    [
        ("Auto,1,2,3", "boxes", "is no box; expected class,x0,y0,x1,y1"),
        ("Auto,5,2,3,4", "boxes", "has no area"),
        ("1,2,7", "points", "visible 0, 1 or 2"),
        ("one two", "values", "not numbers"),
        ("", "class", "is empty; expected a class"),
        ("../../etc/passwd.png", "mask", "no file beside the table"),
        ('{"kind":"boxes"}', None, "boxes.boxes: Field required"),
        ('{"kind":"class","name":"a"}', "boxes", "kind is boxes, but the label is of kind class"),
        ("x" * 201, None, "at most 200 characters"),
    ],
)
def test_cells_that_say_none_are_refused(text: str, kind: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        label_of(text, kind=kind, known=KNOWN, beside=tmp_path, where="x")


_NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name.strip() == name and "\0" not in name)
_SIDES = st.floats(0, 500, width=32).map(float)


@settings(max_examples=150, deadline=None, suppress_health_check=PATIENT)
@sampled(st.lists(st.tuples(_NAMES, _SIDES, _SIDES, st.floats(0.5, 90), st.booleans()), max_size=4))
def test_any_boxes_survive_a_cell(rows: list[tuple[str, float, float, float, bool]]) -> None:
    label = BoxesLabel(
        boxes=tuple(Box(name=n, x0=x, y0=y, x1=x + s, y1=y + s, crowd=c) for n, x, y, s, c in rows)
    )
    text = words_of(label)
    assert label_of(text, kind="boxes", known=Known(), beside=Path(), where="x") == label


@settings(max_examples=200, deadline=None, suppress_health_check=PATIENT)
@sampled(st.floats(1, 300), st.floats(1, 300), st.floats(-179, 180), st.booleans())
def test_a_turned_box_is_found_in_its_corners(
    width: float, height: float, degrees: float, mirrored: bool
) -> None:
    box = Box(name="a", x0=10, y0=20, x1=10 + width, y1=20 + height, degrees=degrees)
    corners = list(corners_of(box))
    if mirrored:
        corners = [corners[0], corners[3], corners[2], corners[1]]
    found = corners_of(box_from_corners("a", corners))
    for corner in corners:
        assert min(abs(corner[0] - x) + abs(corner[1] - y) for x, y in found) < 1e-3


@settings(max_examples=60, deadline=None, suppress_health_check=PATIENT)
@sampled(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32))
def test_any_mask_survives_run_lengths(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    assert (mask_of_runs(runs_of(mask)) == mask).all()


@pytest.mark.parametrize(
    "runs",
    [
        {"size": [10, 10], "counts": [5]},
        {"size": [10, 10], "counts": [101]},
        {"size": [-1, 10], "counts": []},
        {"size": [10**6, 10**6], "counts": [10**12]},
        {"size": [10, 10], "counts": "~~~~"},
        {"size": [10, 10], "counts": [50.5, 49.5]},
        {"counts": [100]},
    ],
)
def test_run_lengths_that_are_none_are_refused(runs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"size|counts|pixels"):
        mask_of_runs(runs)


# Pictures and masks


def test_sizes_are_read_from_headers(tmp_path: Path) -> None:
    for ending in (".png", ".jpg", ".webp"):
        for width, height in ((1, 1), (640, 480), (33, 2000)):
            file = tmp_path / f"x{ending}"
            cv2.imwrite(str(file), np.zeros((height, width, 3), np.uint8))
            assert picture_size(file) == (width, height)
    file.write_bytes(b"\xff\xd8\xff\xe0\x00\x00")
    assert picture_size(file) is None
    assert picture_size(tmp_path / "absent.png") is None


def test_a_mask_in_colours_or_as_jpeg_is_named(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    file = tmp_path / "masks" / f"{ID}.png"
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[0, 0, 0] = 9
    cv2.imwrite(str(file), colours)
    assert "the mask is in colours" in wrong("masks", tmp_path)
    cv2.imwrite(str(file), np.full((4, 4), 7, np.uint8))
    assert "the mask has the label 7; expected class numbers from 0 to 1" in wrong("masks", tmp_path)


# FiftyOne and webdataset


def test_fiftyone_reads_what_its_own_exporter_writes(tmp_path: Path) -> None:
    sample = {
        "_id": {"$oid": "65def789abc1230000000000"},
        "filepath": f"data/{ID}.jpg",
        "tags": [],
        "_media_type": "image",
        "metadata": {
            "_cls": "ImageMetadata",
            "size_bytes": 9,
            "width": 200,
            "height": 100,
            "num_channels": 3,
        },
        "ground_truth": {
            "_cls": "Detections",
            "detections": [
                {
                    "_id": {"$oid": "6"},
                    "_cls": "Detection",
                    "label": "Auto",
                    "bounding_box": [0.1, 0.2, 0.3, 0.4],
                    "attributes": {},
                }
            ],
        },
        "predictions": {"_cls": "Detections", "detections": []},
    }
    unlabelled = {"filepath": f"data/{'f' * 64}.jpg", "ground_truth": None}
    (tmp_path / "metadata.json").write_text(json.dumps({"version": "1.5.0", "sample_fields": []}))
    (tmp_path / "samples.json").write_text(json.dumps({"samples": [sample, unlabelled]}))
    assert recognised(tmp_path)[0].name == "fiftyone"
    assert given.same(only("fiftyone", tmp_path), given.boxes(("Auto", 20, 20, 80, 60)))


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ({"_cls": "Polygons"}, "is no label of misfire"),
        ({"_cls": "Detections", "detections": [{"label": "a"}]}, "bounding_box' is missing"),
        ({"_cls": "Detections", "detections": [{"label": "a", "bounding_box": [0, 0, 0, 1]}]}, "has no area"),
        ({"_cls": "Segmentation", "mask_path": "../../secret.png"}, "is no file of the dataset"),
        ({"_cls": "Keypoints", "keypoints": [1, 2]}, "has 2 skeletons"),
    ],
)
def test_a_wrong_sample_of_fiftyone_is_named(field: dict[str, Any], why: str, tmp_path: Path) -> None:
    sample = {"filepath": f"{ID}.jpg", "ground_truth": field}
    (tmp_path / "samples.json").write_text(json.dumps({"samples": [sample]}))
    text = wrong("fiftyone", tmp_path)
    assert text.startswith("samples.json: sample 1: ") and why in text


def test_a_class_number_of_webdataset_is_read_with_its_list(tmp_path: Path) -> None:
    import io
    import tarfile

    def members_of(cls: bytes) -> Iterator[tuple[str, bytes]]:
        yield f"{ID}.jpg", b"picture"
        yield f"{ID}.cls", cls

    for cls, expected in ((b"1", "bus"), (b"9", "class 9 is not listed")):
        with tarfile.open(tmp_path / "000.tar", "w") as archive:
            for name, data in members_of(cls):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        (tmp_path / "classes.txt").write_text("Auto\nbus\n")
        (found,) = read("webdataset", tmp_path)
        assert expected in str(found.label if isinstance(found, ImportedLabel) else found)


def test_a_skeleton_of_yolo_is_read_with_and_without_visibility(tmp_path: Path) -> None:
    for words, seen in (("0.1 0.2 2 0.3 0.4 0", (2, 0)), ("0.1 0.2 0.3 0.4", (2, 2))):
        folder = yolo(
            tmp_path / f"n{len(words)}",
            f"0 0.5 0.5 1 1 {words}\n",
            names="kpt_shape: [2, 3]\nnames: [person]",
        )
        label = only("yolo", folder)
        assert isinstance(label, PointsLabel)
        assert [(round(p.x), round(p.y), p.visible) for p in label.points] == [
            (20, 20, seen[0]),
            (60, 40, seen[1]),
        ]


_INSIDE = st.tuples(
    st.sampled_from(given.CLASSES),
    st.floats(0, 60),
    st.floats(0, 44),
    st.floats(0.1, 200),
    st.floats(0.1, 200),
)


@pytest.mark.parametrize("name", ["coco", "voc", "yolo"])
@settings(max_examples=15, deadline=None, suppress_health_check=PATIENT)
@sampled(rows=st.lists(_INSIDE, max_size=5))
def test_any_boxes_in_a_picture_survive_a_format(
    name: str, rows: list[tuple[str, float, float, float, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    label = given.boxes(*((n, x, y, min(64, x + w), min(48, y + h)) for n, x, y, w, h in rows))
    item, folder = given.item(given.drawn(1), label), tmp_path_factory.mktemp("any")
    format_of(name).write(iter([item]), folder, given.plan())
    found = given.read_all(format_of(name), folder, given.known_of([item]))
    assert given.same(found[item.sample].label, label, within=1e-5)


@pytest.mark.parametrize(("name", "missing"), [("yolo", "yaml"), ("masks", "PIL"), ("parquet", "pyarrow")])
def test_a_missing_library_is_one_sentence_with_the_extra(name: str, missing: str, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"
        "from pathlib import Path\n"
        "from misfire_fleet.labels.formats.base import Known\n"
        "from misfire_fleet.labels.formats.registry import format_of, recognised\n"
        "from misfire_runtime.errors import MissingExtraError\n"
        "form, _ = recognised(Path(sys.argv[1]))\n"
        "try:\n    list(form.read(Path(sys.argv[1]), Known(size_of=lambda s: (64, 48))))\n"
        "except MissingExtraError as error:\n    print(form.name, error)\n"
    )
    kind = "mask" if name == "masks" else "boxes"
    format_of(name).write(iter(given.items_of(kind)), tmp_path, given.plan())
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith(f"{name} this format needs {missing}, which is not installed: pip install")
