"""Implements `misfire export`: makes a bundle of a run, a torch module or a foreign ONNX graph."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from misfire_export.choices import AnswerKind, Target
from misfire_runtime.choices import Precision, TaskName
from misfire_runtime.errors import ConfigError
from misfire_train.options import AsJson, DataFolder

if TYPE_CHECKING:
    from misfire_export.measure.trigger import Shifts
    from misfire_export.options import Options
    from misfire_export.sources.facts import ModelFacts
    from misfire_export.sources.frames import Frames
    from misfire_runtime.bundle import Bundle


def export(
    run: Annotated[Path | None, typer.Argument(help="Export the training run in this folder.")] = None,
    *,
    out: Annotated[
        Path, typer.Option(help="Write the bundle to this folder; an older bundle there is replaced.")
    ],
    torch: Annotated[
        str, typer.Option(help="Export an nn.Module, given as module:factory, instead of a run.")
    ] = "",
    weights: Annotated[
        Path | None,
        typer.Option(help="With --torch: load a safetensors file, or a state dict in a .pt file."),
    ] = None,
    features: Annotated[
        str, typer.Option(help="With --torch: attach a learned head to these comma-separated layers.")
    ] = "",
    last_layer: Annotated[
        str, typer.Option(help="With --torch: name the last layer. Default: found by calling it.")
    ] = "",
    onnx: Annotated[Path | None, typer.Option(help="Export a foreign ONNX graph instead of a run.")] = None,
    output: Annotated[
        str, typer.Option(help="With --torch or --onnx: name the output that is the answer.")
    ] = "",
    also: Annotated[
        str,
        typer.Option(
            help="With --torch or --onnx: give further outputs scores of their own, comma-separated "
            "OUTPUT=TASK. Default task: classification. Outputs that the data set has labels of have them."
        ),
    ] = "",
    answer: Annotated[
        AnswerKind, typer.Option(help="With --onnx: read the answer as numbers of this kind.")
    ] = "auto",
    classes: Annotated[
        Path | None,
        typer.Option(
            help="With --torch or --onnx: read class names in the model's order, one per line or JSON."
        ),
    ] = None,
    dataset: Annotated[
        str,
        typer.Option(
            help="With --torch or --onnx: calibrate on this labelled data set, or on pictures without labels "
            "(images:PATH, a folder or a video)."
        ),
    ] = "",
    train: Annotated[
        str, typer.Option(help="Your own split, with --test: the data set that the model was trained on.")
    ] = "",
    holdout: Annotated[
        str, typer.Option(help="Your own split, with --test: a data set that scores may learn from.")
    ] = "",
    test: Annotated[
        str,
        typer.Option(
            help="Your own split, instead of --dataset: the data set to calibrate on, all of it. Neither the "
            "model nor a score may have seen it."
        ),
    ] = "",
    task: Annotated[
        str,
        typer.Option(
            help="With --torch or --onnx: state the task, one of "
            + ", ".join(name for name in get_args(TaskName) if name != "custom")
            + ", or with --torch your own as module:task. Default: the data set's."
        ),
    ] = "",
    image: Annotated[
        str,
        typer.Option(
            help="Describe the input as JSON. Default, field by field: the data set's; a detector's layout's."
        ),
    ] = "",
    layout: Annotated[
        str,
        typer.Option(
            help="With --onnx --task detection: name the layout of the answer. Default: recognised on the "
            "frames."
        ),
    ] = "",
    box_rule: Annotated[
        str,
        typer.Option(
            help="With --onnx --task detection: set fields of the box rule as JSON, such as "
            '{"score_threshold": 0.25}. Default: the file\'s own thresholds.'
        ),
    ] = "",
    data: DataFolder = None,
    scores: Annotated[
        str,
        typer.Option(
            help="Export these scores: comma-separated names, or 'all'. Default: the learned head and the "
            "output-only scores."
        ),
    ] = "",
    score_options: Annotated[
        str, typer.Option(help='Set options of scores as JSON: {"egl_pp": {"size": 512, "sigma": "auto"}}.')
    ] = "",
    name: Annotated[str, typer.Option(help="Name the bundle. Default: as the data set.")] = "",
    version: Annotated[str, typer.Option(help="Semantic version of the bundle.")] = "1.0.0",
    precision: Annotated[Precision, typer.Option(help="Compute the graph at this precision.")] = "fp32",
    target: Annotated[
        Target, typer.Option(help="Quantize for this engine. Matters with --precision int8.")
    ] = "onnxruntime-x86",
    default_score: Annotated[
        str, typer.Option(help="Trigger on this score. Default: the one that the gate chooses.")
    ] = "",
    upload_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0001,
            max=0.9999,
            help="Make the bundle for vehicles that upload this share of the frames, such as 0.02: the score "
            "that finds most there triggers. Default: by AUROC and AURC.",
        ),
    ] = None,
    failure_threshold: Annotated[
        float | None, typer.Option(help="Count a loss above this as a failure. Default: the run's own.")
    ] = None,
    shifts: Annotated[
        str,
        typer.Option(
            help="Hold out these corruptions in the gate: comma-separated names, or none. "
            "Default: one of each kind."
        ),
    ] = "",
    severity: Annotated[int, typer.Option(min=1, max=5, help="Severity of each corruption.")] = 3,
    tolerance: Annotated[float, typer.Option(help="Allow this absolute difference from torch.")] = 1e-4,
    refittable: Annotated[
        bool,
        typer.Option(
            "--refittable",
            help="Let misfire retrain --head-only give a strength to a head that has none; costs its "
            "computation.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a verified, calibrated bundle of a run, of any torch module, or of a foreign ONNX graph."""
    from misfire_export.assemble import require_free
    from misfire_export.options import Options
    from misfire_export.sources.facts import ModelFacts
    from misfire_export.sources.frames import (
        frames_of_dataset,
        frames_of_run,
        read_image,
        require_one_split,
    )
    from misfire_export.sources.labels import read_classes
    from misfire_export.sources.module import export_module_bundle, module_lineage
    from misfire_export.sources.module_loading import load_module
    from misfire_export.sources.run import export_run
    from misfire_export.sources.score_names import read_score_options
    from misfire_train.data import load_dataset
    from misfire_train.data.loading import is_own
    from misfire_train.runs import load_run
    from misfire_train.tasks.loading import load_task

    if sum((run is not None, bool(torch), onnx is not None)) != 1:
        raise ConfigError("name what to export: a run's folder, --torch module:factory, or --onnx model.onnx")
    options = Options(
        name=name,
        version=version,
        scores=_listed(scores) or None,
        score_options=read_score_options(score_options),
        precision=precision,
        target=target,
        tolerance=tolerance,
        default_score=default_score or None,
        upload_rate=upload_rate,
        failure_threshold=failure_threshold,
        shifts=_shifts(shifts, severity),
        refittable=refittable,
    )

    def named(source: str) -> Options:
        return options if name else replace(options, name=bundle_name(source))

    # Silence would suggest that the option took effect.
    if answer != "auto" and onnx is None:
        raise ConfigError("--answer is for --onnx; a module returns logits")
    own_names = read_classes(classes)
    if run is not None:
        loaded = load_run(run)
        source = loaded.record.dataset.name
        frames = frames_of_run(loaded, load_dataset(source, root=data))
        bundle = export_run(loaded, frames, out=out, options=named(source))
    else:
        # Whatever needs no data is checked first: reading data can take minutes.
        parts = require_one_split(dataset, {"train": train, "holdout": holdout, "test": test})
        require_free(out)
        own_task = load_task(task) if task else None
        if own_task is not None and onnx is not None and own_task.bundle_task == "custom":
            raise ConfigError(f"--task {task}: a task of your own takes --torch; --onnx needs a known one")
        module = load_module(torch, weights=weights) if torch else None
        detector = onnx is not None and task == "detection"
        if (layout or box_rule) and not detector:
            raise ConfigError("--layout and --box-rule are for --onnx with --task detection")
        # Labels of several outputs, which only code can give, say which output is the answer.
        told = bool(output) or not is_own(dataset or test)
        size = None if onnx is None else _own_size(onnx, output=output, task=task, told=told)
        frames, contract = frames_of_dataset(dataset, parts=parts, data=data, image=image, size=size)
        if not (task or frames.task):
            raise ConfigError("pictures without labels do not tell the model's task: state it with --task")
        facts = ModelFacts(
            contract,
            task=own_task or frames.task,
            classes=own_names,
            output=output,
            answer=answer,
            also=further_outputs(also),
            features=_listed(features),
            last_layer=last_layer or None,
            lineage=module_lineage(torch, weights, frames.dataset) if torch else None,
        )
        options = named(frames.dataset[0])
        if module is not None:
            bundle = export_module_bundle(module, frames, facts, out=out, options=options)
        else:
            assert onnx is not None
            detection = {"layout": layout, "rule": read_image(box_rule, option="--box-rule")}
            bundle = _export_graph(
                onnx, frames, facts, out=out, options=options, image=read_image(image), detection=detection
            )
    typer.echo(json.dumps(summary(bundle), indent=2) if as_json else describe(bundle))


