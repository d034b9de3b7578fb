"""`misfire train`: repeatable, killable, resumable; errors that help; runs that know themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.augment import Augmentation
from misfire_train.data import load_dataset
from misfire_train.fit import config_key, spelled_out, train_run
from misfire_train.fitting.averaging import AveragedWeights
from misfire_train.fitting.backbone import CHECKPOINT
from misfire_train.heads import recipe_named
from misfire_train.progress import Reporter
from misfire_train.runs import MODEL_FILE, RECORD, Run, load_run, read_splits, run_splits
from misfire_train.tasks import Variation, get_task
from misfire_train.tasks.answers.planes import shift_planes, zoom_planes
from misfire_train.train_config import TrainConfig, TrainingTable, parse_train_config, read_train_config

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "dataset": "digits",
    "model": {"options": {"width": 4}},
    "split": {"limit": 500},
    "training": {"epochs": 3},
    "head": {"steps": 60, "copies": 1},
}


def small(**overrides: Any) -> TrainConfig:
    return parse_train_config(SMALL, overrides=overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_run(small(), out=tmp_path_factory.mktemp("runs") / "run", command="misfire train")


def test_a_run_holds_everything_needed_to_repeat_it(run: Run, tmp_path: Path) -> None:
    record = run.record
    assert (
        record.versions["torch"] == torch.__version__.split("+")[0]
        or record.versions["torch"] == torch.__version__
    )
    assert record.dataset.sha256 and record.dataset.counts["train"] > 200
    again = train_run(TrainConfig.model_validate(record.config), out=tmp_path / "again")
    assert again.record.files == record.files
    assert again.record.run_id == record.run_id


def test_a_loaded_run_is_frozen_and_scores(run: Run) -> None:
    loaded = load_run(run.path)
    assert not any(parameter.requires_grad for parameter in loaded.probe.parameters())
    assert not loaded.model.training
    digits = load_dataset("digits")
    images = digits.test.batch(range(4), loaded.contract)
    assert loaded.head is not None
    assert loaded.head(loaded.probe(images)).shape == (4,)
    assert loaded.head.name == "learning_loss_pp"


def test_splits_are_the_ones_trained_on_and_disjoint(run: Run) -> None:
    digits = load_dataset("digits")
    parts = run_splits(run, digits)
    assert set(parts) == {"train", "validation", "holdout", "calibration", "test"}
    ids = [set(part.ids) for part in parts.values()]
    assert sum(map(len, ids)) == len(set.union(*ids))
    assert {name: len(part) for name, part in parts.items()} == run.record.dataset.counts


def test_the_field_is_set_aside(tmp_path: Path) -> None:
    run = train_run(
        small(**{"split.field": 0.4, "head.recipe": "none", "training.epochs": 1}), out=tmp_path / "r"
    )
    parts = run_splits(run, load_dataset("digits"))
    assert abs(len(parts["field"]) - 200) <= 6
    assert run.head is None


def test_splits_of_another_data_set_are_refused(run: Run) -> None:
    other = load_dataset("digits")
    changed = type(other)(**{**other.__dict__, "sha256": "0" * 64})
    with pytest.raises(ConfigError, match="was trained on digits"):
        run_splits(run, changed)


def test_changed_weights_are_refused(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in run.path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    data = bytearray((copy / MODEL_FILE).read_bytes())
    data[-1] ^= 1
    (copy / MODEL_FILE).write_bytes(bytes(data))
    with pytest.raises(ConfigError, match="sha256 differs"):
        load_run(copy)
    (copy / MODEL_FILE).unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing"):
        load_run(copy)


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a finished run"):
        load_run(tmp_path)
    (tmp_path / RECORD).write_text("{}")
    with pytest.raises(ConfigError, match="not a run's record"):
        load_run(tmp_path)


def test_a_finished_run_is_not_overwritten(run: Run) -> None:
    before = (run.path / RECORD).read_bytes()
    with pytest.raises(ConfigError, match="finished run"):
        train_run(small(), out=run.path)
    assert train_run(small(), out=run.path, resume=True).record.run_id == run.record.run_id
    with pytest.raises(ConfigError, match="another configuration"):
        train_run(small(seed=9), out=run.path, resume=True)
    assert (run.path / RECORD).read_bytes() == before


def test_killed_in_mid_training_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    config = {**SMALL, "training": {"epochs": 6, "patience": 6}}
    whole = train_run(parse_train_config(config), out=tmp_path / "whole")
    file = tmp_path / "config.toml"
    file.write_text(
        'dataset = "digits"\n[model.options]\nwidth = 4\n[split]\nlimit = 500\n'
        "[training]\nepochs = 6\npatience = 6\n[head]\nsteps = 60\ncopies = 1\n"
    )
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "misfire_runtime.cli", "train", "--out", str(out), "--config", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    ) as process:
        deadline = time.monotonic() + 120
        while not (out / CHECKPOINT).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert (out / CHECKPOINT).exists() and not (out / RECORD).exists()
    with pytest.raises(ConfigError, match="interrupted run"):
        train_run(parse_train_config(config), out=out)
    with pytest.raises(ConfigError, match="interrupted: continue with --resume"):
        load_run(out)
    done = subprocess.run(
        [*command, "--resume", "--json"], capture_output=True, text=True, check=True, env=environment
    )
    assert "resumed after epoch" in done.stderr
    assert json.loads(done.stdout)["run_id"] == whole.record.run_id
    assert load_run(out).record.files == whole.record.files
    assert not (out / CHECKPOINT).exists()


def test_averaged_weights_are_kept_and_resumed_from(tmp_path: Path) -> None:
    class Interrupted(Reporter):
        def line(self, text: str) -> None:
            if text.startswith("epoch 2/3"):
                raise KeyboardInterrupt

    config = small(**{"training.ema": 0.9, "head.recipe": "none"})
    whole = train_run(config, out=tmp_path / "whole")
    assert config_key(small(**{"head.recipe": "none"})) != config_key(config)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, out=tmp_path / "two", reporter=Interrupted(quiet=True))
    assert (tmp_path / "two" / CHECKPOINT).exists()
    resumed = train_run(config, out=tmp_path / "two", resume=True)
    assert resumed.record.files == whole.record.files


def test_an_average_of_weights_follows_slowly_and_gives_the_weights_back() -> None:
    model = torch.nn.BatchNorm1d(2)
    average = AveragedWeights(model, decay=0.9)
    for step in range(1, 200):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update()
    with average.in_use():
        # A decay of 0.9 is nine steps behind a weight that grows by one.
        assert model.weight.tolist() == pytest.approx([190.0, 190.0], abs=1e-3)
        assert int(model.num_batches_tracked) == 0
    assert model.weight.tolist() == [199.0, 199.0]


def test_a_checkpoint_of_other_options_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    torch_file = small()
    train_run(torch_file, out=tmp_path / "other")
    (out / CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match="not a checkpoint"):
        train_run(small(), out=out, resume=True)


def test_training_stops_early(tmp_path: Path) -> None:
    config = small(
        **{
            "training.epochs": 40,
            "training.patience": 1,
            "training.learning_rate": 0.02,
            "head.recipe": "none",
        }
    )
    run = train_run(config, out=tmp_path / "run")
    assert run.record.metrics["epochs"] < 40
    assert run.record.metrics["best_epoch"] == run.record.metrics["epochs"] - 1


def test_half_precision_learns_as_much_and_keeps_whole_weights(run: Run, tmp_path: Path) -> None:
    half = train_run(small(**{"training.precision": "bf16", "head.recipe": "none"}), out=tmp_path / "run")
    assert {tensor.dtype for tensor in half.model.parameters()} == {torch.float32}
    wanted = run.record.metrics["test_accuracy"]
    assert half.record.metrics["test_accuracy"] == pytest.approx(wanted, abs=0.1)


def test_a_loss_that_explodes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not finite"):
        train_run(
            small(**{"training.learning_rate": 10.0, "training.warm_up": 0.0, "training.weight_decay": 1e30}),
            out=tmp_path / "r",
        )


def test_config_errors_name_file_line_and_key(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('dataset = "digits"\n[training]\nepochs = "many"\nlearning_rte = 1\n')
    with pytest.raises(ConfigError) as caught:
        read_train_config(file)
    assert f"{file}:3: training.epochs" in str(caught.value)
    assert f"{file}:4: training.learning_rte: unknown key" in str(caught.value)
    file.write_text("dataset = \n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_train_config(file)
    with pytest.raises(ConfigError, match="No such file"):
        read_train_config(tmp_path / "absent.toml")


def test_the_data_folder_of_a_file_is_beside_it_and_that_of_an_option_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    file = tmp_path / "runs" / "c.toml"
    file.write_text('data = "sets"\n')
    monkeypatch.chdir(tmp_path)
    assert read_train_config(file).data == tmp_path / "runs" / "sets"
    assert read_train_config(file, overrides={"data": Path("mine")}).data == tmp_path / "mine"
    assert parse_train_config({"data": "sets"}).data == Path("sets")


def test_options_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("seed = 3\n[training]\nepochs = 7\n")
    config = read_train_config(file, overrides={"training.epochs": 2, "split.field": 0.5, "model.name": None})
    assert (config.seed, config.training.epochs, config.split.field) == (3, 2, 0.5)
    assert sum(config.split.fractions().values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dataset": "no-such"}, "no-such"),
        ({"model.name": "resnet-huge"}, "resnet-huge"),
        ({"head.recipe": "magic"}, "no head recipe 'magic'"),
        ({"head.layers": ["layer9"]}, "layer9"),
        ({"head.families": ["hail"]}, "hail"),
    ],
)
def test_wrong_names_are_named(overrides: dict[str, Any], message: str, tmp_path: Path) -> None:
    from misfire_runtime.errors import MisfireError

    with pytest.raises(MisfireError, match=message):
        train_run(small(**{"training.epochs": 1, **overrides}), out=tmp_path / "run")


def test_published_recipes_are_valid() -> None:
    folder = Path(__file__).parents[2] / "train" / "recipes"
    recipes = sorted(folder.glob("*.toml"))
    assert len(recipes) >= 4
    for recipe in recipes:
        read_train_config(recipe)


def test_shifts_move_targets_along() -> None:
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    moved = shift_planes(images, torch.tensor([[1], [0]]), pad=1, mode="replicate")
    assert torch.equal(moved[0, 0, 1:], images[0, 0, :-1])
    same = torch.tensor([False])
    targets = torch.tensor([[[1.0, 2.0, 1.0]]])
    by = Variation(same, torch.tensor([2]), torch.tensor([-1]), limit=2, width=8, height=8)
    assert get_task("keypoints").move(targets, by)[0, 0].tolist() == [0.0, 4.0, 1.0]
    masks = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4)
    by = Variation(same, torch.tensor([1]), torch.tensor([0]), limit=1, width=4, height=4)
    after = get_task("segmentation").move(masks, by)
    assert after[0, 0].tolist() == [255] * 4 and torch.equal(after[0, 1:], masks[0, :-1])
    by = Variation(~same, torch.tensor([0]), torch.tensor([0]), limit=0, width=4, height=4)
    assert torch.equal(get_task("segmentation").move(masks, by), masks.flip(2))


def test_a_zoom_enlarges_pictures_and_boxes_about_the_same_point() -> None:
    image = torch.zeros(1, 1, 32, 48)
    image[:, :, 8:16, 12:20] = 1.0
    zoom = torch.tensor([[2.0, 12.0, 4.0]])
    still = torch.tensor([0])
    by = Variation(torch.tensor([False]), still, still, limit=0, width=48, height=32, zoom=zoom)
    box = get_task("detection").move(torch.tensor([[[12.0, 8.0, 20.0, 16.0, 0.0, 0.0]]]), by)[0, 0]
    assert box.tolist() == [12.0, 12.0, 28.0, 28.0, 0.0, 0.0]
    larger = zoom_planes(image, zoom)[0, 0]
    inside = torch.zeros_like(larger, dtype=torch.bool)
    inside[12:28, 12:28] = True
    assert bool((larger[13:27, 13:27] == 1).all()) and float(larger[~inside].sum()) < 0.2 * inside.sum()


def test_what_cannot_follow_a_zoom_is_refused_and_boxes_can() -> None:
    contract = InputContract(height=32, width=48)
    with pytest.raises(ConfigError, match="cannot be enlarged"):
        Augmentation.of(TrainingTable(zoom=0.5), task=get_task("segmentation"), contract=contract)
    augmentation = Augmentation.of(TrainingTable(zoom=0.5), task=get_task("detection"), contract=contract)
    drawn = augmentation._draw(1000, np.random.default_rng(0)).zoom
    assert drawn is not None
    factor, x, y = drawn.unbind(1)
    assert 1 / 1.5 <= factor.min() < 0.7 and 1.45 < factor.max() <= 1.5
    assert x.max() <= 48 and y.max() <= 32


def test_mirror_images_are_refused_where_left_is_not_right() -> None:
    digits = load_dataset("digits")
    with pytest.raises(ConfigError, match="left and a right"):
        Augmentation.of(TrainingTable(flip=True), task=get_task("keypoints"), contract=digits.contract)


def test_augmented_batches_repeat_with_their_generator() -> None:
    digits = load_dataset("digits")
    augmentation = Augmentation(get_task("classification"), digits.contract, shift=1, corrupt=0.5, flip=True)
    batches = [
        augmentation.batch(digits.train, np.arange(20), np.random.default_rng([1, 2]))[0] for _ in range(2)
    ]
    assert torch.equal(*batches)
    plain = digits.train.batch(np.arange(20), digits.contract)
    assert not torch.equal(batches[0], plain)


def test_ids_of_every_part_are_written(run: Run) -> None:
    ids = read_splits(run.path)
    assert get_task(run.record.task).name == "classification"
    assert {name: len(part) for name, part in ids.items()} == {
        name: count for name, count in run.record.dataset.counts.items() if name != "test"
    }


def test_cross_fitted_heads_need_no_holdout(tmp_path: Path) -> None:
    run = train_run(small(**{"head.folds": 2, "training.epochs": 2}), out=tmp_path / "run")
    report = run.record.metrics["head"]
    pool = run.record.dataset.counts["train"] + run.record.dataset.counts["holdout"]
    assert report["samples"] == 2 * pool  # every image once clean and once corrupted
    assert "holdout_accuracy" not in run.record.metrics
    assert run.head is not None and run.head.options["sees_embedding"] is False
    with pytest.raises(ConfigError, match="feature maps, which differ"):
        train_run(
            small(**{"head.folds": 2, "head.recipe": "rank-bce", "training.epochs": 1}), out=tmp_path / "r2"
        )
    with pytest.raises(ConfigError, match="folds"):
        small(**{"head.folds": 1})


def test_the_papers_recipe_trains_along_and_is_checked_on_held_out_images(tmp_path: Path) -> None:
    run = train_run(small(**{"head.recipe": "learning-loss"}), out=tmp_path / "run")
    alone = train_run(small(**{"head.recipe": "none"}), out=tmp_path / "alone")
    assert run.record.files[MODEL_FILE] != alone.record.files[MODEL_FILE]  # its gradients reached the network
    frozen = train_run(small(), out=tmp_path / "frozen")
    assert frozen.record.files[MODEL_FILE] == alone.record.files[MODEL_FILE]  # the default's never do
    assert run.record.metrics["head"]["pair_accuracy"] >= 0


def test_a_run_records_what_its_recipe_said_so_that_a_refit_does_the_same() -> None:
    config = parse_train_config({"head": {"recipe": "learning-loss-pp", "steps": 11}})
    told, recipe = spelled_out(config), recipe_named("learning-loss-pp")
    assert told.head.steps == 11 and told.head.copies == recipe.copies
    assert recipe.with_table(told.head) == recipe.with_table(config.head)
    assert config_key(told) == config_key(config)
    none = parse_train_config({"head": {"recipe": "none"}})
    assert spelled_out(none) == none
