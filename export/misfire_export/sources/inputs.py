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
from torch import nn

from misfire_export.assemble import Options
from misfire_export.sources.module import export_module_bundle
from misfire_export.sources.run import all_scores, export_run
from misfire_runtime.bundle import Bundle, Lineage
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_runtime.toml import explain
from misfire_train.data import Examples, load_dataset, split
from misfire_train.runs import Run, load_run, run_splits

HOLDOUT_SHARE = 0.4
_SIZED = ("masks:", "coco-keypoints:")
ScoreOptions = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Material:
    """Frames by use, and what is known of them. dataset: name and sha256.  data_contract: before --image."""

    contract: InputContract
    task: str
    classes: tuple[str, ...]
    calibration: Examples
    fit: Examples | None
    holdout: Examples | None
    dataset: tuple[str, str]
    run: Run | None = None
    data_contract: InputContract | None = None


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


def of_dataset(
    name: str,
    *,
    data: Path | None,
    image: str = "",
    task: str = "",
    seed: int = 0,
    size: tuple[int, int, int] | None = None,
) -> Material:
    """A data set's halves for a model that was trained elsewhere.

    image: what the model's input expects, as JSON; what it leaves out is the data set's.
    size: channels, height, width that the graph itself takes, for what neither `image` nor the name states.
    Raises ConfigError on another text.
    """
    given = _read_image(image)
    dataset = load_dataset(_with_size(name, given, size), root=data)
    contract = laid_over(dataset.contract, _sized(name, given, size))
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
        data_contract=laid_over(dataset.contract, {"color": contract.color}),
    )


def _read_image(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        found = TypeAdapter(dict[str, Any]).validate_json(text)
    except ValidationError as error:
        raise ConfigError(
            f'--image is {text!r}; expected JSON such as {{"height": 224, "width": 224, "color": "gray"}}'
        ) from error
    return found


def _with_size(name: str, given: Mapping[str, Any], size: tuple[int, int, int] | None) -> str:
    """The data set's name with the graph's own size, for readers whose labels lie on the input's pixels."""
    if size is None or not name.startswith(_SIZED) or "size=" in name or {"height", "width"} & set(given):
        return name
    return f"{name}{'&' if '?' in name else '?'}size={size[2]}x{size[1]}"


def _sized(name: str, given: Mapping[str, Any], size: tuple[int, int, int] | None) -> dict[str, Any]:
    """What is stated of the input: by --image, and where that says nothing by the graph."""
    if size is None:
        return dict(given)
    found: dict[str, Any] = {"height": size[1], "width": size[2]} if "size=" not in name else {}
    return {**found, "channels": size[0], **given}


def laid_over(contract: InputContract, given: Mapping[str, Any]) -> InputContract:
    """The data set's contract with what was given; mean and deviation follow the number of channels.

    given: fields of the contract, and `channels` where only their number is known. Raises ConfigError.

    >>> rgb = InputContract(height=8, width=8, mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))
    >>> found = laid_over(rgb, {"color": "gray"})
    >>> round(found.mean[0], 6), round(found.std[0], 6)
    (0.4, 0.2)
    """
    stated = dict(given)
    channels = stated.pop("channels", None)
    if "color" not in stated and channels not in (None, contract.channels):
        stated["color"] = "gray" if channels == 1 else "rgb"
    one = stated.get("color", contract.color) == "gray"
    for key, values in (("mean", contract.mean), ("std", contract.std)):
        # A grey picture's mean is the channels' mean; one number serves any number of channels.
        if key not in stated and one and len(values) > 1:
            stated[key] = (sum(values) / len(values),)
    try:
        return InputContract.model_validate({**contract.model_dump(), **stated})
    except ValidationError as error:
        raise ConfigError(explain(error, file="--image", most=1)) from error


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
    model: nn.Module,
    material: Material,
    *,
    out: Path,
    options: Options,
    lineage: Lineage,
    features: Sequence[str],
    last_layer: str | None,
    scores: Sequence[str] | None,
    score_options: ScoreOptions | None = None,
    model_classes: Sequence[str] = (),
    output: str = "",
) -> Bundle:
    """A torch module's bundle. scores: names, or "all" alone."""
    if scores == ["all"]:
        scores = all_scores(material.task, head=bool(features))
    return export_module_bundle(
        model,
        contract=material.contract,
        calibration=material.calibration,
        out=out,
        options=options,
        task=material.task,
        classes=material.classes,
        model_classes=model_classes,
        features=features,
        last_layer=last_layer,
        output=output,
        data_contract=material.data_contract,
        scores=scores,
        score_options=score_options,
        fit=material.fit,
        holdout=material.holdout,
        lineage=lineage,
    )
