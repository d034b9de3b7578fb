"""A new task is one class in one file, with a model and a reader: it trains, is judged and exported.

The task of this file finds bright spots, of which a frame has one to three. So its targets are ragged, they
move and flip with the picture, its losses belong to cells of a map, and its free score comes with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from misfire_export.options import Options as ExportOptions
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames, frames_of_run
from misfire_export.sources.module import export_module_bundle
from misfire_export.sources.run import export_run
from misfire_runtime.bundle import Bundle
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import Image, InputContract
from misfire_train.attaching import attach
from misfire_train.augment import Augmentation
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.data.images import ImageArray
from misfire_train.data.loading import READERS
from misfire_train.data.readers.options import Options
from misfire_train.drawing import Drawing, Legend, data_url
from misfire_train.fit import train_run
from misfire_train.judge.run_judging import Judging, judge_run
from misfire_train.models import MODELS
from misfire_train.models.building import Architecture
from misfire_train.runs import Run, load_run
from misfire_train.scores import ScoreError, build, names_for
from misfire_train.signals import Score, Signals
from misfire_train.tasks import LabelPlace, Task, as_task, get_task, register_task, registry
from misfire_train.train_config import TrainConfig, parse_train_config

pytestmark = pytest.mark.slow

SIDE, CELL = 16, 4
CELLS = SIDE // CELL

# The task: what would be `tasks/spots.py`.


class Doubt(Score):
    """The largest entropy of a cell."""

    name = "spot_doubt"
    definition = "max over cells of the binary entropy"
    free = True

    def forward(self, signals: Signals) -> Tensor:
        z = signals.outputs.flatten(1)
        p = torch.sigmoid(z)
        return (functional.softplus(z) - z * p).amax(1)


class Spots(Task):
    """Which cells of a map hold a bright spot. outputs: logits [N,1,h,w].  targets: N arrays [k,2]."""

    name = "spots"
    output_name = "spot_logits"
    default_model = "spot-net"
    ranks, looks = (4, 3), "[N,1,h,w] logits and [N,M,2] places"
    by_frame = False
    mirrors = True
    default_free_score = "spot_doubt"
    default_scores = ("spot_doubt",)
    own_scores = (Doubt,)

    def parse_label(self, text: str, place: LabelPlace) -> NDArray[Any]:
        try:
            found = [[float(v) for v in word.split(",")] for word in text.split()]
            return np.array(found, np.float32).reshape(-1, 2)
        except ValueError:
            raise ConfigError(f"{text!r} is not a list of x,y") from None

    def stack(self, targets: Sequence[NDArray[Any]]) -> NDArray[Any]:
        rows = np.empty(len(targets), object)
        rows[:] = list(targets)
        return rows

    def collate(self, targets: Any) -> Tensor:
        if isinstance(targets, Tensor):
            return targets
        padded = np.full((len(targets), max((len(row) for row in targets), default=0), 2), np.nan, np.float32)
        for row, spots in zip(padded, targets, strict=True):
            row[: len(spots)] = spots
        return torch.from_numpy(padded)

    def move(self, targets: Tensor, variation: Any) -> Tensor:
        x, y = targets.unbind(2)
        x = torch.where(variation.mirrored[:, None], variation.width - 1 - x, x)
        return torch.stack((x + variation.right[:, None], y + variation.down[:, None]), 2)

    def unit_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = functional.binary_cross_entropy_with_logits(
            outputs, cells_of(outputs, targets), reduction="none"
        )
        return losses.flatten(1)

    def sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.unit_losses(outputs, targets).mean(1)

    @property
    def answer_decides(self) -> bool:
        return self.failure_threshold is None

    def wrong(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs > 0) != (cells_of(outputs, targets) > 0)).flatten(1).any(1)

    def unit_statistics(self, outputs: Tensor) -> Tensor:
        z = outputs.flatten(1)
        return torch.stack((z, z.abs()), 2)

    def bases(self) -> Mapping[str, Any]:
        return {"doubt": lambda outputs: -outputs.flatten(1).abs()}

    def slices(self, targets: NDArray[Any], classes: Sequence[str]) -> dict[str, NDArray[Any]]:
        return {"spots": np.array([str(len(row)) for row in targets])}

    def draw(
        self,
        image: Image,
        outputs: Tensor,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
    ) -> Drawing:
        return Drawing(
            data_url(image), truth=f"{len(target)} spots", predicted=f"{int((outputs > 0).sum())} cells"
        )

    def legend(self, classes: Sequence[str]) -> Legend | None:
        return Legend("Below each: how many spots there are, and in how many cells.", drawn=False)


def cells_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns 1 for cells that hold a spot, as outputs [N,1,h,w]; spots outside the picture count nowhere."""
    wanted = torch.zeros_like(outputs)
    places = torch.nan_to_num(targets, nan=-1.0).div(CELL).floor().long()
    for frame, spots in enumerate(places.tolist()):
        for x, y in spots:
            if 0 <= x < outputs.shape[3] and 0 <= y < outputs.shape[2]:
                wanted[frame, 0, y, x] = 1
    return wanted


