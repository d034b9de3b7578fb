"""The contact sheet of a data set: labels are drawn where a network is told that they are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import Result
from tests.train.box_labels import Frame, coco
from typer.testing import CliRunner

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.commands.contact_sheet import draw_sheet, write_sheet
from misfire_train.commands.data import app
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.data.images import ImageArray
from misfire_train.drawing import box_colour, colour_of, labelled_boxes, rgb

CONTRACT = InputContract(height=40, width=40)
# Left margin and picture side of a sheet.
GAP, SIDE = 8, 400


def dataset_of(task: str, classes: tuple[str, ...], target: object, count: int = 3) -> Dataset:
    ids = tuple(f"{at}.png" for at in range(count))
    images = ImageArray(np.full((count, 40, 40, 3), 90, np.uint8))
    examples = Examples(images, np.stack([np.asarray(target)] * count), ids, ids)
    return Dataset("set", task, classes, CONTRACT, examples, examples.take([0]), "0", "mine")


def tile(sheet: np.ndarray) -> np.ndarray:
    """The first picture: where the grey of the images begins."""
    top = int(np.flatnonzero((sheet[:, GAP] == 90).all(1))[0])
    return sheet[top : top + SIDE, GAP : GAP + SIDE]


def colours(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(v) for v in colour) for colour in np.unique(picture.reshape(-1, 3), axis=0)}


def test_joints_are_drawn_at_their_places() -> None:
    target = np.array([[10, 30, 2], [20, 5, 0]], np.float32)
    picture = tile(draw_sheet(dataset_of("keypoints", ("head", "foot"), target)))
    assert tuple(picture[305, 105]) == rgb(colour_of(0))
    assert tuple(picture[55, 205]) == (90, 90, 90)


def test_masks_are_tinted_by_class() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[:20], mask[20:30] = 255, 2
    picture = tile(draw_sheet(dataset_of("segmentation", ("road", "car", "sky"), mask)))
    assert tuple(picture[100, 100]) == (90, 90, 90)
    assert tuple(picture[250, 100]) == tuple(int(0.5 * 90 + 0.5 * v) for v in rgb(colour_of(2)))
    assert rgb(colour_of(2)) in colours(draw_sheet(dataset_of("segmentation", ("road", "car", "sky"), mask)))


@pytest.mark.parametrize(("task", "target"), [("classification", 1), ("regression", [0.5, 1.5])])
def test_classes_and_values_are_words_below(task: str, target: object) -> None:
    one = draw_sheet(dataset_of(task, ("steering", "speed"), target))
    other = dataset_of(task, ("steering", "speed"), np.asarray(target) * 0)
    assert (tile(one) == 90).all()
    assert (one != draw_sheet(other)).any()


def test_boxes_have_the_colour_of_their_class_and_ignored_ones_are_dashed() -> None:
    boxes = np.array([[10, 20, 30, 36, 1, 0], [2, 2, 8, 8, 0, 1]], np.float32)
    grey = np.full((40, 40, 3), 90, np.uint8)
    picture, words = labelled_boxes(grey, boxes, classes=("car", "bike"), side=400)
    assert words == "1 bike, 1 to be ignored"
    for x, y in ((100, 300), (299, 300), (200, 200), (200, 359)):
        assert tuple(picture[y, x]) == rgb(box_colour(1))
    assert tuple(picture[300, 200]) == (90, 90, 90)
    # A dashed line is neither everywhere nor nowhere.
    line = (picture[20, 20:80] == picture[20, 20]).all(1)
    assert 0.3 < line.mean() < 0.7
    assert rgb(box_colour(0)) not in colours(picture)
    assert labelled_boxes(grey, boxes[:0], classes=("car",))[1] == "no box"
    # Names of classes have any letters; a name at the border stays inside.
    edge = np.array([[36, 0, 40, 4, 0, 0]], np.float32)
    assert labelled_boxes(grey, edge, classes=("Bär",), side=400)[0].shape == (400, 400, 3)


def misfire(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "160"})


def test_show_writes_the_sheet(tmp_path: Path) -> None:
    for name in ("sheet.png", "sheet.jpg"):
        done = misfire("show", "digits", "--sheet", str(tmp_path / name), "--count", "6", "--json")
        assert done.exit_code == 0, done.output
        sheet = cv2.imread(str(tmp_path / name))
        assert sheet.shape[1] == 4 * (SIDE + GAP) + GAP
        assert 800 < sheet.shape[0] < 1000
    with pytest.raises(ConfigError, match=r"sheet.gif: a contact sheet is a picture; end its name with .png"):
        write_sheet(load_dataset("digits"), tmp_path / "sheet.gif")
    with pytest.raises(ConfigError, match=r"there is no folder"):
        write_sheet(load_dataset("digits"), tmp_path / "nowhere" / "sheet.png")


@pytest.mark.parametrize("count", [1, 2, 9])
def test_few_pictures_and_many_are_shown_once_each(count: int) -> None:
    sheet = draw_sheet(dataset_of("classification", ("a", "b"), 1), count=count)
    # Three to train on and one to test on are there.
    shown = min(count, 4)
    assert sheet.shape[1] == min(shown, 4) * (SIDE + GAP) + GAP


def test_boxes_of_a_set_are_drawn_where_the_labels_have_them(tmp_path: Path) -> None:
    frames = [Frame(f"{at}.png", 80, 48, [(20.0, 12.0, 60.0, 36.0, 0, False)]) for at in range(6)]
    coco(tmp_path / "a.json", tmp_path / "images", frames)
    sheet = draw_sheet(load_dataset(f"coco-boxes:{tmp_path}"), count=1)
    found = (sheet == rgb(box_colour(0))).all(2)
    rows = np.flatnonzero(found[:, GAP + 100])
    # A quarter of the 400 pixels from the left, half as high as the picture of 240.
    assert rows.max() - rows.min() > 119
    assert found[:, GAP + 99].sum() < 5
