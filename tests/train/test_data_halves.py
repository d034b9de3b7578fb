"""Train and test: split words, lists of one's own, groups of one half, and notes on what flatters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from misfire_runtime.preprocess import encode_png
from misfire_train.data import load_dataset, split
from misfire_train.data.readers.halves import SPLIT_WORDS, split_word
from misfire_train.errors import DatasetError


def write_images(folder: Path, *names: str) -> None:
    for at, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(at).integers(0, 255, (16, 16, 3), np.uint8)
        path.write_bytes(encode_png(image))


def write_signs(folder: Path) -> None:
    """Ten frames of each physical sign to train on; the test half has names without a track."""
    for label in ("00", "01"):
        write_images(folder, *(f"train/{label}/{track:04d}-{i}.png" for track in range(4) for i in range(3)))
        write_images(folder, *(f"test/{label}/{i:05d}.png" for i in range(3)))


@pytest.mark.parametrize("word", SPLIT_WORDS.split(", "))
def test_every_reader_knows_every_split_word(tmp_path: Path, word: str) -> None:
    from PIL import Image

    half = "test" if word in ("train", "training") else "train"
    is_test = half == "train"
    for part, count in ((word.capitalize(), 4), (half, 8)):
        write_images(
            tmp_path / "folder", *(f"{part}/{label}/{i}.png" for i in range(count) for label in "ab")
        )
        write_images(tmp_path / "masks", *(f"{part}/images/{i}.png" for i in range(count)))
        for i in range(count):
            mask = tmp_path / "masks" / part / "masks" / f"{i}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.eye(16, dtype=np.uint8)).save(mask)
    write_images(tmp_path / "table", *(f"{i}.png" for i in range(12)))
    rows = [f"{i}.png,{i / 7},{word.upper() if i < 4 else half}" for i in range(12)]
    (tmp_path / "table" / "t.csv").write_text("\n".join(["image,v,split", *rows]))
    for name in (f"masks:{tmp_path / 'masks'}", f"csv-regression:{tmp_path / 'table' / 't.csv'}"):
        dataset = load_dataset(name)
        assert (len(dataset.test), len(dataset.train)) == ((4, 8) if is_test else (8, 4)), name
    dataset = load_dataset(f"image-folder:{tmp_path / 'folder'}")
    assert (len(dataset.test), len(dataset.train)) == ((8, 16) if is_test else (16, 8))


def test_words_that_are_no_split_words() -> None:
    assert [split_word(text) for text in ("holdout", "", "tests", "eval", " Valid ")] == [
        *("", "", "", ""),
        "valid",
    ]


def test_validation_in_the_test_half_is_noted(tmp_path: Path) -> None:
    write_images(
        tmp_path,
        *(f"{half}/{label}/{i}.png" for half in ("train", "val", "test") for label in "ab" for i in range(3)),
    )
    dataset = load_dataset(f"image-folder:{tmp_path}")
    assert (len(dataset.train), len(dataset.test)) == (6, 12)
    assert "the test half is 6 of test and 6 of val; test=FILE chooses another one" in dataset.notes


def test_a_data_set_without_a_training_half_says_that_it_is_divided_anew(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"val/{label}/{i}.png" for label in "ab" for i in range(10)))
    dataset = load_dataset(f"image-folder:{tmp_path}")
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    assert "all examples are in val: 4 of 20 examples were set aside, by group" in dataset.notes


@pytest.mark.parametrize(
    "lines",
    [
        ["a/1.png", "b/x 2.png"],
        ["﻿a/1", "b/x 2", ""],
        ["1.png", r"b\x 2.png"],
    ],
)
def test_a_list_names_the_test_half(tmp_path: Path, lines: list[str]) -> None:
    write_images(tmp_path, "a/0.png", "a/1.png", "a/3.png", "b/x 0.png", "b/x 2.png", "b/x 4.png")
    (tmp_path / "val.txt").write_text("\r\n".join(lines), encoding="utf-8")
    dataset = load_dataset(f"image-folder:{tmp_path}?test=val.txt")
    assert dataset.test.ids == ("a/1.png", "b/x 2.png")
    assert len(dataset.train) == 4
    assert load_dataset(f"image-folder:{tmp_path}?test={tmp_path / 'val.txt'}").test.ids == dataset.test.ids


def test_another_list_is_another_data_set(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{label}/{i}.png" for label in "ab" for i in range(3)))
    found = set()
    for line in ("a/0", "a/1"):
        (tmp_path / "list.txt").write_text(line)
        found.add(load_dataset(f"image-folder:{tmp_path}?test=list.txt").sha256)
    assert len(found) == 2


def test_a_list_overrides_split_words(tmp_path: Path) -> None:
    write_images(
        tmp_path,
        *(f"{half}/{label}/{i}.png" for half in ("train", "val") for label in "ab" for i in range(2)),
    )
    (tmp_path / "list.txt").write_text("train/a/0.png\nval/b/1.png\n")
    dataset = load_dataset(f"image-folder:{tmp_path}?test=list.txt")
    assert dataset.test.ids == ("train/a/0.png", "val/b/1.png")


def test_a_list_that_does_not_fit_says_how_images_are_named(tmp_path: Path) -> None:
    write_images(tmp_path, "a/0.png", "a/1.png", "b/0.png", "b/2.png")
    list_ = tmp_path / "list.txt"
    for content, match in (
        ("c/9.png\n", r"none of its 1 lines names an image.*named like a/0.png, its first line is c/9.png"),
        ("0.png\n", r"0.png may be any of a/0.png, b/0.png; write the path"),
        ("", "none of its 0 lines"),
    ):
        list_.write_text(content)
        with pytest.raises(DatasetError, match=match):
            load_dataset(f"image-folder:{tmp_path}?test=list.txt")
    with pytest.raises(DatasetError, match=r"test=gone.txt: cannot be read as a list of images"):
        load_dataset(f"image-folder:{tmp_path}?test=gone.txt")
    list_.write_text("a/1.png\ngone.png\n")
    notes = load_dataset(f"image-folder:{tmp_path}?test=list.txt").notes
    assert "1 of 2 lines of list.txt name no readable image: gone.png" in notes


def test_groups_of_the_training_half_need_not_match_the_test_half(tmp_path: Path) -> None:
    write_signs(tmp_path)
    dataset = load_dataset(rf"image-folder:{tmp_path}?group=(\d+/\d+)-")
    assert set(dataset.train.groups) == {
        f"{label}/{track:04d}" for label in ("00", "01") for track in range(4)
    }
    note = next(note for note in dataset.notes if note.startswith("group="))
    assert note == (
        r"group=(\d+/\d+)- matches no name of 6 test images, such as test/00/00000.png: "
        "they keep the groups they had"
    )


def test_a_group_expression_that_fails_on_the_training_half_says_where_with_plain_backslashes(
    tmp_path: Path,
) -> None:
    write_signs(tmp_path)
    with pytest.raises(DatasetError) as caught:
        load_dataset(rf"image-folder:{tmp_path}?group=(\d+/00\d0)-")
    assert str(caught.value) == (
        r"group=(\d+/00\d0)- does not match 18 of the training images, such as train/00/0001-0.png"
    )


def test_a_group_expression_that_captures_nothing_did_not_match(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{label}/{i}.png" for label in "ab" for i in range(3)))
    with pytest.raises(DatasetError, match=r"does not match 6 of the images, such as a/0\.png"):
        load_dataset(rf"image-folder:{tmp_path}?group=(drive\d)?")


def test_frames_that_are_groups_of_their_own_are_noted(tmp_path: Path) -> None:
    write_signs(tmp_path)
    alone = load_dataset(f"image-folder:{tmp_path}")
    assert any("each of the 24 training examples is a group of its own" in note for note in alone.notes)
    assert any("name those with group=REGEX" in note for note in alone.notes)
    for option in (r"group=(\d+/\d+)[-.]", "group=none"):
        notes = load_dataset(f"image-folder:{tmp_path}?{option}").notes
        assert not any("a group of its own" in note for note in notes), option


def test_drives_that_both_halves_share_are_noted(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"train/{label}/d{i}/x.png" for label in "ab" for i in range(5)))
    write_images(tmp_path, *(f"test/{label}/d{i}/y.png" for label in "ab" for i in (0, 7, 8)))
    notes = load_dataset(f"image-folder:{tmp_path}").notes
    assert (
        "1 of the 3 groups of the test half are also in the training half (d0): "
        "results on the test half look better than on new groups"
    ) in notes


def test_splitting_without_groups_is_an_option_and_too_few_groups_name_it(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{label}/d{i % 3}/{i}.png" for label in "ab" for i in range(15)))
    shares = {"train": 0.58, "validation": 0.07, "holdout": 0.22, "calibration": 0.13}
    few = load_dataset(f"image-folder:{tmp_path}").train
    with pytest.raises(DatasetError) as caught:
        split(few, fractions={name: share / sum(shares.values()) for name, share in shares.items()}, seed=0)
    message = str(caught.value)
    assert "2 groups of 20 examples" in message or "groups of" in message
    assert "the split train 0.58, validation 0.07, holdout 0.22, calibration 0.13" in message
    assert "group=REGEX" in message and "group=none" in message
    dataset = load_dataset(f"image-folder:{tmp_path}?group=none")
    assert dataset.train.groups == dataset.train.ids
    assert any("split without groups, as group=none says" in note for note in dataset.notes)
    assert all(split(dataset.train, fractions=shares, seed=0).values())