# Its model and its reader.


def spot_net(outputs: int, *, channels: int, width: int = 8) -> nn.Module:
    net = nn.Sequential()
    net.add_module("body", nn.Conv2d(channels, width, CELL, stride=CELL))
    net.add_module("act", nn.ReLU())
    net.add_module("head", nn.Conv2d(width, outputs, 1))
    return net


def frames(count: int, *, seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    images, targets = rng.integers(0, 90, (count, SIDE, SIDE), np.uint8), []
    for image in images:
        spots = rng.integers(0, SIDE, (int(rng.integers(1, 4)), 2))
        for x, y in spots:
            image[y, x] = rng.integers(70, 255)  # some are hard to tell from noise
        targets.append(spots.astype(np.float32))
    ids = tuple(f"{seed}-{i}" for i in range(count))
    return Examples(ImageArray(images), Spots().stack(targets), ids, ids)


def read_spots(path: Path, options: Options) -> Dataset:
    """The reader of `spots:PATH`: the file holds a seed."""
    seed = int(path.read_text())
    return Dataset(
        name="spots",
        task="spots",
        classes=("spot",),
        contract=InputContract(height=SIDE, width=SIDE, color="gray"),
        train=frames(400, seed=seed),
        test=frames(80, seed=seed + 1),
        sha256=f"{seed:064x}",
        licence="none",
    )


@pytest.fixture(scope="module")
def known() -> Iterator[None]:
    """The task is registered, with its model and its reader."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_TASKS", dict(registry._TASKS))
        register_task(Spots())
        patch.setitem(
            MODELS, "spot-net", Architecture(spot_net, ("spots",), "head", ("body",), "finds spots")
        )
        patch.setitem(READERS, "spots", (read_spots, ()))
        yield


@pytest.fixture(scope="module")
def trained(known: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Dataset]:
    folder = tmp_path_factory.mktemp("spots")
    (folder / "seed").write_text("7")
    run = train_run(config_of(folder), out=folder / "run")
    return run, load_dataset(f"spots:{folder / 'seed'}")


def config_of(folder: Path) -> TrainConfig:
    return parse_train_config(
        {
            "dataset": f"spots:{folder / 'seed'}",
            "seed": 1,
            "training": {"epochs": 4, "batch": 32, "learning_rate": 0.02, "flip": True, "shift": 2},
            "split": {"train": 0.4, "validation": 0.1, "holdout": 0.25, "calibration": 0.25},
            "head": {"steps": 40, "copies": 1},
        }
    )


def test_a_registered_task_trains_by_name_and_its_run_loads_again(trained: tuple[Run, Dataset]) -> None:
    run, _ = trained
    assert run.record.task == "spots" and run.record.model.name == "spot-net"
    again = load_run(run.path)
    assert isinstance(again.task, Spots) and again.task.answer_decides
    assert run.record.failure is None  # the answer itself decides
    head = again.record.head
    assert head is not None and head.options["task"] == "spots" and head.options["base"] == "doubt"
    assert run.record.metrics["head"]["units"] == CELLS * CELLS
    history = run.record.metrics["history"]
    assert history[-1]["validation_loss"] < history[0]["validation_loss"]


def test_the_judge_ranks_its_own_free_score_and_draws_its_frames(trained: tuple[Run, Dataset]) -> None:
    run, dataset = trained
    judging = Judging(scores=("all",), shifts=("noise",), severity=3, replicates=20, refit=False)
    report, _ = judge_run(run, dataset, judging)
    rows = {row.name: row.free for row in report.condition("clean").scores}
    assert rows["spot_doubt"] and not rows["learning_loss_pp"] and "knn_distance" in rows
    assert {found.name for found in report.slices} >= {"spots"}
    assert report.legend is not None and "spots" in report.legend.text
    assert report.frames and all(frame.truth.endswith("spots") for frame in report.frames)


def test_a_bundle_of_it_runs_on_a_vehicle(trained: tuple[Run, Dataset], tmp_path: Path) -> None:
    run, dataset = trained
    options = ExportOptions(name="spots", version="1.0.0")
    bundle = export_run(run, frames_of_run(run, dataset), out=tmp_path / "bundle", options=options)
    manifest = Bundle.open(bundle.path).manifest
    assert manifest.task == "custom"  # released vehicles know no other name for it
    assert [score.name for score in manifest.scores] == ["learning_loss_pp", "spot_doubt"]
    kinds = {output.name: output.kind for output in manifest.outputs}
    assert kinds["spot_logits"] == "other"
    scorer = Scorer.load(bundle)
    scored = scorer.score(np.asarray(dataset.test.images[0]))
    assert set(scored.scores) == {"learning_loss_pp", "spot_doubt"}
    scorer.close()


def test_an_unregistered_task_serves_whoever_holds_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    train, holdout, calibration = frames(120, seed=1), frames(120, seed=2), frames(120, seed=3)
    contract = InputContract(height=SIDE, width=SIDE, color="gray")
    model = spot_net(1, channels=1)
    attached = attach(model, layers=["body"], last_layer="head", task=Spots(), steps=20)
    report = attached.fit(train=train, holdout=holdout, contract=contract, copies=1)
    assert report.units == CELLS * CELLS and report.base == "doubt"
    bundle = export_module_bundle(
        model,
        Frames(calibration, fit=train, holdout=holdout, classes=("spot",)),
        ModelFacts(contract, task=Spots(), last_layer="head"),
        out=tmp_path / "bundle",
        options=ExportOptions(name="spots", version="1.0.0"),
    )
    assert bundle.manifest.task == "custom"
    assert [score.name for score in bundle.manifest.scores] == ["spot_doubt"]


def test_scores_come_from_the_task_and_from_the_form_of_its_outputs() -> None:
    assert names_for(Spots()) == ["spot_doubt", "knn_distance", "mahalanobis"]
    assert [score.name for score in build(["spot_doubt"], task=Spots())] == ["spot_doubt"]
    with pytest.raises(ScoreError, match="not spots"):
        build(["msp"], task=Spots())

    class Sign(Task):
        name, form, by_class = "sign", "classification", True

        def sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return functional.cross_entropy(outputs, targets, reduction="none")

    assert names_for(Sign(), free=True) == names_for("classification", free=True)


def test_ragged_targets_are_padded_and_move_with_the_picture() -> None:
    examples = frames(32, seed=4)
    task, contract = Spots(), InputContract(height=SIDE, width=SIDE, color="gray")
    every = task.collate(examples.targets)
    assert every.shape == (32, 3, 2) and int(every.isnan().sum()) == 2 * sum(
        3 - len(t) for t in examples.targets
    )
    plain = Augmentation(task, contract)
    varied = Augmentation(task, contract, shift=3, flip=True)
    positions = np.arange(32)
    images, targets = varied.batch(examples, positions, np.random.default_rng(0))
    still, _ = plain.batch(examples, positions, np.random.default_rng(0))
    moved = 0
    for frame in range(32):
        for (x, y), (was_x, was_y) in zip(targets[frame].tolist(), every[frame].tolist(), strict=True):
            if 0 <= x < SIDE and 0 <= y < SIDE:
                moved += (x, y) != (was_x, was_y)
                assert images[frame, 0, int(y), int(x)] == still[frame, 0, int(was_y), int(was_x)]
    assert moved > 20


def test_labels_that_come_back_are_read_by_the_task() -> None:
    place = LabelPlace(("spot",), InputContract(height=SIDE, width=SIDE), folder=Path())
    assert Spots().parse_label("1,2 3,4", place).tolist() == [[1, 2], [3, 4]]
    assert Spots().parse_label("", place).shape == (0, 2)
    with pytest.raises(ConfigError, match="x,y"):
        Spots().parse_label("here", place)


def test_a_name_is_taken_once(known: None) -> None:
    assert get_task("spots") is as_task("spots")
    for name in ("spots", "classification", "custom", ""):
        task = Spots()
        task.name = name
        with pytest.raises(ConfigError, match="empty or taken"):
            register_task(task)
