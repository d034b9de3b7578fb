"""Draws a contact sheet of a data set: pictures of both halves with their labels, to be looked at.

Dataset --evenly spaced examples--> Task.draw_label of each --> tiles, their names below, classes above

Labels are drawn from the targets that a network trains on, not from the label files: a box that is misplaced
on its way there is misplaced on the sheet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misfire_runtime.errors import ConfigError
from misfire_runtime.files import write_durably
from misfire_runtime.preprocess import Image, encode_jpeg, encode_png
from misfire_train.data import Dataset, Examples
from misfire_train.drawing import TEXT_SIZE, Words, contrasting, rgb, text_width, written
from misfire_train.tasks import Task, get_task

_SIDE = 400
_COLUMNS = 4
# Pixels between tiles; a line of text.
_GAP, _LINE = 8, TEXT_SIZE + 4
_TEST_SHARE = 0.25
_PAPER, _INK, _FAINT = (24, 26, 30), (235, 235, 235), (150, 156, 164)


@dataclass(frozen=True)
class _Tile:
    """Is one drawn example."""

    picture: Image
    name: str
    words: str


def draw_sheet(dataset: Dataset, *, count: int = 20) -> Image:
    """Returns the sheet, uint8 RGB [H,W,3].

    Args:
        dataset: at least one example.
        count: of pictures, a quarter of them from the test half.

    Raises:
        ConfigError: the count is below 1, or there is no example.
    """
    if count < 1 or not len(dataset.train) + len(dataset.test):
        raise ConfigError(f"a contact sheet of {count} pictures needs at least one")
    task = get_task(dataset.task)
    tests = min(len(dataset.test), max(round(count * _TEST_SHARE), count - len(dataset.train)))
    tiles = [
        *_tiles(dataset, task, dataset.train, count - tests, "train"),
        *_tiles(dataset, task, dataset.test, tests, "test"),
    ]
    columns = min(_COLUMNS, len(tiles))
    width = columns * (_SIDE + _GAP) + _GAP
    head, words = _heading(dataset, task, width)
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.picture.shape[0] for tile in row) + 2 * _LINE + _GAP for row in rows]
    sheet = np.full((head + sum(heights) + _GAP, width, 3), _PAPER, np.uint8)
    top = head
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = _GAP + column * (_SIDE + _GAP)
            high, wide = tile.picture.shape[:2]
            start = left + (_SIDE - wide) // 2
            sheet[top : top + high, start : start + wide] = tile.picture
            words.append(Words(_shortened(tile.name), left, top + high + 2, _INK))
            words.append(Words(_shortened(tile.words, keep_end=False), left, top + high + 2 + _LINE, _FAINT))
        top += height
    return written(sheet, words)


def write_sheet(dataset: Dataset, path: Path, *, count: int = 20) -> Path:
    """Writes the sheet as PNG, or as JPEG if the name ends so. Returns the path.

    Raises:
        ConfigError: the name has another ending, the folder is not there, or the count is below 1.
    """
    ending = path.suffix.lower()
    if ending not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"{path}: a contact sheet is a picture; end its name with .png or .jpg")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    sheet = draw_sheet(dataset, count=count)
    write_durably(path, encode_png(sheet) if ending == ".png" else encode_jpeg(sheet))
    return path


def _tiles(dataset: Dataset, task: Task, half: Examples, count: int, word: str) -> list[_Tile]:
    positions = np.unique(np.linspace(0, len(half) - 1, min(count, len(half))).round().astype(int))
    return [_tile(dataset, task, half, int(at), word) for at in positions] if count and len(half) else []


def _tile(dataset: Dataset, task: Task, half: Examples, at: int, word: str) -> _Tile:
    picture, words = task.draw_label(
        half.images[at], half.targets[at], classes=dataset.classes, contract=dataset.contract, side=_SIDE
    )
    return _Tile(picture, f"{word}: {half.ids[at]}", words)


def _heading(dataset: Dataset, task: Task, width: int) -> tuple[int, list[Words]]:
    """Returns the height of the heading and its words: the name, and the classes in their colours."""
    summary = (
        f"{dataset.name}   {dataset.task}   {len(dataset.train)} to train on, {len(dataset.test)} to test on"
        f"   input {dataset.contract.width}x{dataset.contract.height}"
    )
    words = [Words(summary, _GAP, _GAP, _INK)]
    x, y = _GAP, _GAP + _LINE + 2
    colours = task.class_colours(dataset.classes)
    for name, painted in zip(dataset.classes, colours, strict=bool(colours)):
        colour = rgb(painted)
        wide = text_width(f" {name} ") + 4
        if x + wide > width:
            x, y = _GAP, y + _LINE + 2
        words.append(Words(f" {name} ", x, y, contrasting(colour), colour))
        x += wide
    return y + (_LINE if colours else 0) + _GAP, words


def _shortened(text: str, *, keep_end: bool = True) -> str:
    """Returns what fits below a tile; the end of a name tells frames apart."""
    most = _SIDE // 6
    if len(text) <= most:
        return text
    return f"...{text[3 - most :]}" if keep_end else f"{text[: most - 3]}..."
