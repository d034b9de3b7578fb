"""The catalogue and its readers: real files, verified; changed, missing and malformed ones refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from misfire_train.data import load_dataset
from misfire_train.data.catalogue import DataFile, data_roots, entries, open_file, state
from misfire_train.data.readers.published import read_idx
from misfire_train.errors import DatasetError
from proving_ground.services import data_root

SIZES = {
    "digits": (1352, 445, 10, (8, 8)),
    "mnist": (60000, 10000, 10, (28, 28)),
    "fashion-mnist": (60000, 10000, 10, (28, 28)),
    "kmnist": (0, 10000, 10, (28, 28)),
    "traffic-lights": (1187, 297, 3, (48, 24)),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_published_set_is_complete_and_normalised(name: str) -> None:
    dataset = load_dataset(name, root=None if name == "digits" else data_root())
    train, test, classes, size = SIZES[name]
    assert (len(dataset.train), len(dataset.test), len(dataset.classes)) == (train, test, classes)
    assert (dataset.contract.height, dataset.contract.width) == size
    assert dataset.task == "classification"
    assert dataset.test.targets.dtype == np.int64
    assert set(np.unique(dataset.test.targets)) == set(range(classes))
    assert not set(dataset.train.ids) & set(dataset.test.ids)
    if name != "kmnist":  # which has the contract of MNIST
        batch = dataset.train.batch(range(600), dataset.contract)
        assert abs(float(batch.mean())) < 0.1
        assert abs(float(batch.std()) - 1) < 0.15


DIVISIONS = {
    "digits": "c3aace7e27a8365c",
    "mnist": "70f5c76c02040e4d",
    "fashion-mnist": "55f6c6fe3a187b34",
    "kmnist": "0847ca957981faca",
    "traffic-lights": "5b6a91804150cd07",
    "coco-pose-ccby": "b8e3f773a8abb038",
}
"""Of ids, groups, classes and labels of both halves: numbers published for these sets hold only for these."""


@pytest.mark.parametrize("name", DIVISIONS)
def test_published_sets_are_divided_as_they_always_were(name: str) -> None:
    found = load_dataset(name, root=None if name == "digits" else data_root())
    halves = [found.train.ids, found.test.ids, found.train.groups, found.test.groups]
    content = json.dumps([*halves, found.classes, found.train.targets[:200].tolist()])
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == DIVISIONS[name]


def test_real_labels_stand_beside_real_images() -> None:
    fashion = load_dataset("fashion-mnist", root=data_root()).train
    trousers, bags = (
        np.stack([fashion.images[i][:, :, 0] for i in np.flatnonzero(fashion.targets == label)[:200]]).mean(0)
        for label in (1, 8)
    )
    assert trousers[24:, 14].mean() < 0.5 * trousers[24:, [11, 17]].mean()  # a gap between two legs
    assert bags[10:24].std(1).mean() < trousers[10:24].std(1).mean()  # a bag fills its rows
    lights = load_dataset("traffic-lights", root=data_root()).train
    red, green = (np.flatnonzero(lights.targets == label)[:80] for label in (0, 2))

    def redness(index: int) -> float:
        image = lights.images[index].astype(float)
        return float((image[..., 0] - image[..., 1]).mean())

    assert np.median([redness(i) for i in red]) > 5
    assert np.median([redness(i) for i in green]) < -5


def test_digits_come_without_any_folder(tmp_path: Path) -> None:
    assert len(load_dataset("digits", root=tmp_path).train) == 1352


def test_a_changed_file_is_refused_and_a_missing_one_says_how_to_get_it(tmp_path: Path) -> None:
    shutil.copytree(data_root() / "kmnist_test", tmp_path / "kmnist_test", copy_function=shutil.copyfile)
    assert len(load_dataset("kmnist", root=tmp_path).test) == 10000
    entry = entries()["kmnist"]
    labels = tmp_path / entry.files[1].path
    labels.chmod(0o644)
    labels.write_bytes(labels.read_bytes()[:-1] + b"x")
    assert state(entry, root=tmp_path) == "present"
    assert state(entry, root=tmp_path, verify=True) == "changed"
    with pytest.raises(DatasetError, match="sha256 differs"):
        load_dataset("kmnist", root=tmp_path)
    labels.unlink()
    with pytest.raises(DatasetError, match="misfire data fetch kmnist"):
        load_dataset("kmnist", root=tmp_path)
    assert state(entry, root=tmp_path) == "missing"


def test_folders_are_looked_up_argument_first_then_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISFIRE_DATA", str(tmp_path / "env"))
    assert data_roots(tmp_path / "named") == (tmp_path / "named",)
    assert data_roots() == (tmp_path / "env",)
    monkeypatch.delenv("MISFIRE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_roots() == (tmp_path / "cache" / "misfire" / "data",)


def test_a_file_without_an_address_does_not_advise_to_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        open_file(DataFile("a/b.npz", "0" * 64), name="private", root=tmp_path)
    assert "fetch" not in str(caught.value)
    assert "--data" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"not gzip", "gzip"),
        (gzip.compress(b"\x00\x00\x0d\x01\x00\x00\x00\x01\x05", mtime=0), "unsigned bytes"),
        (gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x05abc", mtime=0), "holds 3"),
        (gzip.compress(b"\x00\x00\x08\x03\x00\x00", mtime=0)[:-6], "gzip"),
        (gzip.compress(b"\x00\x00\x08\x03\x00\x00", mtime=0), "header"),
        (gzip.compress(b"", mtime=0), "unsigned bytes"),
    ],
)
def test_a_malformed_idx_file_is_refused(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=match):
        read_idx(path)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("trafic-lights", "did you mean 'traffic-lights'"),
        ("nonsense", "Known: digits"),
        ("mnist:/somewhere", "takes no path"),
        ("image-folder", "needs a path|did you mean"),
        ("image-folder:", "needs a path"),
        ("dashcam", "no labels"),
    ],
)
def test_a_wrong_name_says_what_would_be_right(name: str, match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        load_dataset(name)


def test_a_folder_without_a_reader_is_told_which_one_to_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="say 'image-folder:/"):
        load_dataset(str(tmp_path))
