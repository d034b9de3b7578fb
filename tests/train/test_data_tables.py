"""CSV files as spreadsheets, pandas and other systems write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from misfire_runtime.preprocess import encode_png
from misfire_train.data import Dataset, load_dataset
from misfire_train.errors import DatasetError


def read(folder: Path, text: str, *, images: int = 6, reader: str = "csv-regression") -> Dataset:
    (folder / "images").mkdir(exist_ok=True)
    for i in range(images):
        image = np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)
        (folder / "images" / f"{i}.png").write_bytes(encode_png(image))
    path = folder / "t.csv"
    path.write_bytes(text.encode())
    return load_dataset(f"{reader}:{path}")


def values_of(dataset: Dataset) -> dict[str, list[float]]:
    return {
        identity: np.round(target, 4).tolist()
        for half in (dataset.train, dataset.test)
        for identity, target in zip(half.ids, half.targets, strict=True)
    }


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "Unnamed: 0,Unnamed: 0.1"])
def test_the_index_that_pandas_writes_is_nothing_to_learn(tmp_path: Path, name: str) -> None:
    extra = name.count(",")
    rows = [f"{i},{'0,' * extra}images/{i}.png,{i / 8}" for i in range(6)]
    dataset = read(tmp_path, "\n".join([f"{name},image,steering", *rows]))
    assert dataset.classes == ("steering",)
    assert any("columns without a name left out" in note for note in dataset.notes)
    assert values_of(dataset)["images/3.png"] == [0.375]


def test_a_named_column_that_counts_the_rows_is_noted(tmp_path: Path) -> None:
    rows = [f"{10 + i},images/{i}.png,{i * i}" for i in range(6)]
    dataset = read(tmp_path, "\n".join(["frame,image,speed", *rows]))
    assert dataset.classes == ("frame", "speed")
    assert "frame counts the rows; if it is an index, remove the column" in dataset.notes


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has two columns speed"):
        read(tmp_path, "image,speed,speed\nimages/0.png,1,2\n")


@pytest.mark.parametrize(
    "text",
    [
        "﻿image;angle;split\r\nimages/0.png;0,5;train\r\n\r\nimages/1.png;-1,25;test\r\n",
        "image\tangle\tsplit\nimages/0.png\t0.5\ttrain\nimages/1.png\t-1.25\tvalid\n",
        'image,angle,split\n"images\\0.png",0.5,Training\nimages\\1.png,-1.25,validation\n',
    ],
)
def test_separators_line_ends_and_paths_of_other_systems(tmp_path: Path, text: str) -> None:
    dataset = read(tmp_path, text)
    assert values_of(dataset) == {"images/0.png": [0.5], "images/1.png": [-1.25]}
    assert dataset.test.ids == ("images/1.png",)


def test_an_unknown_split_word_is_an_error_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        read(tmp_path, "image,angle,split\nimages/0.png,1,train\n\nimages/1.png,2,holdout\n")
    assert str(caught.value).endswith(
        "t.csv:4: split is holdout; the words for the halves are "
        "train, training, val, valid, validation, test, testing"
    )


def test_rows_without_a_split_word_beside_others_are_counted(tmp_path: Path) -> None:
    rows = [f"images/{i}.png,{i / 7},{'valid' if i < 2 else ''}" for i in range(6)]
    dataset = read(tmp_path, "\n".join(["image,angle,split", *rows]))
    assert (len(dataset.train), len(dataset.test)) == (4, 2)
    assert "4 examples without a split word are in the training half" in dataset.notes


def test_missing_images_are_named_and_counted(tmp_path: Path) -> None:
    rows = [f"images/{i}.png,{i / 7}" for i in range(9)]
    dataset = read(tmp_path, "\n".join(["image,angle", *rows]))
    assert len(dataset.train) + len(dataset.test) == 6
    assert "3 of 9 images are not there: images/6.png; images/7.png; images/8.png" in dataset.notes
    with pytest.raises(DatasetError, match=r"no image of it can be read; images/7.png is not in "):
        read(tmp_path, "image,angle\nimages/7.png,1\n")


def test_groups_and_a_list_of_the_test_half_work_as_for_folders(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("4\n5\n")
    rows = [f"images/{i}.png,{i / 7},drive{i // 2}" for i in range(6)]
    read(tmp_path, "\n".join(["image,angle,group", *rows]))
    dataset = load_dataset(f"csv-regression:{tmp_path / 't.csv'}?test=test.txt")
    assert dataset.test.groups == ("drive2", "drive2")
    assert set(dataset.train.groups) == {"drive0", "drive1"}


def test_class_names_with_a_split_and_drives(tmp_path: Path) -> None:
    rows = ["0,bus,train,a,1", "1,car,train,b,1", "2,bus,test,c,0", "3,car,val,c,0"]
    text = "\n".join(["image,label,split,group,rain", *(f"images/{row}" for row in rows)])
    text = text.replace(",bus", ".png,bus").replace(",car", ".png,car")
    dataset = read(tmp_path, text, reader="csv-classes")
    assert (dataset.task, dataset.classes) == ("classification", ("bus", "car"))
    assert dataset.train.targets.tolist() == [0, 1] and dataset.train.groups == ("a", "b")
    assert dataset.test.targets.tolist() == [0, 1] and dataset.test.groups == ("c", "c")
    assert "columns that were not read: rain" in dataset.notes
    # A list fixes the order, as of a network that has one.
    (tmp_path / "classes.txt").write_text("van\ncar\nbus\n")
    listed = load_dataset(f"csv-classes:{tmp_path / 't.csv'}")
    assert listed.classes == ("van", "car", "bus") and listed.train.targets.tolist() == [2, 1]
    assert listed.sha256 != dataset.sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,class\nimages/0.png,bus\nimages/1.png,bus\n", "has one class only"),
        ("image,class\nimages/0.png,bus\nimages/1.png,\n", "t.csv:3: no class"),
        (
            "image,kind,place\nimages/0.png,bus,a\n",
            "`class` or `label`; it has image, kind",
        ),
        ("image,class,label\nimages/0.png,bus,a\n", "needs a column `image` and one of class names"),
    ],
)
def test_tables_of_names_that_do_not_say_which_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read(tmp_path, text, reader="csv-classes")


def test_a_name_in_a_table_of_numbers_points_to_the_other_reader(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"label is 'bus', .* .csv-classes reads class"):
        read(tmp_path, "image,label\nimages/0.png,bus\n")