def further_outputs(text: str) -> dict[str, str]:
    """Returns {output: task} of --also."""
    from misfire_export.sources.frames import parse_further

    return parse_further(text)


def _own_size(path: Path, *, output: str, task: str, told: bool) -> tuple[int, int, int] | None:
    """Returns channels, height and width of a graph's picture, after the checks that need no data.

    told: it is known which output is the answer.
    """
    from misfire_export.sources.detectors.recognising import own_picture
    from misfire_export.sources.onnx.exporting import open_graph
    from misfire_export.sources.onnx.opening import load_graph, own_size

    if task == "detection":
        return own_picture(load_graph(path))
    if not told:
        return own_size(load_graph(path))
    return own_size(open_graph(path, output=output, task=task))


def _export_graph(
    path: Path,
    frames: Frames,
    facts: ModelFacts,
    *,
    out: Path,
    options: Options,
    image: dict[str, Any],
    detection: dict[str, Any],
) -> Bundle:
    """Writes a bundle of a foreign graph. detection: what only a detector takes."""
    from misfire_export.sources.detectors.exporting import export_detector
    from misfire_export.sources.onnx.exporting import export_onnx

    task = facts.task if isinstance(facts.task, str) else facts.task.name
    if task == "detection":
        return export_detector(path, frames, facts, out=out, options=options, image=image, **detection)
    return export_onnx(path, frames, facts, out=out, options=options)


