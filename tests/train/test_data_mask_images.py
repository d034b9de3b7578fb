"""Masks of every depth and palette give the numbers that they store; what cannot be right is refused."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from misfire_runtime.preprocess import encode_jpeg, encode_png
from misfire_train.data import load_dataset
from misfire_train.data.readers.mask_images import read_mask
from misfire_train.errors import DatasetError


def png(stored: NDArray[np.uint16], *, depth: int, palette: bool = False) -> bytes:
    """A PNG whose bits are exactly these numbers."""
    height, width = stored.shape
    rows = b""
    for row in stored:
        bits = "".join(format(int(value), f"0{depth}b") for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, depth, 3 if palette else 0, 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if palette:
        # Colours as VOC chooses them: nothing like the numbers.
        colours = [(37 * i % 256, 91 * i % 256, 53 * i % 256) for i in range(1 << depth)]
        chunks.append((b"PLTE", bytes(value for colour in colours for value in colour)))
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_stored_number_is_the_class(tmp_path: Path, depth: int, palette: bool) -> None:
    if palette and depth == 16:
        depth = 8  # PNG has no palettes of 16 bits
    top = min(1 << depth, 200)
    stored = np.random.default_rng(depth).integers(0, top, (13, 11)).astype(np.uint16)
    path = tmp_path / "mask.png"
    path.write_bytes(png(stored, depth=depth, palette=palette))
    assert np.array_equal(read_mask(path), stored)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".gif", ".pgm"])
def test_grey_and_palette_masks_of_other_formats(tmp_path: Path, suffix: str) -> None:
    stored = np.arange(60, dtype=np.uint8).reshape(6, 10) % 7
    path = tmp_path / f"mask{suffix}"
    Image.fromarray(stored).save(path)
    assert np.array_equal(read_mask(path), stored)
    one_bit = tmp_path / "one.tif"
    Image.fromarray(stored > 3).save(one_bit)
    assert np.array_equal(read_mask(one_bit), stored > 3)


def test_grey_in_three_channels_and_an_alpha_channel_are_grey(tmp_path: Path) -> None:
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = tmp_path / "mask.png"
    for image in (
        np.dstack([stored] * 3),
        np.dstack([stored, stored, stored, np.full_like(stored, 255)]),
        np.dstack([stored, np.full_like(stored, 9)]),
    ):
        Image.fromarray(image).save(path)
        assert np.array_equal(read_mask(path), stored)


def test_what_is_no_mask_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    grey = np.zeros((8, 8), np.uint8)
    whole = png(grey.astype(np.uint16), depth=8)
    noise = png(np.random.default_rng(0).integers(0, 9, (40, 40)).astype(np.uint16), depth=8)
    cases: list[tuple[bytes, str]] = [
        (b"", "cannot be read"),
        (noise[: len(noise) // 2], "cannot be read"),
        (encode_jpeg(np.zeros((8, 8, 3), np.uint8)), "JPEG changes class numbers"),
        (encode_png(np.dstack([grey, grey + 1, grey])), "in colours"),
        (png(np.full((8, 8), 300, np.uint16), depth=16), "has the label 300; .* from 0 to 254"),
    ]
    for content, match in cases:
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=f"mask.png: .*{match}"):
            read_mask(path)
    path.write_bytes(whole)
    with pytest.raises(DatasetError, match=r"mask.png: the mask is 8x8, its image 9x8"):
        read_mask(path, size=(9, 8))
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DatasetError, match=r"f.tif: the mask holds float32 numbers"):
        read_mask(tmp_path / "f.tif")
    bomb = png(np.zeros((1, 1), np.uint16), depth=1)
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    bomb = bomb[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + bomb[33:]
    path.write_bytes(bomb)
    with pytest.raises(DatasetError, match=r"mask.png: .*(above the limit|exceeds limit)"):
        read_mask(path)


def test_labels_that_mean_nothing_become_255(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(png(np.array([[0, 1], [11, 65535]], np.uint16), depth=16))
    assert read_mask(path, ignore=frozenset({11, 65535})).tolist() == [[0, 1], [255, 255]]
    with pytest.raises(DatasetError, match="has the label 11; expected class numbers from 0 to 1,"):
        read_mask(path, classes=2, ignore=frozenset({65535}))


def write_set(folder: Path, masks: list[bytes], *, image: str = "images/{i}.png") -> None:
    for i, data in enumerate(masks):
        picture = np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)
        path = folder / image.format(i=i, drive=i // 4)
        mask = folder / image.replace("images/", "masks/", 1).format(i=i, drive=i // 4)
        for place, content in ((path, encode_png(picture)), (mask, data)):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)


def bands(*labels: int) -> NDArray[np.uint16]:
    """[16,16], one band per label."""
    return np.repeat(np.array(labels, np.uint16), -(-16 // len(labels)))[:16, None].repeat(16, 1)


def test_one_bit_and_palette_masks_train_the_object_not_its_absence(tmp_path: Path) -> None:
    write_set(tmp_path / "bits", [png(bands(0, 1), depth=1)] * 10)
    dataset = load_dataset(f"masks:{tmp_path / 'bits'}")
    assert dataset.classes == ("class 0", "class 1")
    assert set(np.unique(dataset.train.targets)) == {0, 1}
    write_set(tmp_path / "voc", [png(bands(0, 1, 2, 255), depth=8, palette=True)] * 10)
    dataset = load_dataset(f"masks:{tmp_path / 'voc'}")
    assert dataset.classes == ("class 0", "class 1", "class 2")
    assert "25.0 % of all pixels are not labelled (label 255)" in dataset.notes


def test_masks_of_0_and_255_alone_are_refused_with_the_remedy(tmp_path: Path) -> None:
    write_set(tmp_path, [png(bands(0, 255), depth=8)] * 10)
    with pytest.raises(
        DatasetError, match=r"class 0; expected two classes or more .* stored as 1, not as 255"
    ):
        load_dataset(f"masks:{tmp_path}")


@pytest.mark.parametrize(
    "listed",
    [
        {"classes": ["sky", "road", "car"], "ignore_index": 11},
        {
            "classes": [{"id": 0, "name": "sky"}, {"id": 1, "name": "road"}, {"id": 2, "name": "car"}],
            "ignore": [11],
        },
        {"names": {"0": "sky", "1": "road", "2": "car"}, "ignore_index": 11},
        {"sky": 0, "road": 1, "car": 2, "ignore_index": 11},
    ],
)
def test_a_class_file_with_an_ignored_label_is_read(tmp_path: Path, listed: dict[str, object]) -> None:
    write_set(tmp_path, [png(bands(0, 1, 2, 11), depth=8)] * 10)
    (tmp_path / "classes.json").write_text(json.dumps(listed))
    dataset = load_dataset(f"masks:{tmp_path}")
    assert dataset.classes == ("sky", "road", "car")
    assert set(np.unique(dataset.train.targets)) == {0, 1, 2, 255}
    assert "25.0 % of all pixels are not labelled (label 11, 255)" in dataset.notes


def test_a_name_for_what_is_ignored_is_no_class(tmp_path: Path) -> None:
    write_set(tmp_path, [png(bands(0, 1, 2), depth=8)] * 10)
    (tmp_path / "classes.json").write_text(
        json.dumps({"classes": ["sky", "road", "void"], "ignore_index": 2})
    )
    assert load_dataset(f"masks:{tmp_path}").classes == ("sky", "road")
    (tmp_path / "classes.json").write_text(
        json.dumps({"classes": ["void", "sky", "road"], "ignore_index": 0})
    )
    dataset = load_dataset(f"masks:{tmp_path}")
    assert dataset.classes == ("void", "sky", "road")
    assert "classes without a pixel in any mask: void" in dataset.notes


def test_ignored_labels_and_a_class_file_may_be_options(tmp_path: Path) -> None:
    write_set(tmp_path, [png(bands(0, 1, 7, 11), depth=8)] * 10)
    (tmp_path / "names.txt").write_text("sky\nroad\n")
    with pytest.raises(DatasetError, match=r"0.png: the mask has the label 11; .* from 0 to 1,"):
        load_dataset(f"masks:{tmp_path}?classes=names.txt")
    dataset = load_dataset(f"masks:{tmp_path}?classes=names.txt&ignore=7,11")
    assert dataset.classes == ("sky", "road")
    assert set(np.unique(dataset.train.targets)) == {0, 1, 255}


@pytest.mark.parametrize(
    "content", ["{", "3", '{"classes": 3}', '{"classes": [1, 2]}', '{"names": {"5": "a"}}']
)
def test_a_class_file_that_lists_nothing_is_refused(tmp_path: Path, content: str) -> None:
    write_set(tmp_path, [png(bands(0, 1), depth=8)] * 10)
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(DatasetError, match=r"classes.json: "):
        load_dataset(f"masks:{tmp_path}")


def test_halves_above_or_below_images_and_drives_in_both(tmp_path: Path) -> None:
    for i, half in enumerate(("train", "valid", "test")):
        masks = [png(bands(0, 1), depth=8)] * 8
        write_set(tmp_path / "behind", masks, image=f"images/{half}/drive{{drive}}/{i}-{{i}}.png")
        write_set(tmp_path / "before" / half, masks, image="images/drive{drive}/{i}.png")
        for drive in (0, 1):
            write_set(tmp_path / f"far/{half}/drive{drive}", masks[:4])
    for layout in ("behind", "before", "far"):
        dataset = load_dataset(f"masks:{tmp_path / layout}")
        assert (len(dataset.train), len(dataset.test)) == (8, 16)
        assert set(dataset.train.groups) == {"drive0", "drive1"}
        assert "the test half is 8 of test and 8 of valid; test=FILE chooses another one" in dataset.notes
        assert any(
            "2 of the 2 groups of the test half are also in the training half" in n for n in dataset.notes
        )
    write_set(tmp_path / "behind", [png(bands(0, 1), depth=8)], image="images/holdout/drive9/{i}.png")
    with pytest.raises(DatasetError, match=r"such as images/holdout/drive9/0.png; the words for the halves"):
        load_dataset(f"masks:{tmp_path / 'behind'}")


def test_cv2_agrees_on_plain_grey(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 20, (9, 9)).astype(np.uint8)
    path = tmp_path / "m.png"
    cv2.imwrite(str(path), stored)
    assert np.array_equal(read_mask(path), stored)
