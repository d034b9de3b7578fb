"""Boxes in the four label formats: what was written is what is read, and every fault has its sentence."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.box_labels import CLASSES, Frame, boxes_of, coco, draw, kitti, voc, voc_xml, yolo

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract, encode_jpeg
from misfire_train.data import load_dataset
from misfire_train.data.boxes import with_contract
from misfire_train.errors import DatasetError
from proving_ground.services import data_root

WRITERS: dict[str, Callable[[Path, list[Frame]], None]] = {
    "coco-boxes": lambda root, frames: coco(root / "instances.json", root / "images", frames),
    "yolo": lambda root, frames: yolo(root, "train", frames),
    "voc": voc,
    "kitti": lambda root, frames: kitti(root / "training", frames),
}


def written(root: Path, reader: str, frames: list[Frame]) -> str:
    WRITERS[reader](root, frames)
    return f"{reader}:{root}"


def some(count: int = 6, **changes: Any) -> list[Frame]:
    box = (4.0, 6.0, 40.0, 30.0, 0, False)
    return [Frame(f"{at:03d}.png", **{"boxes": [box], **changes}) for at in range(count)]


@st.composite
def pictures(draw_from: st.DrawFn) -> list[Frame]:
    frames = []
    for at in range(draw_from(st.integers(5, 8))):
        width, height = draw_from(st.integers(1, 70)), draw_from(st.integers(1, 50))
        boxes = []
        for _ in range(draw_from(st.integers(0 if at else 1, 3))):
            x0, y0 = draw_from(st.integers(0, width - 1)), draw_from(st.integers(0, height - 1))
            x1, y1 = draw_from(st.integers(x0 + 1, width)), draw_from(st.integers(y0 + 1, height))
            boxes.append((float(x0), float(y0), float(x1), float(y1), draw_from(st.integers(0, 2)), False))
        frames.append(Frame(f"{at}.png", width, height, boxes))
    return frames


@pytest.mark.parametrize("reader", WRITERS)
@settings(max_examples=15, deadline=None)
@given(frames=pictures())
def test_what_was_written_is_read(reader: str, frames: list[Frame]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "classes.txt").write_text("\n".join(CLASSES))
        dataset = load_dataset(written(Path(folder), reader, frames))
        assert (dataset.task, dataset.classes) == ("detection", CLASSES)
        assert len(dataset.train) + len(dataset.test) == len(frames)
        for frame in frames:
            half = next(
                half
                for half in (dataset.train, dataset.test)
                if any(identity.endswith(frame.name) for identity in half.ids)
            )
            found = boxes_of(half, dataset, f"/{frame.name}")
            expected = np.array([(*box[:5], 0) for box in frame.boxes]).reshape(-1, 6)
            np.testing.assert_allclose(np.reshape(found, (-1, 6)), expected, atol=2e-3)
        assert dataset.contract.width % 32 == dataset.contract.height % 32 == 0


@pytest.mark.parametrize("reader", WRITERS)
def test_the_default_input_keeps_the_median_shape(tmp_path: Path, reader: str) -> None:
    frames = some(5, width=640, height=380)
    frames[0] = Frame("odd.png", 200, 300, [(0.0, 0.0, 200.0, 300.0, 1, False)])
    dataset = load_dataset(written(tmp_path, reader, frames))
    assert (dataset.contract.width, dataset.contract.height) == (320, 192)
    # Another shape is not distorted: it is as high as the input, and stands in its middle.
    half = dataset.train if any("odd" in each for each in dataset.train.ids) else dataset.test
    at = next(at for at, each in enumerate(half.ids) if "odd" in each)
    assert half.targets[at][0, :4].tolist() == [96, 0, 224, 192]
    asked = load_dataset(f"{reader}:{tmp_path}?size=96x64")
    assert (asked.contract.width, asked.contract.height) == (96, 64)


@pytest.mark.parametrize("reader", WRITERS)
def test_boxes_beyond_the_picture_are_cut_and_those_without_an_area_left_out(
    tmp_path: Path, reader: str
) -> None:
    frames = some()
    frames[1].boxes = [
        (-20.0, 2.0, 30.0, 90.0, 0, False),
        (70.0, 2.0, 90.0, 20.0, 1, False),
        (9.0, 9.0, 9.0, 20.0, 1, False),
        (30.0, 9.0, 20.0, 20.0, 1, False),
    ]
    # Seen by all readers as edges from 0, VOC included.
    if reader == "voc":
        voc(tmp_path, frames, from_one=False)
        dataset = load_dataset(f"voc:{tmp_path}")
    else:
        dataset = load_dataset(written(tmp_path, reader, frames))
    half = dataset.train if any("001.png" in each for each in dataset.train.ids) else dataset.test
    np.testing.assert_allclose(boxes_of(half, dataset, "001.png"), [[0, 2, 30, 48, 0, 0]], atol=1e-3)
    where = next(each for each in half.ids if "001.png" in each)
    assert (
        f"1 boxes reached beyond their picture and were cut at its border, such as in {where}"
        in dataset.notes
    )
    assert f"3 boxes without an area were left out, such as in {where}" in dataset.notes


@pytest.mark.parametrize("reader", ["coco-boxes", "voc", "kitti"])
def test_crowds_difficult_boxes_and_regions_nobody_cares_about_are_ignored(
    tmp_path: Path, reader: str
) -> None:
    frames = some()
    frames[0].boxes = [(1.0, 2.0, 21.0, 32.0, 1, True), (8.0, 8.0, 20.0, 20.0, 2, False)]
    dataset = load_dataset(written(tmp_path, reader, frames))
    half = dataset.train if any("000.png" in each for each in dataset.train.ids) else dataset.test
    found = np.array(boxes_of(half, dataset, "000.png"))
    ignored = found[found[:, 5] == 1]
    np.testing.assert_allclose(ignored[:, :4], [[1, 2, 21, 32]], atol=1e-3)
    # A region that nobody cares about has no class.
    assert ignored[:, 4].tolist() == [-1 if reader == "kitti" else dataset.classes.index("person")]
    assert any("to be ignored: not missed if not found, not wrong if found" in note for note in dataset.notes)


@pytest.mark.parametrize("reader", WRITERS)
def test_pictures_without_a_box_are_frames(tmp_path: Path, reader: str) -> None:
    frames = [*some(), Frame("empty.png")]
    dataset = load_dataset(written(tmp_path, reader, frames))
    assert "1 of 7 images have no box" in dataset.notes
    targets = [*dataset.train.targets, *dataset.test.targets]
    assert sorted(each.shape for each in targets) == [(0, 6), *[(1, 6)] * 6]


@pytest.mark.parametrize("reader", WRITERS)
def test_groups_come_from_an_expression_and_a_list_names_the_test_half(tmp_path: Path, reader: str) -> None:
    frames = [Frame(f"d{at % 3}_{at}.png", boxes=some(1)[0].boxes) for at in range(9)]
    name = written(tmp_path, reader, frames)
    (tmp_path / "last.txt").write_text("d2_2\nd2_5.png\nd2_8\n")
    dataset = load_dataset(f"{name}?group=/(d\\d)_&test=last.txt")
    assert set(dataset.train.groups) == {"d0", "d1"}
    assert dataset.test.groups == ("d2",) * 3


@pytest.mark.parametrize("reader", WRITERS)
def test_missing_and_broken_pictures_are_named_and_counted(tmp_path: Path, reader: str) -> None:
    name = written(tmp_path, reader, some(8))
    folder = next(path for path in tmp_path.rglob("003.png")).parent
    for gone in ("003.png", "004.png"):
        (folder / gone).unlink()
    (folder / "005.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    notes = load_dataset(name).notes
    if reader == "yolo":  # its images are found, not listed
        (folder.parent / "train.txt").write_text("".join(f"./train/00{at}.png\n" for at in range(8)))
        yolo_list = json.loads((tmp_path / "data.yaml").read_text()) | {"train": "images/train.txt"}
        (tmp_path / "data.yaml").write_text(json.dumps(yolo_list))
        notes = load_dataset(name).notes
    lost = next(note for note in notes if "are not there" in note)
    assert lost.startswith("2 of 8 images are not there: ")
    assert "003.png" in lost
    assert any(note.startswith("1 unreadable images skipped: ") and "005.png" in note for note in notes)


@pytest.mark.parametrize("reader", WRITERS)
def test_a_class_list_orders_the_classes_and_must_name_all_of_them(tmp_path: Path, reader: str) -> None:
    name = written(tmp_path, reader, some())
    (tmp_path / "order.txt").write_text("sign\ncar\n")
    dataset = load_dataset(f"{name}?classes=order.txt")
    assert dataset.classes == ("sign", "car")
    assert {float(each[0, 4]) for each in dataset.train.targets} == {1.0}
    assert "classes without a box: sign" in dataset.notes
    (tmp_path / "order.txt").write_text("sign\n")
    with pytest.raises(
        DatasetError, match=rf"order.txt does not list car, which {tmp_path} has boxes of; others=drop"
    ):
        load_dataset(f"{name}?classes=order.txt")


@pytest.mark.parametrize("reader", WRITERS)
def test_other_classes_than_the_listed_ones_are_left_out_or_ignored(tmp_path: Path, reader: str) -> None:
    frames = some(boxes=[(4.0, 6.0, 40.0, 30.0, 0, False), (8.0, 8.0, 16.0, 20.0, 2, False)])
    name = written(tmp_path, reader, frames)
    (tmp_path / "few.txt").write_text("sign\n")
    dropped = load_dataset(f"{name}?classes=few.txt&others=drop")
    assert {each[:, 4:].tolist()[0][0] for each in dropped.train.targets} == {0.0}
    assert {len(each) for each in dropped.train.targets} == {1}
    assert "6 boxes of classes that few.txt does not list left out: car (6)" in dropped.notes
    ignored = load_dataset(f"{name}?classes=few.txt&others=ignore")
    assert sorted(ignored.train.targets[0][:, 4:].tolist()) == [[-1.0, 1.0], [0.0, 0.0]]
    assert "6 boxes of classes that few.txt does not list to be ignored: car (6)" in ignored.notes
    with pytest.raises(DatasetError, match=r"others=drop: needs a list of the classes that are meant"):
        load_dataset(f"{name}?others=drop")
    with pytest.raises(ConfigError, match=r"others=all: expected drop or ignore"):
        load_dataset(f"{name}?others=all")


@pytest.mark.parametrize("reader", WRITERS)
def test_an_input_above_the_limit_is_refused(tmp_path: Path, reader: str) -> None:
    name = written(tmp_path, reader, some())
    with pytest.raises(ConfigError, match=r"size=9000x64: a network's input has at most 8192 pixels a side"):
        load_dataset(f"{name}?size=9000x64")


@pytest.mark.parametrize("reader", WRITERS)
def test_pictures_of_one_pixel_and_of_20000_are_read(tmp_path: Path, reader: str) -> None:
    frames = [*some(), Frame("dot.png", 1, 1, [(0.0, 0.0, 1.0, 1.0, 0, False)])]
    frames.append(Frame("wide.png", 20_000, 4, [(10_000.0, 0.0, 20_000.0, 4.0, 0, False)]))
    dataset = load_dataset(written(tmp_path, reader, frames))
    for half in (dataset.train, dataset.test):
        pixels = half.batch(np.arange(len(half)), dataset.contract)
        assert pixels.shape == (len(half), 3, dataset.contract.height, dataset.contract.width)
    half = dataset.train if any("wide" in each for each in dataset.train.ids) else dataset.test
    np.testing.assert_allclose(boxes_of(half, dataset, "wide.png")[0][:4], [10_000, 0, 20_000, 4], rtol=1e-4)


def test_a_picture_of_400_megapixels_is_left_out_with_its_name(tmp_path: Path) -> None:
    name = written(tmp_path, "coco-boxes", some())
    data = bytearray(encode_jpeg(np.zeros((8, 8, 3), np.uint8)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (20_000).to_bytes(2, "big") * 2
    (tmp_path / "images/000.png").write_bytes(bytes(data))
    assert load_dataset(name).notes[0] == (
        "1 unreadable images skipped: images/000.png: 20000x20000 is above the limit of 64000000 pixels"
    )


def test_the_same_set_is_placed_anew_for_a_network_with_another_input(tmp_path: Path) -> None:
    dataset = load_dataset(written(tmp_path, "voc", some(6, width=64, height=48)))
    square = InputContract(height=96, width=96, resize="letterbox-topleft")
    moved = with_contract(dataset, square)
    assert moved.contract == square
    assert moved.train.ids == dataset.train.ids
    np.testing.assert_allclose(moved.train.targets[0][0], [6, 9, 60, 45, 0, 0], atol=1e-3)
    cropped = with_contract(dataset, InputContract(height=48, width=16, resize="center-crop"))
    np.testing.assert_allclose(cropped.train.targets[0][0], [0, 6, 16, 30, 0, 0], atol=1e-3)
    assert with_contract(dataset, dataset.contract) is dataset


# COCO


def test_the_official_archives_of_coco_keep_their_halves(tmp_path: Path) -> None:
    for half, count in (("train2017", 5), ("val2017", 2)):
        coco(tmp_path / f"annotations/instances_{half}.json", tmp_path / half, some(count))
        for other in ("person_keypoints", "captions"):
            (tmp_path / f"annotations/{other}_{half}.json").write_text("{}")
    dataset = load_dataset(f"coco-boxes:{tmp_path}")
    assert (len(dataset.train), len(dataset.test)) == (5, 2)
    assert dataset.test.ids == ("val2017/000.png", "val2017/001.png")
    assert dataset.test.groups == dataset.test.ids
    assert "the test half is 2 of val; test=FILE chooses another one" in dataset.notes


def test_a_document_in_the_folder_of_each_half(tmp_path: Path) -> None:
    for half, count in (("train", 4), ("valid", 2), ("test", 3)):
        coco(tmp_path / half / "_annotations.coco.json", tmp_path / half, some(count))
    dataset = load_dataset(f"coco-boxes:{tmp_path}")
    assert (len(dataset.train), len(dataset.test)) == (4, 5)
    assert dataset.train.ids[0] == "train/000.png"
    assert "the test half is 3 of test and 2 of valid; test=FILE chooses another one" in dataset.notes


def test_an_image_may_carry_its_group_and_folders_are_groups_too(tmp_path: Path) -> None:
    frames = [Frame(f"drive{at % 2}/{at}.png", boxes=some(1)[0].boxes) for at in range(6)]
    coco(tmp_path / "a.json", tmp_path / "images", frames)
    dataset = load_dataset(f"coco-boxes:{tmp_path}")
    assert {*dataset.train.groups, *dataset.test.groups} == {"drive0", "drive1"}
    content = json.loads((tmp_path / "a.json").read_text())
    for at, image in enumerate(content["images"]):
        image["group"] = "north" if at < 3 else 7
    (tmp_path / "a.json").write_text(json.dumps(content))
    dataset = load_dataset(f"coco-boxes:{tmp_path}")
    assert {*dataset.train.groups, *dataset.test.groups} == {"north", "7"}


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> str:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return f"coco-boxes:{path}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][1].update(id=1), "the image id 1 occurs twice; each image and each category"),
        (lambda c: c["images"][1].update(file_name="000.png"), "the file name 000.png occurs twice"),
        (lambda c: c["categories"][1].update(id=3), "the category id 3 occurs twice"),
        (lambda c: c["categories"][1].update(name="car"), "lists the class car twice"),
        (
            lambda c: c["annotations"][2].update(category_id=4),
            r"annotation 3 is of category 4, which the document does not list \(3 car, 13 person, 23 sign\)",
        ),
        (
            lambda c: c["annotations"][2].update(bbox=[1, 2, float("nan"), 3]),
            r"annotation 3 has the bbox \[1.0, 2.0, nan, 3.0\]; expected four finite numbers",
        ),
        (lambda c: c["annotations"][2].update(bbox=[1, 2, 3]), r"not a COCO document: annotations.2.bbox"),
        (lambda c: c.update(categories=[]), r"lists no classes"),
        (lambda c: c.update(annotations=[]), r"none of its 6 images has a box"),
    ],
)
def test_faults_of_a_coco_document_are_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    coco(tmp_path / "a.json", tmp_path / "images", some())
    with pytest.raises(DatasetError, match=message):
        load_dataset(changed(tmp_path / "a.json", change))


def test_what_a_coco_document_can_do_without_is_noted(tmp_path: Path) -> None:
    coco(tmp_path / "a.json", tmp_path / "images", some())

    def change(content: dict[str, Any]) -> None:
        content["annotations"][1]["id"] = content["annotations"][0]["id"]
        content["annotations"].append({**content["annotations"][0], "id": 99, "image_id": 1234})
        content["images"][2].update(width=640, height=480)
        content["images"][3].update(width=0, height=0)
        content["annotations"][4]["bbox"] = [1, 1, 1e308, 1e308]

    notes = load_dataset(changed(tmp_path / "a.json", change)).notes
    assert (
        "1 of 7 annotations of a.json left out: the document does not list their images, such as 1234"
        in notes
    )
    assert "1 of 7 annotations of a.json have the id of another one; all count" in notes
    assert (
        "1 images have another size than their labels state and were left out, such as images/002.png "
        "(64x48, labels of 640x480)" in notes
    )


def test_a_picture_in_both_halves_is_only_tested_on(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", tmp_path / "images", some(6))
    coco(tmp_path / "test.json", tmp_path / "images", some(8)[4:])
    dataset = load_dataset(f"coco-boxes:{tmp_path}")
    assert (len(dataset.train), len(dataset.test)) == (4, 4)
    assert (
        "2 images are listed in both halves and stay in the test half only, such as 004.png" in dataset.notes
    )


def test_halves_with_other_categories(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", tmp_path / "images/train", some(6))
    tram = [{"id": 1, "name": "tram"}, {"id": 2, "name": "car"}]
    marks = [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4]}]
    coco(tmp_path / "test.json", tmp_path / "images/test", some(2), categories=tram, annotations=marks)
    # The test half has its own numbers for the same classes.
    assert load_dataset(f"coco-boxes:{tmp_path}").test.targets[0][0, 4] == 0
    marks[0]["category_id"] = 1
    coco(tmp_path / "test.json", tmp_path / "images/test", some(2), categories=tram, annotations=marks)
    with pytest.raises(DatasetError, match=r"test.json has boxes of tram, which .*train.json does not list"):
        load_dataset(f"coco-boxes:{tmp_path}")


def test_images_that_lead_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    draw(tmp_path / "secret/0.png", 8, 8)
    coco(tmp_path / "set/a.json", tmp_path / "set/images", some())
    name = changed(tmp_path / "set/a.json", lambda c: c["images"][0].update(file_name="../../secret/0.png"))
    lost = load_dataset(name).notes[0]
    assert lost.startswith("1 of 6 images are not there: ../../secret/0.png; looked in ")


# YOLO


def test_a_data_yaml_keeps_its_halves(tmp_path: Path) -> None:
    for half, count in (("train", 5), ("val", 2), ("test", 3)):
        yolo(tmp_path, half, some(count))
    dataset = load_dataset(f"yolo:{tmp_path}/data.yaml")
    assert (len(dataset.train), len(dataset.test)) == (5, 5)
    assert dataset.train.ids[0] == "images/train/000.png"
    assert "the test half is 3 of test and 2 of val; test=FILE chooses another one" in dataset.notes
    assert load_dataset(f"yolo:{tmp_path}").sha256 == dataset.sha256


def test_the_layouts_that_tools_write(tmp_path: Path) -> None:
    """Roboflow: train/images and train/labels, named `../train/images`; path of another machine."""
    for half, count in (("train", 5), ("valid", 2)):
        yolo(tmp_path / "old", half, some(count))
        for kind in ("images", "labels"):
            (tmp_path / half).mkdir(exist_ok=True)
            (tmp_path / "old" / kind / half).rename(tmp_path / half / kind)
    text = "path: /home/someone/set\ntrain: ../train/images\nval: ../valid/images\nnames: {0: car, 1: dog}\n"
    (tmp_path / "data.yaml").write_text(text)
    dataset = load_dataset(f"yolo:{tmp_path}")
    assert (len(dataset.train), len(dataset.test)) == (5, 2)
    assert all(len(each) == 1 for each in dataset.train.targets)
    assert dataset.classes == ("car", "dog")


def test_a_folder_without_a_description_needs_a_class_list(tmp_path: Path) -> None:
    for half, count in (("train", 5), ("val", 2)):
        yolo(tmp_path, half, some(count))
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DatasetError, match=r"expected a data.yaml, or classes.txt with the classes beside"):
        load_dataset(f"yolo:{tmp_path}")
    (tmp_path / "classes.txt").write_text("car\nperson\n")
    assert len(load_dataset(f"yolo:{tmp_path}").test) == 2


def test_a_class_may_have_a_name_that_yaml_takes_for_something_else(tmp_path: Path) -> None:
    yolo(tmp_path, "train", some())
    (tmp_path / "data.yaml").write_text("train: images/train\nval:\ntest: null\nnames: {'0': no, 1: 1e3}\n")
    assert load_dataset(f"yolo:{tmp_path}").classes == ("no", "1e3")


def test_polygons_become_boxes_and_keypoints_stay_out_of_the_way(tmp_path: Path) -> None:
    yolo(tmp_path, "train", some())
    labels = tmp_path / "labels/train/000.txt"
    labels.write_text("1 0.25 0.25 0.5 0.25 0.5 0.75\n")
    dataset = load_dataset(f"yolo:{tmp_path}?group=none")
    half = dataset.train if any("000.png" in each for each in dataset.train.ids) else dataset.test
    np.testing.assert_allclose(boxes_of(half, dataset, "000.png"), [[16, 12, 32, 36, 1, 0]], atol=1e-3)
    labels.write_text("1 0.5 0.5 0.5 0.5 0.1 0.1 2 0.3 0.3 1\n")
    yolo_text = json.loads((tmp_path / "data.yaml").read_text()) | {"kpt_shape": [2, 3]}
    (tmp_path / "data.yaml").write_text(json.dumps(yolo_text))
    dataset = load_dataset(f"yolo:{tmp_path}?group=none")
    half = dataset.train if any("000.png" in each for each in dataset.train.ids) else dataset.test
    np.testing.assert_allclose(boxes_of(half, dataset, "000.png"), [[16, 12, 48, 36, 1, 0]], atol=1e-3)


def test_an_image_without_a_label_file_has_no_object(tmp_path: Path) -> None:
    yolo(tmp_path, "train", some())
    (tmp_path / "labels/train/000.txt").unlink()
    notes = load_dataset(f"yolo:{tmp_path}").notes
    assert "1 images have no label file: they count as images without an object" in notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3 0.5 0.5 0.1 0.1", r"000.txt:2: class 3 is not listed; classes are 0 to 2"),
        ("-1 0.5 0.5 0.1 0.1", r"000.txt:2: class -1 is not listed"),
        ("0.5 0.5 0.5 0.1 0.1", r"000.txt:2: class 0.5 is not listed"),
        ("0 0.5 0.5 0.1", r"000.txt:2: 4 numbers; expected class, x, y, width and height, or class and a"),
        ("0 0.5 0.5 0.1 0.1 0.9", r"000.txt:2: 6 numbers; expected class"),
        ("0 0.5 nan 0.1 0.1", r"000.txt:2: '0 0.5 nan 0.1 0.1' has something else than finite numbers"),
        ("car 0.5 0.5 0.1 0.1", r"000.txt:2: 'car 0.5 0.5 0.1 0.1' has something else than finite numbers"),
    ],
)
def test_faults_of_a_yolo_line_are_named_with_their_place(tmp_path: Path, line: str, message: str) -> None:
    yolo(tmp_path, "train", some())
    (tmp_path / "labels/train/000.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(DatasetError, match=message):
        load_dataset(f"yolo:{tmp_path}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\nnames: [a, b]\nnc: 3\n", "nc is 3, but names lists 2 classes"),
        ("train: images/train\nnames: {0: a, 2: b}\n", "class numbers are 0; 2; expected 0 to 1"),
        ("train: images/train\n", "names is None; expected a list of class names"),
        ("train: images/train\nnames: [a, a]\n", "lists the class a twice"),
        (
            "train: images/train\nnames: [a, [b]]\n",
            r"names is \['a', \['b'\]\]; expected a list of class names",
        ),
        ("a: &a [x, x]\nb: &b [*a, *a]\ntrain: t\nnames: [*b, *b]\n", "names is "),
        (f"train: {'[' * 50_000}\n", "cannot be read as YAML"),
        ("names: [a]\n", "names no images; expected train, and perhaps val and test"),
        ("train: images/nowhere\nnames: [a]\n", "train is images/nowhere, which is not in"),
        ("train: {a: b}\nnames: [a]\n", "expected a folder, a list of folders or a text file"),
        ("train: [unclosed\n", "cannot be read as YAML"),
        ("just a text\n", "expected keys such as train, val and names"),
        ("train: !!python/object/apply:os.system ['true']\nnames: [a]\n", "train is true, which is not in"),
    ],
)
def test_faults_of_a_data_yaml_are_named(tmp_path: Path, text: str, message: str) -> None:
    yolo(tmp_path, "train", some())
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_dataset(f"yolo:{tmp_path}")


# VOC


def test_lists_of_voc_name_the_halves(tmp_path: Path) -> None:
    voc(tmp_path / "VOC2007", some(9))
    lists = tmp_path / "VOC2007/ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("000\n001\n002\n003\n004\n")
    (lists / "train.txt").write_text("000\n001\n002\n")
    (lists / "val.txt").write_text("003\n004\n")
    (lists / "test.txt").write_text("005\n006\n777\n")
    (lists / "car_train.txt").write_text("008  1\n")
    dataset = load_dataset(f"voc:{tmp_path}")
    assert (len(dataset.train), len(dataset.test)) == (3, 4)
    assert dataset.train.ids[0] == "VOC2007/JPEGImages/000.png"
    assert any(note.startswith("2 labelled images are in no list of") for note in dataset.notes)
    assert any(note.endswith("have no labelled image: 777") for note in dataset.notes)


def test_edges_from_zero_are_told_from_pixels_from_one(tmp_path: Path) -> None:
    frames = some()
    frames[2].boxes = [(0.0, 5.0, 20.0, 30.0, 0, False)]
    voc(tmp_path, frames, from_one=False)
    dataset = load_dataset(f"voc:{tmp_path}")
    assert "a box begins at 0, so boxes are read as edges from 0, not as pixels from 1" in dataset.notes
    half = dataset.train if any("001.png" in each for each in dataset.train.ids) else dataset.test
    np.testing.assert_allclose(boxes_of(half, dataset, "001.png"), [[4, 6, 40, 30, 0, 0]], atol=1e-3)


def test_xml_beside_its_picture_in_folders_of_halves(tmp_path: Path) -> None:
    for half, count in (("train", 5), ("valid", 2)):
        for frame in some(count):
            draw(tmp_path / half / frame.name, frame.width, frame.height)
            (tmp_path / half / frame.name).with_suffix(".xml").write_text(voc_xml(frame))
    dataset = load_dataset(f"voc:{tmp_path}")
    assert (len(dataset.train), len(dataset.test)) == (5, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", r"000.xml: cannot be read as XML \(no element found"),
        (
            '<!DOCTYPE a [<!ENTITY b "bbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>',
            r"000.xml: cannot be read as XML \(it declares a document type, which labels do not need\)",
        ),
        (
            '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
            r"it declares a document type",
        ),
        ('<?xml version="1.0" encoding="x-no"?><annotation/>', r"cannot be read as XML \(unknown encoding"),
        ("<html/>", r"000.xml: its root is html; expected annotation"),
        ("<annotation>&b;</annotation>", r"cannot be read as XML \(undefined entity"),
        ("<annotation><object/></annotation>", r"000.xml: object 1 has no name"),
        (
            "<annotation><object><name>car</name><polygon/></object></annotation>",
            r"000.xml: object 1 \(car\) has no bndbox",
        ),
        (
            "<annotation><object><name>car</name><bndbox><xmin>1</xmin><ymin>inf</ymin><xmax>3</xmax>"
            "</bndbox></object></annotation>",
            r"object 1 \(car\) has the bndbox 1, inf, 3, ; expected xmin, ymin, xmax and ymax",
        ),
    ],
)
def test_faults_of_a_voc_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    voc(tmp_path, some())
    (tmp_path / "Annotations/000.xml").write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_dataset(f"voc:{tmp_path}")


# KITTI


def test_kitti_keeps_its_lists_and_leaves_the_unlabelled_half_out(tmp_path: Path) -> None:
    kitti(tmp_path / "training", some(6))
    for frame in some(3):
        draw(tmp_path / "testing/image_2" / frame.name, 64, 48)
    assert len(load_dataset(f"kitti:{tmp_path}").train) == 5
    lists = tmp_path / "ImageSets"
    lists.mkdir()
    (lists / "train.txt").write_text("000\n001\n002\n003\n")
    (lists / "val.txt").write_text("004\n005\n")
    (lists / "test.txt").write_text("006\n")
    dataset = load_dataset(f"kitti:{tmp_path}")
    assert dataset.test.ids == ("training/image_2/004.png", "training/image_2/005.png")
    draw(tmp_path / "training/image_2/new.png", 64, 48)
    assert "1 images without a label file were left out: new.png" in load_dataset(f"kitti:{tmp_path}").notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("car 0 0 0 1 2 3 4", r"000.txt:1: 8 columns; expected a type and 14 numbers"),
        ("car 0 0 0 1 2 x 4 0 0 0 0 0 0 0", r"000.txt:1: the box is 1 2 x 4; expected four finite numbers"),
    ],
)
def test_faults_of_a_kitti_line_are_named_with_their_place(tmp_path: Path, line: str, message: str) -> None:
    kitti(tmp_path / "training", some())
    (tmp_path / "training/label_2/000.txt").write_text(line)
    with pytest.raises(DatasetError, match=message):
        load_dataset(f"kitti:{tmp_path}")


@pytest.mark.parametrize("reader", WRITERS)
def test_a_path_without_such_labels_says_what_was_expected(tmp_path: Path, reader: str) -> None:
    draw(tmp_path / "a.png", 8, 8)
    with pytest.raises(DatasetError, match=r"expected"):
        load_dataset(f"{reader}:{tmp_path}")
    with pytest.raises(DatasetError):
        load_dataset(f"{reader}:{tmp_path / 'nowhere'}")


# The published set


@pytest.mark.slow
def test_carla_detection_has_the_published_frames_and_boxes() -> None:
    dataset = load_dataset("carla-detection", root=data_root())
    assert (len(dataset.train), len(dataset.test)) == (779, 249)
    assert dataset.classes == ("vehicle", "bike", "motobike", "traffic_light", "traffic_sign")
    assert (dataset.contract.width, dataset.contract.height) == (320, 192)
    counts = []
    for half in (dataset.train, dataset.test):
        boxes = np.concatenate(list(half.targets))
        shown = boxes[boxes[:, 5] == 0]
        counts.append((len(boxes), np.bincount(shown[:, 4].astype(int), minlength=5).tolist()))
    # The numbers of the set's own README.
    assert counts == [(2556, [1172, 149, 81, 410, 72]), (1839, [203, 30, 10, 503, 9])]
    towns = [{group.split("/")[0] for group in half.groups} for half in (dataset.train, dataset.test)]
    assert towns == [{"Town01", "Town02", "Town03", "Town04"}, {"Town05"}]
    assert [len(set(half.groups)) for half in (dataset.train, dataset.test)] == [26, 8]
    # Town01_001440.jpg has one traffic sign, at 384,176 with 18x18 pixels; the picture is halved.
    at = dataset.train.ids.index("images/Town01_001440.jpg")
    np.testing.assert_allclose(dataset.train.targets[at], [[192, 89, 201, 98, 4, 0]], atol=0.01)
    assert "142 of 1028 images have no box" in dataset.notes
