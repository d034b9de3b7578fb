"""Reads and writes a training run: its configuration, its results, and the weights to load it again.

    RUN/run.json            RunRecord: config, versions, seeds, data, metrics, sha256 of the files below
    RUN/model.safetensors   the task network
    RUN/head.safetensors    its failure score, if one was trained
    RUN/splits.json         ids of every part: train, validation, holdout, calibration, field; fold-K of folds
    RUN/folds.safetensors   the folds' networks, of a head that was fitted on cross-fitted losses

run.json is written last and whole: a folder without it is a run that did not finish.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from misfire_runtime.bundle import sha256_file
from misfire_runtime.errors import ConfigError
from misfire_runtime.files import write_durably
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Dataset, Examples
from misfire_train.heads import build_head_from_state
from misfire_train.models import BuiltModel, build_model
from misfire_train.signals import Probe, Score
from misfire_train.tasks import Task, get_task
from misfire_train.train_config import TrainConfig

RECORD = "run.json"
MODEL_FILE = "model.safetensors"
HEAD_FILE = "head.safetensors"
SPLITS_FILE = "splits.json"
FOLDS_FILE = "folds.safetensors"
SCHEMA_VERSION = 1
PARTS = ("train", "validation", "holdout", "calibration", "field")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class DatasetRecord(_Part):
    """Records what was trained on.

    counts: examples per part. uploads: from the fleet, beside the data set. notes: what its reader left out
    or
    decided.
    """

    name: str
    sha256: str
    licence: str = ""
    counts: dict[str, int] = {}
    uploads: dict[str, int] = {}
    notes: tuple[str, ...] = ()


class ModelRecord(_Part):
    """Records what is needed to build the network again."""

    name: str
    options: dict[str, Any] = {}
    outputs: int


class HeadRecord(_Part):
    """Records what is needed to build the head again.

    options: its shapes and the free score that it corrects.
    """

    recipe: str
    options: dict[str, Any] = {}


class FailureRecord(_Part):
    """Records the loss above which a sample has failed, and in words the source of that number."""

    threshold: float
    source: str


class RunRecord(_Part):
    """Is run.json: everything needed to repeat and to use a run. metrics: numbers by name, all measured.

    failure: None if the task itself defines failures.
    snapshot: SHA-256 of the fleet's snapshot that its uploads are from.
    """

    schema_version: int = SCHEMA_VERSION
    run_id: str
    parent_run_id: str | None = None
    snapshot: str | None = None
    created_at: str
    command: str
    config: dict[str, Any]
    versions: dict[str, str]
    git_commit: str | None = None
    seeds: dict[str, int]
    dataset: DatasetRecord
    model: ModelRecord
    contract: InputContract
    task: str
    classes: tuple[str, ...]
    last_layer: str
    feature_layers: tuple[str, ...]
    head: HeadRecord | None = None
    failure: FailureRecord | None = None
    metrics: dict[str, Any] = {}
    warnings: tuple[str, ...] = ()
    files: dict[str, str] = {}


@dataclass(frozen=True)
class Run:
    """Holds a loaded run.

    probe: eval mode, frozen. head: the learned failure score, None if there is none.
    """

    path: Path
    record: RunRecord
    probe: Probe
    head: Score | None

    @property
    def model(self) -> nn.Module:
        """Returns the task network."""
        return self.probe.model

    @property
    def task(self) -> Task:
        """Returns its task, with the run's own failure threshold if it has one."""
        record = self.record
        task = get_task(record.task).configured(self.config, record.classes)
        failure = record.failure
        return task if failure is None else task.with_threshold(failure.threshold)

    @property
    def config(self) -> TrainConfig:
        """Returns the configuration that it was trained with."""
        return TrainConfig.model_validate(self.record.config)

    @property
    def contract(self) -> InputContract:
        """Returns the input that the network expects."""
        return self.record.contract


def rebuild_model(record: RunRecord) -> BuiltModel:
    """Returns the run's network with fresh weights."""
    return build_model(
        record.model.name,
        task=record.task,
        outputs=record.model.outputs,
        channels=record.contract.channels,
        **record.model.options,
    )


def read_record(path: Path) -> RunRecord:
    """Returns run.json of a run folder.

    Raises ConfigError if it is missing, malformed or of another schema.
    """
    file = Path(path) / RECORD
    if not file.is_file():
        hint = (
            "; training was interrupted: continue with --resume"
            if (Path(path) / "checkpoint.safetensors").is_file()
            else ""
        )
        raise ConfigError(f"{path} is not a finished run: it has no {RECORD}{hint}")
    try:
        record = RunRecord.model_validate_json(file.read_bytes())
    except (ValidationError, ValueError) as error:
        raise ConfigError(f"{file} is not a run's record: {str(error).splitlines()[0]}") from error
    if record.schema_version != SCHEMA_VERSION:
        raise ConfigError(f"{file} has schema {record.schema_version}; this version reads {SCHEMA_VERSION}")
    return record