def _shifts(text: str, severity: int) -> Shifts:
    from misfire_export.measure.trigger import Shifts

    if text == "none":
        return Shifts(())
    return Shifts(tuple(_listed(text)), severity) if text else Shifts(severity=severity)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def bundle_name(dataset: str) -> str:
    """Returns a data set's name in the characters that a bundle's name may have.

    >>> bundle_name("image-folder:/data/My Signs?size=64x64")
    'my-signs'
    """
    stem = dataset.split(":", 1)[-1].partition("?")[0].rstrip("/").rsplit("/", 1)[-1].lower()
    cleaned = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem).strip("._-")
    # The manifest allows 64 characters.
    return cleaned[:64] or "model"


def summary(bundle: Bundle) -> dict[str, Any]:
    """Returns what `--json` prints."""
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.path),
        "name": manifest.name,
        "version": manifest.version,
        "task": manifest.task,
        "precision": manifest.precision,
        "default_score": manifest.default_score,
        "verdict": manifest.extra["gate"]["verdict"],
        "scores": [score.name for score in manifest.scores],
        "outputs": [output.name for output in manifest.outputs],
        "parity_max_abs": None if manifest.parity is None else manifest.parity.max_abs,
        "parity_images": None if manifest.parity is None else manifest.parity.images,
        "calibration": manifest.extra["calibration"],
        "further": manifest.extra.get("further", {}),
        "precision_report": manifest.extra.get("precision"),
        "tensorrt": manifest.extra.get("tensorrt"),
        "notes": manifest.extra.get("notes", []),
        "onnx_bytes": manifest.files["model.onnx"].bytes,
        "sha256": manifest.files["model.onnx"].sha256,
    }


def describe(bundle: Bundle) -> str:
    """Returns the summary for people."""
    from misfire_export.measure.calibrate import WARNING
    from misfire_runtime.commands.bundle_page import further_text

    found = summary(bundle)
    calibration = found["calibration"]
    lines = [
        f"{bundle.path}: {bundle.manifest.label}, {found['task']}, {found['precision']}, "
        f"{found['onnx_bytes'] / 1e6:.2f} MB",
        _calibrated(calibration),
        # Before anything else: what follows is of a model that may be misread.
        *(note for note in found["notes"] if note.startswith(WARNING)),
    ]
    if found["parity_max_abs"] is not None:
        worst = max(found["parity_max_abs"], key=found["parity_max_abs"].__getitem__)
        lines.append(
            f"parity with torch on {found['parity_images']} images: max abs diff "
            f"{found['parity_max_abs'][worst]:.1e} ({worst})"
        )
    lines.append(f"trigger score: {found['default_score']}. {found['verdict']}")
    if bundle.manifest.rates_text:
        lines.append(f"by upload rate: {bundle.manifest.rates_text}")
    lines += [f"further answer {text}" for text in further_text(bundle.manifest)]
    return "\n".join([*lines, *(note for note in found["notes"] if not note.startswith(WARNING))])


def _calibrated(found: dict[str, Any]) -> str:
    if not found.get("labelled", True):
        return f"calibrated on {found['frames']} frames without labels: upload rates only"
    return (
        f"calibrated on {found['frames']} frames: accuracy {found['accuracy']:.3f}, "
        f"{found['failures']} failures"
    )
