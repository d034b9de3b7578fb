"""Defines the configuration of a training run, TOML checked by pydantic.

file --read_train_config--> TrainConfig; options of the command line override it; what neither states is the
task's default (`completed`), or else the table's. Every error names file, line and what was expected.
run.json repeats the whole config, so that a run can be repeated from its own record.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from misfire_runtime.boxes import BoxRule
from misfire_runtime.errors import ConfigError
from misfire_runtime.tables import RelativePath, Table
from misfire_runtime.toml import TomlFile, read_toml


class ModelTable(Table):
    """Configures the task network.

    name: None takes the task's small default; options go to the architecture.
    """

    name: str | None = None
    options: dict[str, Any] = Field(default={})


class SplitTable(Table):
    """Configures shares of the data set's training half; they are scaled to what `field` leaves over.

    train: fits the network. validation: stops it. holdout: losses for the head, which the network never
    fitted. calibration: quantiles and thresholds of the export. field: set aside, as if still out there.
    by_group: keeps a drive or track in one part. limit: maximum number of examples, None for all.
    """

    train: float = Field(default=0.58, gt=0, le=1)
    validation: float = Field(default=0.07, gt=0, le=1)
    holdout: float = Field(default=0.22, gt=0, le=1)
    calibration: float = Field(default=0.13, gt=0, le=1)
    field: float = Field(default=0.0, ge=0, lt=0.9)
    by_group: bool = True
    limit: int | None = Field(default=None, ge=20)

    def fractions(self) -> dict[str, float]:
        """Returns shares by part, summing to 1; `field` only if it is above 0."""
        parts = {name: getattr(self, name) for name in ("train", "validation", "holdout", "calibration")}
        # Shares need not sum to 1: they are ratios of what the field leaves.
        rest = (1 - self.field) / sum(parts.values())
        scaled = {name: value * rest for name, value in parts.items()}
        return {**scaled, "field": self.field} if self.field > 0 else scaled


class TrainingTable(Table):
    """Configures how the network is fitted: AdamW, a short warm-up, then a cosine to zero.

    patience: epochs without a better validation loss before it stops. shift: largest random shift in
    pixels, None a fourteenth of the side. flip: random mirror images (not for targets with a left and a
    right).
    corrupt: share of training images that get a random corruption.
    zoom: largest random change of size; 0.5 enlarges or reduces by a factor of up to 1.5 (detection only).
    mosaic: share of training images that are joined with three others, until the last fifth of the epochs
    (detection only).
    ema: decay of a moving average of the weights over steps, which is validated and kept in place of the
    weights of a single step; 0 keeps those.
    precision: bf16 computes the forward pass in bfloat16; it halves the time on processors with AMX or
    AVX512-BF16 and on GPUs, and takes longer on others. Weights and losses stay fp32.
    """

    epochs: int = Field(default=12, ge=1, le=10_000)
    batch: int = Field(default=128, ge=2, le=65536)
    learning_rate: float = Field(default=2e-3, gt=0, le=10)
    weight_decay: float = Field(default=0.05, ge=0)
    warm_up: float = Field(default=0.1, ge=0, lt=1)
    patience: int = Field(default=5, ge=1)
    shift: int | None = Field(default=None, ge=0)
    flip: bool = False
    corrupt: float = Field(default=0.0, ge=0, le=1)
    zoom: float = Field(default=0.0, ge=0, le=4)
    mosaic: float = Field(default=0.0, ge=0, le=1)
    ema: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "fp32"


class FailureTable(Table):
    """Configures what counts as a failure if the loss is a number: regression, keypoints, segmentation.

    threshold: a loss above it is a failure. None reads it off the clean held-out losses, of which `share`
    are above it. It is never read off the test half.
    """

    threshold: float | None = Field(default=None, ge=0)
    share: float = Field(default=0.2, gt=0, lt=1)


Objective = Literal["learning-loss", "learning-loss-pp", "rank-bce", "log-loss-regression"]


Columns = Literal["all", "beliefs", "answer", "own"]


class HeadTable(Table):
    """Configures how the failure score is fitted; see docs/failure-scores.md. None takes the recipe's value.

    recipe: learning-loss-pp (the default), or a paper's own by name; "none" trains no head.
    layers: the task network's layers to attach to; empty takes the architecture's own.
    top: adds an objective of the top of the list; it helps clean frames and costs unseen corruptions.
    families: corruption library; None takes all, an empty list none. copies: corrupted copies per image.
    strength: share of the correction that the head keeps, 0 to 1; None chooses it, and with it the
    columns, by leaving out groups of the holdout. columns: all, beliefs, answer or own.
    protect: CSV with the column `id` and one more, a group that the score must not tell; None: none.
    protect_weight: of the reversed gradient.
    joint: let the head's gradients into the task network, until after `detach_epoch` (Yoo & Kweon).
    folds: 2 or more fits the head on cross-fitted losses of that many networks instead of a holdout.
    """

    recipe: str = "learning-loss-pp"
    objective: Objective | None = None
    top: Literal["", "partial-auc", "lambda"] | None = None
    layers: tuple[str, ...] = ()
    families: tuple[str, ...] | None = None
    copies: int | None = Field(default=None, ge=0, le=64)
    steps: int | None = Field(default=None, ge=1, le=1_000_000)
    learning_rate: float | None = Field(default=None, gt=0, le=10)
    weight_decay: float | None = Field(default=None, ge=0)
    batch: int | None = Field(default=None, ge=2)
    strength: float | None = Field(default=None, ge=0, le=1)
    columns: Columns | None = None
    protect: RelativePath | None = None
    protect_weight: float = Field(default=1.0, gt=0, le=100)
    joint: bool | None = None
    joint_weight: float = Field(default=1.0, ge=0)
    detach_epoch: int | None = Field(default=None, ge=0)
    folds: int = Field(default=0, ge=0, le=20)


class MixtureTable(Table):
    """Configures how retraining mixes the data set with the fleet's uploads; a first training has none.

    replay: share of an epoch that is old data. max_repeats: how often an epoch shows an upload at most, which
    comes before `replay`. class_balance, slice_balance: 0 shows all equally often, 1 shows all classes or
    slices equally often; what is between is between.
    """

    replay: float = Field(default=0.67, gt=0, lt=1)
    max_repeats: float = Field(default=8.0, ge=1, le=1000)
    class_balance: float = Field(default=0.0, ge=0, le=1)
    slice_balance: float = Field(default=0.0, ge=0, le=1)


class TrainConfig(Table):
    """Holds everything that decides a run.

    data: folder of the published sets; None searches the usual places.
    """

    dataset: str = "digits"
    data: RelativePath | None = None
    seed: int = Field(default=0, ge=0, lt=2**31)
    model: ModelTable = ModelTable()
    split: SplitTable = SplitTable()
    training: TrainingTable = TrainingTable()
    mixture: MixtureTable = MixtureTable()
    failure: FailureTable = FailureTable()
    detection: BoxRule = BoxRule()
    head: HeadTable = HeadTable()

    @model_validator(mode="after")
    def _folds_make_sense(self) -> TrainConfig:
        if self.head.folds == 1:
            raise ValueError("head.folds is 1; expected 0 (a holdout) or at least 2")
        if self.head.protect is not None and (self.head.folds or self.head.joint):
            raise ValueError("head.protect needs a holdout: leave head.folds and head.joint out")
        return self


def read_train_config(path: Path, *, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Returns a config file with overriding options.

    Paths in the file are relative to its folder. overrides: by dotted key, such as {"training.epochs": 3};
    None
    values are left out. Raises ConfigError with file, line, key and what was expected.
    """
    return _checked(read_toml(path), overrides or {})