def load_run(path: Path) -> Run:
    """Returns the run, its weights verified by checksum, in eval mode and frozen.

    Args:
        path: a run's folder.

    Raises:
        ConfigError: a file is missing, changed, or does not fit; it names the file.
    """
    path = Path(path)
    record = read_record(path)
    for name, expected in record.files.items():
        file = path / name
        if not file.is_file():
            raise ConfigError(f"{path}: {name} is missing")
        # Before any weight is read: changed weights would otherwise only show as worse scores.
        if sha256_file(file) != expected:
            raise ConfigError(f"{file} is not what {RECORD} says (sha256 differs); the run was changed")
    built = rebuild_model(record)
    _load_into(built.module, read_tensors(path / MODEL_FILE), where=path / MODEL_FILE)
    probe = Probe(built.module, last_layer=record.last_layer, features=record.feature_layers)
    probe.eval().requires_grad_(False)
    head = None
    if record.head is not None:
        state = read_tensors(path / HEAD_FILE)
        head = build_head_from_state(record.head.recipe, record.head.options, state)
        head.eval().requires_grad_(False)
    return Run(path, record, probe, head)


def run_splits(run: Run, dataset: Dataset) -> dict[str, Examples]:
    """Returns exactly the examples that were train, validation, holdout, calibration and field, and "test".

    `field` is present only if some were set aside. Raises ConfigError on another data set, DatasetError if an
    example is gone.
    """
    if dataset.name != run.record.dataset.name or dataset.sha256 != run.record.dataset.sha256:
        raise ConfigError(
            f"{run.path} was trained on {run.record.dataset.name} ({run.record.dataset.sha256[:12]}), "
            f"this is {dataset.name} ({dataset.sha256[:12]})"
        )
    if dataset.contract != run.contract:
        raise ConfigError(
            f"{run.path} was trained on {run.contract.width}x{run.contract.height} {run.contract.color}, "
            f"{dataset.name} was read as {dataset.contract.width}x{dataset.contract.height} "
            f"{dataset.contract.color}: name it with the options that it was trained with"
        )
    if dataset.classes != run.record.classes:
        raise ConfigError(
            f"{run.path} was trained on the classes {', '.join(run.record.classes)}; "
            f"{dataset.name} was read with {', '.join(dataset.classes)}"
        )
    ids = read_splits(run.path)
    parts = {name: dataset.train.take(dataset.train.positions(ids[name])) for name in PARTS if ids.get(name)}
    return {**parts, "test": dataset.test}


def read_splits(path: Path) -> dict[str, list[str]]:
    """Returns ids by part."""
    try:
        loaded = json.loads((path / SPLITS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path / SPLITS_FILE} cannot be read: {error}") from error
    return {str(name): [str(i) for i in ids] for name, ids in loaded.items()}


def write_splits(path: Path, ids: Mapping[str, tuple[str, ...]]) -> None:
    """Writes ids by part, whole or not at all."""
    write_durably(path / SPLITS_FILE, json.dumps({name: list(part) for name, part in ids.items()}).encode())


def write_run(
    path: Path,
    record: RunRecord,
    *,
    model: nn.Module,
    head: nn.Module | None,
    splits: Mapping[str, tuple[str, ...]],
    folds: Sequence[Mapping[str, Tensor]] = (),
) -> RunRecord:
    """Writes all files of a run, the record last; returns it with run_id and checksums set.

    folds: weights of the folds' networks, whose ids `splits` has as fold-0, fold-1, ...
    """
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / MODEL_FILE, model.state_dict())
    if head is not None:
        write_tensors(path / HEAD_FILE, head.state_dict())
    else:
        # A run that is written over an older one must not keep the older head.
        (path / HEAD_FILE).unlink(missing_ok=True)
    if folds:
        write_tensors(path / FOLDS_FILE, _numbered(folds))
    else:
        (path / FOLDS_FILE).unlink(missing_ok=True)
    write_splits(path, splits)
    names = [MODEL_FILE, SPLITS_FILE]
    names += [HEAD_FILE] if head is not None else []
    names += [FOLDS_FILE] if folds else []
    files = {name: sha256_file(path / name) for name in names}
    # The id is a hash of content: equal weights, splits, configuration and parent give an equal id.
    identity = hashlib.sha256(
        json.dumps([files, record.config, record.parent_run_id], sort_keys=True).encode()
    )
    finished = record.model_copy(update={"files": files, "run_id": identity.hexdigest()[:16]})
    # Last: a folder without this file is no finished run.
    write_durably(path / RECORD, (finished.model_dump_json(indent=2) + "\n").encode())
    return finished


def fold_ids(run: Run) -> list[list[str]]:
    """Returns the ids of each fold of a run's cross-fitting; none without."""
    ids = read_splits(run.path)
    return [ids[f"fold-{k}"] for k in range(len(ids)) if f"fold-{k}" in ids]


def fold_weights(run: Run) -> list[dict[str, Tensor]]:
    """Returns the weights of each fold's network; none if the run kept none."""
    if FOLDS_FILE not in run.record.files:
        return []
    weights: dict[int, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(run.path / FOLDS_FILE).items():
        number, _, rest = name.partition(".")
        weights.setdefault(int(number), {})[rest] = tensor
    return [weights[number] for number in sorted(weights)]


def _numbered(folds: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{k}.{name}": tensor for k, weights in enumerate(folds) for name, tensor in weights.items()}


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A clone, because safetensors refuses tensors that share memory, such as tied weights.
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_durably(path, save(plain, metadata))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors in a file. Raises ConfigError if it is missing or broken."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read as weights: {error}") from error
    return tensors


def _load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, where: Path) -> None:
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ConfigError(
            f"{where} does not fit the network: {str(error).splitlines()[-1].strip()}"
        ) from error
