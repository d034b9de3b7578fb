"""Image folders as people have them: empty classes, system folders, names of two forms, unusual endings."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import encode_jpeg, encode_png
from misfire_train.data import Dataset, load_dataset, split
from misfire_train.data.corruptions import corrupt_all
from misfire_train.errors import DatasetError


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)


def write_classes(folder: Path, *names: str, count: int = 6, suffix: str = ".png") -> None:
    for at, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            image = picture(100 * at + i)
            data = encode_jpeg(image) if suffix != ".png" else encode_png(image)
            (folder / name / f"{i}{suffix}").write_bytes(data)


def labels_of(dataset: Dataset) -> dict[str, int]:
    """Class number by the first folder of the image's name."""
    return {
        identity.split("/")[0]: int(target)
        for half in (dataset.train, dataset.test)
        for identity, target in zip(half.ids, half.targets, strict=True)
    }


def test_an_empty_class_folder_keeps_its_number(tmp_path: Path) -> None:
    write_classes(tmp_path, "blue", "left", "right", "top")
    (tmp_path / "green").mkdir()
    dataset = load_dataset(f"image-folder:{tmp_path}")
    assert dataset.classes == ("blue", "green", "left", "right", "top")
    assert labels_of(dataset) == {"blue": 0, "left": 2, "right": 3, "top": 4}
    assert "classes without a readable image: green" in dataset.notes


def test_an_empty_class_folder_counts_in_halves_and_a_class_of_the_test_half_alone_is_named(
    tmp_path: Path,
) -> None:
    write_classes(tmp_path / "train", "a", "c")
    write_classes(tmp_path / "test", "a", "b", "c", count=2)
    (tmp_path / "train" / "d").mkdir()
    dataset = load_dataset(f"image-folder:{tmp_path}")
    assert dataset.classes == ("a", "b", "c", "d")
    assert "classes without a readable image: d" in dataset.notes
    assert "classes without a training image: b" in dataset.notes


def test_system_and_hidden_folders_are_no_classes_and_no_groups(tmp_path: Path) -> None:
    write_classes(tmp_path, "cat", "dog", ".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found")
    write_classes(tmp_path / "cat", ".ipynb_checkpoints")
    (tmp_path / "dog" / "._0.png").write_bytes(encode_png(picture(0)))
    (tmp_path / "dog" / ".DS_Store").write_bytes(b"\0")
    dataset = load_dataset(f"image-folder:{tmp_path}")
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.train) + len(dataset.test) == 12
    assert not any(".ipynb" in identity for identity in dataset.train.ids + dataset.test.ids)
    note = next(note for note in dataset.notes if "left out" in note)
    for name in (".ipynb_checkpoints (2)", "@eaDir", "__MACOSX", "lost+found", "._0.png"):
        assert name in note


def test_an_umlaut_in_one_or_two_characters_is_the_same_class_and_the_same_group(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Bär") for form in ("NFC", "NFD"))
    write_classes(tmp_path / "train", "Wolf", composed)
    write_classes(tmp_path / "test", "Wolf", decomposed)
    for half, form in (("train", composed), ("test", decomposed)):
        (tmp_path / half / "Wolf" / form).mkdir()
        (tmp_path / half / "Wolf" / form / "x.png").write_bytes(encode_png(picture(7)))
    dataset = load_dataset(f"image-folder:{tmp_path}")
    assert dataset.classes == (composed, "Wolf")
    assert set(dataset.test.targets) == {0, 1}
    assert composed in dataset.train.groups and composed in dataset.test.groups


@pytest.mark.parametrize("option", ["", "?classes=order.txt", "?classes={folder}/order.json"])
def test_a_class_list_gives_the_order(tmp_path: Path, option: str) -> None:
    write_classes(tmp_path, "a", "b", "c")
    name = "classes.txt" if not option else "order.txt"
    (tmp_path / name).write_text("﻿c\r\nz\r\na\r\nb\r\n", encoding="utf-8")
    (tmp_path / "order.json").write_text('{"classes": ["c", "z", "a", "b"]}')
    dataset = load_dataset(f"image-folder:{tmp_path}{option.format(folder=tmp_path)}")
    assert dataset.classes == ("c", "z", "a", "b")
    assert labels_of(dataset) == {"a": 2, "b": 3, "c": 0}
    assert "classes without a readable image: z" in dataset.notes


def test_another_order_of_classes_is_another_data_set(tmp_path: Path) -> None:
    write_classes(tmp_path, "a", "b")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    before = load_dataset(f"image-folder:{tmp_path}").sha256
    (tmp_path / "classes.txt").write_text("b\na\n")
    assert load_dataset(f"image-folder:{tmp_path}").sha256 != before


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("a\n", r"does not list b, which"),
        ("a\nb\na\n", "lists the class a twice"),
        ("\n", "lists no classes"),
    ],
)
def test_a_class_list_that_does_not_fit_is_refused(tmp_path: Path, content: str, match: str) -> None:
    write_classes(tmp_path, "a", "b")
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(DatasetError, match=match):
        load_dataset(f"image-folder:{tmp_path}")