def parse_train_config(
    values: dict[str, Any], *, overrides: dict[str, Any] | None = None, source: str = "options"
) -> TrainConfig:
    """Checks values that came from no file, and options that override them; `source` names them in errors.

    Raises ConfigError that names the key.
    """
    return _checked(TomlFile(values, "", source), overrides or {})


def completed(config: TrainConfig, defaults: Mapping[str, Any]) -> tuple[TrainConfig, tuple[str, ...]]:
    """Returns a config with defaults, by dotted key, where it states nothing, and what was filled in.

    >>> config = parse_train_config({"training": {"batch": 4}})
    >>> whole, filled = completed(config, {"training.batch": 8, "training.epochs": 20})
    >>> whole.training.batch, whole.training.epochs, filled
    (4, 20, ('epochs',))
    """
    tables: dict[str, Table] = {}
    filled = []
    for dotted, value in defaults.items():
        name, _, key = dotted.partition(".")
        table: Table = tables.get(name, getattr(config, name))
        if key not in table.model_fields_set:
            tables[name] = table.model_copy(update={key: value})
            filled.append(dotted.removeprefix("training."))
    return config.model_copy(update=tables), tuple(filled)


def shown_training(table: TrainingTable) -> str:
    """Returns the values of the table in one line, without what is off.

    >>> shown_training(TrainingTable(zoom=0.4))
    'epochs 12, batch 128, learning rate 0.002, weight decay 0.05, patience 5, zoom 0.4, fp32'
    """
    words = [f"epochs {table.epochs}", f"batch {table.batch}", f"learning rate {table.learning_rate:g}"]
    words += [f"weight decay {table.weight_decay:g}", f"patience {table.patience}"]
    words += [f"shift {table.shift}"] if table.shift is not None else []
    words += ["flip"] if table.flip else []
    words += [f"{name} {getattr(table, name):g}" for name in _SHARES if getattr(table, name)]
    return ", ".join([*words, table.precision])


_SHARES = ("corrupt", "zoom", "mosaic", "ema")


def _checked(file: TomlFile, overrides: dict[str, Any]) -> TrainConfig:
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, dict) else value for key, value in file.values.items()
    }
    for dotted, value in overrides.items():
        if value is None:
            continue
        *tables, key = dotted.split(".")
        place = merged
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{file.name}: {table} must be a table")
        # A path of the command line is relative to the working folder, not to the file.
        place[key] = value.absolute() if isinstance(value, Path) else value
    return file.check(TrainConfig, merged)
