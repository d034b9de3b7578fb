"""`misfire export`: a run, a torch module or a foreign ONNX graph becomes a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from misfire_runtime.bundle import Bundle
from misfire_runtime.errors import ConfigError


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the bundle; an older bundle there is replaced.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the data sets (else MISFIRE_DATA).")] = None,
    scores: Annotated[str, typer.Option(help="Comma-separated; default: the head and free scores.")] = "",
    name: Annotated[str, typer.Option(help="Name of the bundle; default: the data set's.")] = "",
    version: Annotated[str, typer.Option(help="Semantic version.")] = "1.0.0",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    target: Annotated[str, typer.Option(help="onnxruntime-x86 or tensorrt.")] = "onnxruntime-x86",
    default_score: Annotated[str, typer.Option(help="Trigger on this score, not on the gate's.")] = "",
    failure_threshold: Annotated[float | None, typer.Option(help="Loss above which a frame fails.")] = None,
    tolerance: Annotated[float, typer.Option(help="Largest absolute difference from torch.")] = 1e-4,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a verified, calibrated bundle."""
    from misfire_export.exporting import export_run
    from misfire_train.data import load_dataset
    from misfire_train.runs import load_run, run_splits

    _require_choice("--precision", precision, ("fp32", "fp16", "int8"))
    _require_choice("--target", target, ("onnxruntime-x86", "tensorrt"))
    loaded = load_run(run)
    splits = run_splits(loaded, load_dataset(loaded.record.dataset.name, root=data))
    if "calibration" not in splits:
        raise ConfigError(f"{run} set no calibration part aside; train with a calibration share above 0")
    bundle = export_run(
        loaded,
        calibration=splits["calibration"],
        out=out,
        name=name or bundle_name(loaded.record.dataset.name),
        version=version,
        scores=[part.strip() for part in scores.split(",") if part.strip()] or None,
        precision=precision,  # type: ignore[arg-type]
        target=target,  # type: ignore[arg-type]
        fit=splits.get("train"),
        holdout=splits.get("holdout"),
        default_score=default_score or None,
        failure_threshold=failure_threshold,
        tolerance=tolerance,
    )
    typer.echo(json.dumps(summary(bundle), indent=2) if as_json else describe(bundle))


def bundle_name(dataset: str) -> str:
    """A data set's name as a bundle may carry it.

    >>> bundle_name("image-folder:/data/My Signs")
    'my-signs'
    """
    stem = dataset.split(":", 1)[-1].rstrip("/").rsplit("/", 1)[-1].lower()
    cleaned = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem).strip("._-")
    return cleaned[:64] or "model"


def summary(bundle: Bundle) -> dict[str, Any]:
    """What `--json` prints."""
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
        "precision_report": manifest.extra.get("precision"),
        "tensorrt": manifest.extra.get("tensorrt"),
        "notes": manifest.extra.get("notes", []),
        "onnx_bytes": manifest.files["model.onnx"].bytes,
        "sha256": manifest.files["model.onnx"].sha256,
    }


def describe(bundle: Bundle) -> str:
    """The same for a person."""
    found = summary(bundle)
    calibration = found["calibration"]
    lines = [
        f"{bundle.path}: {bundle.manifest.label}, {found['task']}, {found['precision']}, "
        f"{found['onnx_bytes'] / 1e6:.2f} MB",
        f"calibrated on {calibration['frames']} frames, {calibration['failures']} failures",
    ]
    if found["parity_max_abs"] is not None:
        worst = max(found["parity_max_abs"], key=found["parity_max_abs"].__getitem__)
        lines.append(
            f"parity with torch on {found['parity_images']} images: max abs diff "
            f"{found['parity_max_abs'][worst]:.1e} ({worst})"
        )
    lines.append(f"trigger score: {found['default_score']}. {found['verdict']}")
    return "\n".join([*lines, *found["notes"]])


def _require_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{option} is {value!r}; expected {', '.join(choices)}")