def test_halves_without_class_folders_are_no_classes(tmp_path: Path) -> None:
    write_classes(tmp_path, "train", "test")
    with pytest.raises(DatasetError, match=r"directly in test; train; expected .* train/CLASS/image"):
        load_dataset(f"image-folder:{tmp_path}")
    (tmp_path / "classes.txt").write_text("train\ntest\n")
    assert load_dataset(f"image-folder:{tmp_path}").classes == ("train", "test")


def test_a_class_list_that_is_missing_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, "a", "b")
    with pytest.raises(DatasetError, match=r"nowhere\.txt: cannot be read as a list of classes"):
        load_dataset(f"image-folder:{tmp_path}?classes=nowhere.txt")


def test_pictures_with_an_unknown_ending_are_taken_and_counted(tmp_path: Path) -> None:
    write_classes(tmp_path, "a", "b")
    write_classes(tmp_path, "c", suffix=".jfif")
    (tmp_path / "a" / "readme.md").write_text("words")
    dataset = load_dataset(f"image-folder:{tmp_path}")
    assert dataset.classes == ("a", "b", "c")
    assert len(dataset.train) + len(dataset.test) == 18
    assert "6 images were recognised by their content (.jfif: 6)" in dataset.notes
    assert "1 files are not images and were left out (.md: 1)" in dataset.notes


def test_a_class_whose_pictures_all_fail_stays_a_class_and_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, "a", "c")
    (tmp_path / "b").mkdir()
    for i in range(3):
        (tmp_path / "b" / f"{i}.jpg").write_bytes(b"\xff\xd8\xff no picture")
    dataset = load_dataset(f"image-folder:{tmp_path}")
    assert dataset.classes == ("a", "b", "c")
    assert "classes without a readable image: b (3 that cannot be read)" in dataset.notes
    assert any("3 unreadable images skipped: b/0.jpg" in note for note in dataset.notes)


def test_linked_class_folders_are_read_and_a_link_upwards_ends(tmp_path: Path) -> None:
    write_classes(tmp_path / "elsewhere", "a", "b")
    (tmp_path / "set").mkdir()
    for name in ("a", "b"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere" / "a" / "up").symlink_to(tmp_path / "set")
    dataset = load_dataset(f"image-folder:{tmp_path / 'set'}")
    assert dataset.classes == ("a", "b")
    assert len(dataset.train) + len(dataset.test) >= 12


def test_names_that_are_not_utf8_are_read_split_and_printed(tmp_path: Path) -> None:
    write_classes(tmp_path, "a", "b")
    for label in (b"a", b"caf\xe9"):
        folder = os.path.join(os.fsencode(tmp_path), label)  # noqa: PTH118
        Path(os.fsdecode(folder)).mkdir(exist_ok=True)
        for i in range(6):
            Path(os.fsdecode(folder + b"/caf\xe9 %d.png" % i)).write_bytes(encode_png(picture(i)))
    dataset = load_dataset(f"image-folder:{tmp_path}")
    assert dataset.classes == ("a", "b", r"caf\xe9")
    parts = split(dataset.train, fractions={"x": 0.5, "y": 0.5}, seed=1)
    shifted = corrupt_all(parts["x"], "fog", severity=2, seed=0)
    assert shifted.images[0].shape == (16, 16, 3)
    names = "".join([*dataset.train.ids, *dataset.test.ids, *dataset.notes, dataset.sha256])
    assert r"caf\xe9 0.png" in names
    names.encode()


def test_a_data_set_in_a_folder_whose_name_is_not_utf8_is_refused_in_words(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9"))
    write_classes(folder, "a", "b")
    with pytest.raises(
        DatasetError, match=r"d\\xe9: the path of a data set must be UTF-8; rename the folder"
    ):
        load_dataset(f"image-folder:{folder}")


def test_a_class_called_train_is_a_class_among_others(tmp_path: Path) -> None:
    write_classes(tmp_path, "car", "train", "bus")
    dataset = load_dataset(f"image-folder:{tmp_path}")
    assert dataset.classes == ("bus", "car", "train")
    write_classes(tmp_path / "grouped", "car/d1", "car/d2", "train/d1", "train/d3")
    with pytest.raises(DatasetError, match="inside and outside of train and test folders, such as car/"):
        load_dataset(f"image-folder:{tmp_path / 'grouped'}")
    (tmp_path / "grouped" / "classes.txt").write_text("train\ncar\n")
    assert load_dataset(f"image-folder:{tmp_path / 'grouped'}").classes == ("train", "car")


def test_a_folder_beside_the_halves_that_is_no_half_is_named(tmp_path: Path) -> None:
    for half in ("Train", "validation", "holdout"):
        write_classes(tmp_path / half, "a", "b")
    with pytest.raises(DatasetError, match=r"such as holdout/a/0.png; the words for the halves are train,"):
        load_dataset(f"image-folder:{tmp_path}")


def test_options_that_a_reader_does_not_take_are_refused_with_those_it_takes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset(rf"image-folder:{tmp_path}?group=(\d)&ignore=3")
    assert str(caught.value).endswith(
        r"?group=(\d)&ignore=3: no option ignore; there are size=WIDTHxHEIGHT, channels=4, "
        "group=REGEX (or group=none), test=FILE, classes=FILE"
    )
