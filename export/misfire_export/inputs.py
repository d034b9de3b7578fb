"""What `misfire export` works from: a run with its own parts, or a data set for a model trained elsewhere.

A run says which frames were its training, holdout and calibration parts. A foreign model has presumably been
trained on the data set's training half, so its holdout and calibration frames come from the test half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from misfire_export.assembling import Options
from misfire_export.exporting import all_scores, export_run
from misfire_export.modules import export_module_bundle, load_module, module_lineage
from misfire_runtime.bundle import Bundle
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples, load_dataset, split
from misfire_train.runs import Run, load_run, run_splits

HOLDOUT_SHARE = 0.4
ScoreOptions = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Material:
    """Frames by use, and what is known of them. dataset: name and sha256."""

    contract: InputContract
    task: str
    classes: tuple[str, ...]
    calibration: Examples
    fit: Examples | None
    holdout: Examples | None
    dataset: tuple[str, str]
    run: Run | None = None


def of_run(path: Path, *, data: Path | None) -> Material:
    """A run and its own parts. Raises ConfigError where it set no calibration frames aside."""
    run = load_run(path)
    record = run.record
    splits = run_splits(run, load_dataset(record.dataset.name, root=data))
    if "calibration" not in splits:
        raise ConfigError(f"{path} set no calibration part aside; train with a calibration share above 0")
    return Material(
        contract=run.contract,
        task=record.task,
        classes=tuple(record.classes),
        calibration=splits["calibration"],
        fit=splits.get("train"),
        holdout=splits.get("holdout"),
        dataset=(record.dataset.name, record.dataset.sha256),
        run=run,
    )


def of_dataset(name: str, *, data: Path | None, image: str = "", task: str = "", seed: int = 0) -> Material:
    """A data set's halves for a model that was trained elsewhere.

    image: the model's input contract as JSON, laid over the data set's. Raises ConfigError on another text.
    """
    dataset = load_dataset(name, root=data)
    contract = dataset.contract
    if image:
        try:
            given = InputContract.model_validate_json(image).model_dump(exclude_unset=True)
            contract = InputContract.model_validate({**contract.model_dump(), **given})
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"--image: {'.'.join(map(str, first['loc']))} {first['msg']}") from error
    parts = split(
        dataset.test, fractions={"holdout": HOLDOUT_SHARE, "calibration": 1 - HOLDOUT_SHARE}, seed=seed
    )
    return Material(
        contract=contract,
        task=task or dataset.task,
        classes=dataset.classes,
        calibration=parts["calibration"],
        fit=dataset.train,
        holdout=parts["holdout"],
        dataset=(dataset.name, dataset.sha256),
    )


def read_score_options(text: str) -> dict[str, dict[str, Any]]:
    """{score: {option: value}} of a JSON text, empty of none. Raises ConfigError on any other."""
    if not text:
        return {}
    try:
        return TypeAdapter(dict[str, dict[str, Any]]).validate_json(text)
    except ValidationError as error:
        raise ConfigError(
            f'--score-options is {text!r}; expected JSON such as {{"egl_pp": {{"size": 512}}}}'
        ) from error


def export_material(
    material: Material,
    *,
    out: Path,
    options: Options,
    scores: Sequence[str] | None,
    score_options: ScoreOptions | None = None,
) -> Bundle:
    """A run's bundle. scores: names, or "all" alone."""
    if material.run is None:
        raise ConfigError("there is no run to export")
    if scores == ["all"]:
        scores = all_scores(material.task, head=material.run.head is not None)
    return export_run(
        material.run,
        calibration=material.calibration,
        out=out,
        name=options.name,
        version=options.version,
        scores=scores,
        precision=options.precision,
        target=options.target,
        fit=material.fit,
        holdout=material.holdout,
        score_options=score_options,
        default_score=options.default_score,
        failure_threshold=options.failure_threshold,
        shifts=options.shifts,
        tolerance=options.tolerance,
    )


def export_torch(
    target: str,
    material: Material,
    *,
    out: Path,
    options: Options,
    weights: Path | None,
    features: Sequence[str],
    last_layer: str | None,
    scores: Sequence[str] | None,
    score_options: ScoreOptions | None = None,
) -> Bundle:
    """A torch module's bundle. scores: names, or "all" alone."""
    if scores == ["all"]:
        scores = all_scores(material.task, head=bool(features))
    return export_module_bundle(
        load_module(target, weights=weights),
        contract=material.contract,
        calibration=material.calibration,
        out=out,
        options=options,
        task=material.task,
        classes=material.classes,
        features=features,
        last_layer=last_layer,
        scores=scores,
        score_options=score_options,
        fit=material.fit,
        holdout=material.holdout,
        lineage=module_lineage(target, weights, material.dataset),
    )
