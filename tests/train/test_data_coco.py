"""COCO keypoints in the folders in which such sets are published, and messages that name what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misfire_runtime.preprocess import encode_jpeg
from misfire_train.data import load_dataset
from misfire_train.errors import DatasetError


def annotation(identity: int, image: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "image_id": image,
        "category_id": 1,
        "bbox": [4, 4, 40, 50],
        "keypoints": [20, 10, 2, 22, 50, 1],
        "num_keypoints": 2,
        "iscrowd": 0,
    } | changes


def write(document: Path, folder: Path, *, count: int = 3, name: str = "{i:06d}.jpg", **changes: Any) -> None:
    """A document of `count` images with a person each, numbered from 1 as every tool does."""
    folder.mkdir(parents=True, exist_ok=True)
    document.parent.mkdir(parents=True, exist_ok=True)
    listed = []
    for i in range(1, count + 1):
        pixels = np.random.default_rng(len(str(folder)) + i).integers(0, 255, (64, 64, 3), np.uint8)
        (folder / f"{i:06d}.jpg").write_bytes(encode_jpeg(pixels))
        listed.append({"id": i, "file_name": name.format(i=i)})
    content = {
        "images": listed,
        "categories": [{"id": 1, "name": "person", "keypoints": ["head", "foot"]}],
        "annotations": [annotation(i, i) for i in range(1, count + 1)],
    } | changes
    document.write_text(json.dumps(content))


def test_the_official_archives_are_read_with_their_own_halves(tmp_path: Path) -> None:
    for half, count in (("train2017", 5), ("val2017", 2)):
        write(tmp_path / f"annotations/person_keypoints_{half}.json", tmp_path / half, count=count)
        for other in ("instances", "captions"):
            (tmp_path / f"annotations/{other}_{half}.json").write_text("{}")
    dataset = load_dataset(f"coco-keypoints:{tmp_path}")
    assert (len(dataset.train), len(dataset.test)) == (5, 2)
    assert dataset.test.ids == ("val2017/1/1", "val2017/2/2")
    assert dataset.test.groups == ("val2017/000001.jpg", "val2017/000002.jpg")
    assert "the test half is 2 of val; test=FILE chooses another one" in dataset.notes


@pytest.mark.parametrize("images", ["{half}", "images/{half}"])
def test_a_json_per_half_beside_folders_of_images(tmp_path: Path, images: str) -> None:
    for half, count in (("train", 4), ("val", 2), ("test", 3)):
        write(tmp_path / f"{half}.json", tmp_path / images.format(half=half), count=count)
    dataset = load_dataset(f"coco-keypoints:{tmp_path}")
    assert (len(dataset.train), len(dataset.test)) == (4, 5)
    assert "the test half is 3 of test and 2 of val; test=FILE chooses another one" in dataset.notes
    (tmp_path / "val.json").unlink()
    assert len(load_dataset(f"coco-keypoints:{tmp_path}").test) == 3


def test_one_half_alone_finds_its_images_and_the_other_can_be_named(tmp_path: Path) -> None:
    for half, count in (("train", 6), ("val", 2), ("test", 3)):
        write(tmp_path / f"{half}.json", tmp_path / half, count=count)
    alone = load_dataset(f"coco-keypoints:{tmp_path / 'train.json'}")
    assert len(alone.train) + len(alone.test) == 6
    dataset = load_dataset(f"coco-keypoints:{tmp_path / 'train.json'}?test=val.json")
    assert (len(dataset.train), len(dataset.test)) == (6, 2)
    assert not any("val" in note for note in dataset.notes)
    (tmp_path / "list.txt").write_text("train/000002\n")
    listed = load_dataset(f"coco-keypoints:{tmp_path / 'train.json'}?test=list.txt")
    assert listed.test.ids == ("2/2",)


def test_images_may_be_in_a_folder_of_another_name(tmp_path: Path) -> None:
    write(tmp_path / "labels/people.json", tmp_path / "labels" / "frames", count=5)
    dataset = load_dataset(f"coco-keypoints:{tmp_path / 'labels'}?images=frames")
    assert len(dataset.train) + len(dataset.test) == 5
    elsewhere = load_dataset(f"coco-keypoints:{tmp_path / 'labels'}?images={tmp_path / 'labels/frames'}")
    assert elsewhere.train.ids == dataset.train.ids


def test_a_document_whose_images_are_elsewhere_says_where_it_looked(tmp_path: Path) -> None:
    write(tmp_path / "set/people.json", tmp_path / "far", count=5)
    with pytest.raises(DatasetError) as caught:
        load_dataset(f"coco-keypoints:{tmp_path / 'set'}")
    message = str(caught.value)
    assert "5 of 5 images of people.json are not there, such as 000001.jpg; looked in " in message
    assert f"{tmp_path / 'set'}, {tmp_path / 'set' / 'images'}" in message
    with pytest.raises(DatasetError, match=rf"looked in {tmp_path / 'set' / 'frames'}"):
        (tmp_path / "set" / "frames").mkdir()
        load_dataset(f"coco-keypoints:{tmp_path / 'set'}?images=frames")


def test_annotations_of_missing_images_are_counted_apart(tmp_path: Path) -> None:
    marks = [annotation(i, i) for i in range(1, 6)]
    marks += [annotation(6, 1, iscrowd=1), annotation(7, 9), annotation(8, 6)]
    listed = [{"id": i, "file_name": f"{i:06d}.jpg"} for i in range(1, 7)]
    write(tmp_path / "p.json", tmp_path / "images", count=5, annotations=marks, images=listed)
    notes = load_dataset(f"coco-keypoints:{tmp_path}").notes
    assert any(note.startswith("1 of 6 images of p.json are not there, such as 000006.jpg") for note in notes)
    assert "2 of 8 annotations of p.json left out: their images cannot be read" in notes
    assert "1 of 8 annotations of p.json left out: crowd, tiny, or without a visible keypoint" in notes


def test_separators_of_windows_are_understood_and_paths_that_lead_out_are_not_followed(
    tmp_path: Path,
) -> None:
    write(tmp_path / "set/p.json", tmp_path / "set/images", name="images\\{i:06d}.jpg")
    dataset = load_dataset(f"coco-keypoints:{tmp_path / 'set'}")
    assert len(dataset.train) + len(dataset.test) == 3
    write(tmp_path / "set/p.json", tmp_path / "set/images", name="../../secret/{i:06d}.jpg")
    write(tmp_path / "other.json", tmp_path.parent / "secret")
    with pytest.raises(
        DatasetError, match=r"3 of 3 images of p.json are not there, such as \.\./\.\./secret"
    ):
        load_dataset(f"coco-keypoints:{tmp_path / 'set'}")


def test_documents_that_are_not_clear_are_refused_with_the_way_out(tmp_path: Path) -> None:
    for name in ("train", "people"):
        write(tmp_path / f"{name}.json", tmp_path / "images")
    with pytest.raises(
        DatasetError, match=r"found people.json, train.json; name the file itself.*test=FILE.json"
    ):
        load_dataset(f"coco-keypoints:{tmp_path}")
    other = [{"id": 1, "name": "person", "keypoints": ["nose", "foot"]}]
    write(tmp_path / "people.json", tmp_path / "images", categories=other)
    with pytest.raises(DatasetError, match=r"people.json has other keypoints than .*train.json"):
        load_dataset(f"coco-keypoints:{tmp_path / 'train.json'}?test=people.json")
