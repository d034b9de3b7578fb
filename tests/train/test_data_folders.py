"""Readers of other people's folders: photographs in every layout, and what can be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import decode_image, encode_jpeg, encode_png
from misfire_train.data import load_dataset
from misfire_train.errors import DatasetError
from proving_ground import pictures
from proving_ground.pictures import drawn_figures
from proving_ground.services import data_root


def write_lights(folder: Path, *, per_class: int = 8, layout: str = "{label}/{i}.png") -> list[Path]:
    """Small pictures of two classes as files, higher than wide."""
    written = []
    for label, name in ((0, "red"), (1, "green")):
        for i in range(per_class):
            path = folder / layout.format(
                label=name, i=i, drive=i // 2, half="test" if i % 4 == 3 else "train"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(pictures.view(2 * i + label, width=20 + i, height=50 + i)))
            written.append(path)
    return written


def test_a_class_per_folder_is_read_with_the_files_own_pixels(tmp_path: Path) -> None:
    paths = write_lights(tmp_path)
    dataset = load_dataset(f"image-folder:{tmp_path}")
    assert dataset.classes == ("green", "red")
    assert len(dataset.train) + len(dataset.test) == 16
    assert "set aside" in dataset.notes[0]
    for part in (dataset.train, dataset.test):
        for i, identity in enumerate(part.ids):
            assert dataset.classes[part.targets[i]] == identity.split("/")[0]
            assert np.array_equal(part.images[i], decode_image((tmp_path / identity).read_bytes()))
    assert dataset.contract.height > dataset.contract.width
    before = dataset.sha256
    paths[0].write_bytes(paths[1].read_bytes())
    assert load_dataset(f"image-folder:{tmp_path}").sha256 != before


def test_folders_between_class_and_image_are_groups_and_halves_are_kept(tmp_path: Path) -> None:
    write_lights(tmp_path / "a", layout="{label}/drive{drive}/{i}.png")
    dataset = load_dataset(f"image-folder:{tmp_path / 'a'}?size=20x40")
    assert (dataset.contract.width, dataset.contract.height) == (20, 40)
    assert set(dataset.train.groups) | set(dataset.test.groups) == {f"drive{d}" for d in range(4)}
    assert not set(dataset.train.groups) & set(dataset.test.groups)
    write_lights(tmp_path / "b", layout="{half}/{label}/{i}.png")
    given = load_dataset(f"image-folder:{tmp_path / 'b'}")
    assert {i.split("/")[0] for i in given.test.ids} == {"test"}
    assert (len(given.train), len(given.test)) == (12, 4)
    assert len(given.notes) == 1
    assert "each of the 12 training examples is a group of its own" in given.notes[0]


def test_a_group_expression_reads_tracks_from_file_names(tmp_path: Path) -> None:
    write_lights(tmp_path, layout="{label}/track{drive}_{i}.png")
    dataset = load_dataset(rf"image-folder:{tmp_path}?size=24&group=/(track\d+)_")
    assert set(dataset.train.groups) | set(dataset.test.groups) == {f"track{d}" for d in range(4)}
    with pytest.raises(DatasetError, match="does not match"):
        load_dataset(rf"image-folder:{tmp_path}?group=^(nothing)$")


@pytest.mark.parametrize(
    "query", ["size=0x4", "size=wide", "colour=1", "group=(", "group=abc", "group=(a)(b)"]
)
def test_wrong_options_are_refused(tmp_path: Path, query: str) -> None:
    with pytest.raises(ConfigError):
        load_dataset(f"image-folder:{tmp_path}?{query}")


def test_broken_images_are_skipped_counted_and_named(tmp_path: Path) -> None:
    paths = write_lights(tmp_path)
    photo = pictures.jpeg()
    (tmp_path / "red" / "cut.jpg").write_bytes(photo[: len(photo) // 2])
    (tmp_path / "red" / "empty.png").write_bytes(b"")
    (tmp_path / "green" / "text.jpg").write_text("no image")
    (tmp_path / "green" / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "green" / ".hidden.jpg").write_text("not looked at")
    (tmp_path / "green" / "notes.txt").write_text("not looked at")
    dataset = load_dataset(f"image-folder:{tmp_path}")
    assert len(dataset.train) + len(dataset.test) == len(paths)
    assert dataset.notes[0].startswith("4 unreadable images skipped")
    for name in ("cut.jpg", "dangling.jpg", "empty.png", "text.jpg"):
        assert name in dataset.notes[0]


def test_folders_that_make_no_data_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder"):
        load_dataset(f"image-folder:{tmp_path / 'absent'}")
    with pytest.raises(DatasetError, match="no readable images"):
        load_dataset(f"image-folder:{tmp_path}")
    write_lights(tmp_path / "flat", layout="{label}-{i}.png")
    with pytest.raises(DatasetError, match="no class's folder"):
        load_dataset(f"image-folder:{tmp_path / 'flat'}")
    write_lights(tmp_path / "single", layout="only/{label}-{i}.png")
    with pytest.raises(DatasetError, match="one class only"):
        load_dataset(f"image-folder:{tmp_path / 'single'}")
    write_lights(tmp_path / "mixed", layout="{half}/{label}/{i}.png")
    write_lights(tmp_path / "mixed", layout="{label}/{i}.png")
    with pytest.raises(DatasetError, match="inside and outside"):
        load_dataset(f"image-folder:{tmp_path / 'mixed'}")


def test_real_coco_persons_are_cut_out_with_their_joints() -> None:
    folder = data_root() / "coco_pose_ccby"
    dataset = load_dataset(f"coco-keypoints:{folder}")
    named = load_dataset("coco-pose-ccby", root=data_root())
    assert named.train.ids == dataset.train.ids
    assert len(dataset.train) + len(dataset.test) == 43
    assert len(dataset.classes) == 17
    assert not set(dataset.train.groups) & set(dataset.test.groups)
    document = json.loads((folder / "person_keypoints.json").read_text())
    annotation = {str(a["id"]): a for a in document["annotations"]}
    photos = {p["id"]: p for p in document["images"]}
    checked = 0
    for i, identity in enumerate(dataset.train.ids):
        source = annotation[identity.split("/")[1]]
        width, height = source["bbox"][2:]
        if max(width, height) < 150:
            continue
        photo = decode_image((folder / "images" / photos[source["image_id"]]["file_name"]).read_bytes())
        scale = 96 / (1.25 * max(width, height))
        for joint, (px, py, seen) in enumerate(np.reshape(source["keypoints"], (17, 3))):
            cx, cy, visible = dataset.train.targets[i, joint]
            if not visible or not 4 < cx < 91 or not 4 < cy < 91 or not 20 < px < photo.shape[1] - 20:
                continue
            assert visible == seen
            half = max(1, round(1.5 / scale))
            there = photo[max(0, py - half) : py + half + 1, px - half : px + half + 1].mean((0, 1))
            here = dataset.train.images[i][round(cy) - 1 : round(cy) + 2, round(cx) - 1 : round(cx) + 2]
            checked += np.abs(here.mean((0, 1)) - there).max() < 25
    assert checked > 60  # the same patch of colour lies under the joint in the photograph and in the crop


def coco_document(photo: str, **changes: Any) -> dict[str, Any]:
    document = {
        "images": [{"id": 1, "file_name": photo}],
        "categories": [{"id": 1, "name": "person", "keypoints": ["head", "foot"]}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1, "bbox": [30 * k, 10, 60, 90], "num_keypoints": 2}
            | {"keypoints": [30 * k + 30, 20, 2, 30 * k + 30, 90, 1], "iscrowd": 0}
            for k in range(4)
        ],
    }
    return document | changes


def test_a_coco_document_that_lies_is_refused_with_its_place(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(pictures.jpeg())
    path = tmp_path / "doc.json"
    two = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    good = coco_document("a.jpg", images=two)
    good["annotations"][3]["image_id"] = 2
    path.write_text(json.dumps(good))
    dataset = load_dataset(f"coco-keypoints:{tmp_path}?size=64")
    assert len(dataset.train) + len(dataset.test) == 4
    half = next(part for part in (dataset.train, dataset.test) if "1/0" in part.ids)
    foot = half.targets[half.positions(["1/0"])[0], 1]
    # The box is 90 high, so the crop is a square of 112.5 from (-26.25, -1.25), scaled to 64.
    assert np.allclose(
        foot, ((30.5 + 26.25) * 64 / 112.5 - 0.5, (90.5 + 1.25) * 64 / 112.5 - 0.5, 1), atol=1e-3
    )

    cases: list[tuple[str | dict[str, Any], str]] = [
        ("{", "JSON"),
        ({"images": []}, "not a COCO document: annotations"),
        (coco_document("a.jpg", categories=[]), "one category with keypoints, found 0"),
        (coco_document("absent.jpg"), "no person"),
        (coco_document("../../etc/x.jpg"), "no person"),
        (
            coco_document("a.jpg", annotations=[{**good["annotations"][0], "keypoints": [1, 2, 2]}]),
            "3 numbers",
        ),
        (coco_document("a.jpg", annotations=[{**good["annotations"][0], "iscrowd": 1}]), "no person"),
    ]
    for content, match in cases:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(DatasetError, match=match):
            load_dataset(f"coco-keypoints:{path}")
    with pytest.raises(DatasetError, match="square"):
        path.write_text(json.dumps(good))
        load_dataset(f"coco-keypoints:{path}?size=64x32")


def write_masks(folder: Path, *, image: str, mask: str, count: int = 10) -> None:
    """Part masks of figures drawn over real photographs, as files."""
    figures = drawn_figures(labels="parts", side=48, train=count, test=1)
    for i in range(count):
        for layout, data in ((image, encode_jpeg(figures.train.images[i])), (mask, None)):
            path = folder / layout.format(i=i, drive=i % 5, half="val" if i % 5 == 4 else "train")
            path.parent.mkdir(parents=True, exist_ok=True)
            if data is None:
                cv2.imwrite(str(path), figures.train.targets[i])
            else:
                path.write_bytes(data)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/d{drive}/{i}.jpg", "masks/d{drive}/{i}.png"),
        ("{half}/images/d{drive}/{i}.jpg", "{half}/masks/d{drive}/{i}.png"),
        (
            "leftImg8bit/{half}/d{drive}/{i}_leftImg8bit.jpg",
            "gtFine/{half}/d{drive}/{i}_gtFine_labelTrainIds.png",
        ),
    ],
)
def test_masks_are_read_in_each_layout(tmp_path: Path, image: str, mask: str) -> None:
    write_masks(tmp_path, image=image, mask=mask)
    (tmp_path / "classes.txt").write_text("background\nhead\ntorso\narms\nlegs\n")
    dataset = load_dataset(f"masks:{tmp_path}?size=32")
    assert dataset.classes == ("background", "head", "torso", "arms", "legs")
    assert len(dataset.train) + len(dataset.test) == 10
    assert dataset.train.targets.shape[1:] == (32, 32)
    assert set(dataset.train.groups) | set(dataset.test.groups) == {f"d{k}" for k in range(5)}
    assert not set(dataset.train.groups) & set(dataset.test.groups)
    if "{half}" in image:
        assert set(dataset.test.groups) == {"d4"}


def test_masks_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    write_masks(tmp_path, image="images/{i}.jpg", mask="masks/{i}.png")
    (tmp_path / "images" / "alone.jpg").write_bytes((tmp_path / "images" / "0.jpg").read_bytes())
    assert "1 images or masks without a partner" in " ".join(load_dataset(f"masks:{tmp_path}").notes)
    mask = tmp_path / "masks" / "3.png"
    good = mask.read_bytes()
    colours = np.zeros((48, 48, 3), np.uint8)
    colours[..., 2] = 128
    for content, match in (
        (colours, "in colours"),
        (np.zeros((20, 48), np.uint8), "the mask is 48x20, its image 48x48"),
        (np.full((48, 48), 300, np.uint16), "has the label 300; expected class numbers from 0 to 254"),
    ):
        cv2.imwrite(str(mask), content)
        with pytest.raises(DatasetError, match=match):
            load_dataset(f"masks:{tmp_path}")
    mask.write_bytes(good[:40])
    with pytest.raises(DatasetError, match="cannot be read"):
        load_dataset(f"masks:{tmp_path}")
    mask.write_bytes(good)
    (tmp_path / "classes.txt").write_text("background\n")
    with pytest.raises(DatasetError, match="class numbers from 0 to 0"):
        load_dataset(f"masks:{tmp_path}")


def write_table(folder: Path, rows: list[str]) -> Path:
    for i in range(6):
        (folder / f"{i}.jpg").write_bytes(pictures.jpeg(i))
    path = folder / "table.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_a_table_gives_values_groups_and_its_own_split(tmp_path: Path) -> None:
    rows = ["image,steering,speed,group,split"]
    rows += [f"{i}.jpg,{i / 10},{10 + i},drive{i // 2},{'test' if i > 3 else 'train'}" for i in range(6)]
    dataset = load_dataset(f"csv-regression:{write_table(tmp_path, rows)}?size=64x36")
    assert dataset.task == "regression"
    assert dataset.classes == ("steering", "speed")
    assert dataset.train.targets.dtype == np.float32
    assert np.allclose(dataset.test.targets, [[0.4, 14], [0.5, 15]])
    assert dataset.test.groups == ("drive2", "drive2")


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (["image,angle", "0.jpg,0.1", "1.jpg,left"], r"table.csv:3: angle is 'left'"),
        (["image,angle", "0.jpg,nan"], "not a finite number"),
        (["image,angle", "0.jpg"], "not a finite number"),
        (["image,angle", ",1"], ":2: no image"),
        (["file,angle", "0.jpg,1"], "needs a column `image`"),
        (["image", "0.jpg"], "at least one of numbers"),
        (["image,angle", "0.jpg,1", "0.jpg,2"], ":3: 0.jpg is listed twice"),
        (["image,angle", "gone.jpg,1"], "no image of it can be read"),
        ([""], "needs a column"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_its_line(tmp_path: Path, rows: list[str], match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        load_dataset(f"csv-regression:{write_table(tmp_path, rows)}")
