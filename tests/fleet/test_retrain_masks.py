"""Masks that come back as labels: the stored numbers, of the image's size, of classes that the run has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from misfire_fleet.retrain.uploads import labelled_uploads
from misfire_fleet.store import Store
from misfire_fleet.store.records import NewSample
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import encode_png
from misfire_runtime.testing import make_offer
from misfire_train.fit import train_run
from misfire_train.runs import Run
from misfire_train.train_config import parse_train_config


def scene(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image [16,24,3] of three bands of grey in noise, and the band's number per pixel."""
    edges = sorted(np.random.default_rng(seed).integers(4, 20, 2))
    mask = np.zeros((16, 24), np.uint8)
    mask[:, edges[0] :] = 1
    mask[:, edges[1] + 1 :] = 2
    noise = np.random.default_rng(seed).integers(0, 60, (16, 24, 3))
    return (noise + 90 * mask[..., None]).astype(np.uint8), mask


def palette(mask: NDArray[np.uint8]) -> Image.Image:
    """As VOC, CVAT and labelme write it: colours that have nothing to do with the numbers."""
    image = Image.fromarray(mask).convert("P")
    image.putdata(mask.reshape(-1).tolist())
    image.putpalette([value for i in range(256) for value in (37 * i % 256, 91 * i % 256, 53 * i % 256)])
    return image


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("scenes")
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for i in range(60):
        image, mask = scene(i)
        (folder / "images" / f"{i}.png").write_bytes(encode_png(image))
        palette(mask).save(folder / "masks" / f"{i}.png")
    overrides = {
        "dataset": f"masks:{folder}",
        "model.options": {"width": 4},
        "training.epochs": 1,
        "head.recipe": "none",
    }
    return train_run(parse_train_config({}, overrides=overrides), out=folder / "run")


@pytest.fixture
def fleet(tmp_path: Path) -> tuple[Store, Path, NDArray[np.uint8]]:
    """A store with one upload, where its mask is expected, and the mask."""
    image, mask = scene(1000)
    data = encode_png(image)
    offer = make_offer(data, media_type="image/png")
    store = Store.open_folder(tmp_path / "fleet")
    store.add_many([NewSample(offer, data, 24, 16, "collector-1")])
    (tmp_path / "labels.csv").write_text(f"id,label\n{offer.id},mask.png\n")
    return store, tmp_path / "labels.csv", mask


@pytest.mark.parametrize("kind", ["palette", "16 bit", "grey"])
def test_a_mask_is_the_numbers_that_it_stores(
    run: Run, fleet: tuple[Store, Path, NDArray[np.uint8]], kind: str
) -> None:
    store, labels, mask = fleet
    image = {"palette": palette(mask), "16 bit": Image.fromarray(mask.astype(np.uint16))}.get(kind)
    (image or Image.fromarray(mask)).save(labels.parent / "mask.png")
    with store:
        uploads = labelled_uploads(store, labels, run=run)
    assert uploads.examples.targets.shape == (1, run.contract.height, run.contract.width)
    assert np.array_equal(uploads.examples.targets[0], mask)


def test_a_mask_of_another_size_or_of_an_unknown_class_is_refused_by_name(
    run: Run, fleet: tuple[Store, Path, NDArray[np.uint8]]
) -> None:
    store, labels, mask = fleet
    wrong = mask.copy()
    wrong[0, 0] = 3
    with store:
        for content, match in (
            (mask[:, :12], r"label of \w+: .*mask.png: the mask is 12x16, its image 24x16"),
            (wrong, r"mask.png: the mask has the label 3; expected class numbers from 0 to 2,"),
            (np.dstack([mask, mask, mask + 1]), r"mask.png: the mask is in colours"),
        ):
            Image.fromarray(np.ascontiguousarray(content)).save(labels.parent / "mask.png")
            with pytest.raises(ConfigError, match=match):
                labelled_uploads(store, labels, run=run)
        (labels.parent / "mask.png").unlink()
        with pytest.raises(ConfigError, match=r"mask.png: the mask cannot be read"):
            labelled_uploads(store, labels, run=run)
