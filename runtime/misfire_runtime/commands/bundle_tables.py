"""Formats a bundle's manifest as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from misfire_runtime.boxes import BoxRule
from misfire_runtime.bundle import MODEL, Manifest
from misfire_runtime.commands.bundle_page import accuracy_text, further_text, origin, share_text
from misfire_runtime.preprocess import InputContract


def tables(manifest: Manifest) -> list[Table]:
    """Returns the tables that `misfire bundle inspect` prints: facts, outputs, scores, thresholds."""
    return [_facts(manifest), _outputs(manifest), _scores(manifest), _points(manifest)]


def _facts(manifest: Manifest) -> Table:
    table = Table(title=manifest.label, show_header=False, title_justify="left")
    image, lineage, gate = manifest.input, manifest.lineage, _part(manifest, "gate")
    shape = f"[N,{image.channels},{image.height},{image.width}]"
    rows = {
        "task": f"{manifest.task}, {len(manifest.classes)} classes" if manifest.classes else manifest.task,
        "created": manifest.created_at,
        "precision": manifest.precision,
        "input": f"{image.name} {shape} {image.dtype} {image.color}, {image.resize}{_padding(image)}",
        "further inputs": ", ".join(f"{name} ({kind})" for name, kind in image.inputs.items()),
        "boxes": _boxes(manifest.detection),
        "trigger score": manifest.default_score,
        "by upload rate": manifest.rates_text,
        "made for": f"uploads of {manifest.upload_rate:.2%}" if manifest.upload_rate else "",
        "why": str(gate.get("verdict", "")),
        "held out": ", ".join(map(str, gate.get("shifts") or ())),
        "parity": _parity(manifest),
        "accuracy": accuracy_text(manifest),
        "further answers": "\n".join(further_text(manifest)),
        origin(manifest): f"{lineage.dataset} ({lineage.dataset_sha256[:12]}), run {lineage.run_id}",
        "notes": "\n".join(map(str, manifest.extra.get("notes") or ())),
        "graph": f"{manifest.files[MODEL].bytes / 1e6:.2f} MB, sha256 {manifest.files[MODEL].sha256[:16]}",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def _padding(image: InputContract) -> str:
    return f" on grey {image.pad}" if image.resize.startswith("letterbox") and image.pad else ""


def _boxes(rule: BoxRule | None) -> str:
    if rule is None:
        return ""
    return (
        f"score from {rule.score_threshold:g}, suppressed above IoU {rule.suppression:g}, at most "
        f"{rule.max_boxes}; right from IoU {rule.matching:g}"
    )


def _outputs(manifest: Manifest) -> Table:
    table = Table("output", "kind", "shape", title="Outputs", title_justify="left")
    for output in manifest.outputs:
        shape = ",".join("N" if size < 0 else str(size) for size in output.shape)
        table.add_row(output.name, output.kind, f"[{shape}]")
    return table


def _scores(manifest: Manifest) -> Table:
    table = Table(
        "score", "free", "AUROC", "median", "99 %", "definition", title="Scores", title_justify="left"
    )
    reports = _part(manifest, "scores")
    for score in manifest.scores:
        found = reports.get(score.name, {}).get("auroc")
        quantiles = score.calibration.quantiles
        table.add_row(
            score.name,
            "yes" if score.free else "no",
            "" if found is None else f"{found:.3f}",
            f"{_quantile(quantiles.levels, quantiles.values, 0.5):.4g}",
            f"{_quantile(quantiles.levels, quantiles.values, 0.99):.4g}",
            score.definition,
        )
    return table


def _points(manifest: Manifest) -> Table:
    score = manifest.score(manifest.default_score)
    calibration = score.calibration
    engine = f"{calibration.engine}, {calibration.precision}"
    folds = _part(manifest, "calibration").get("cross_fitted")
    how = f"; uploads and shares by thresholds of other frames, {folds}" if folds else ""
    title = f"Thresholds of {score.name} on {calibration.quantiles.count} frames ({engine}){how}"
    table = Table("uploads", "threshold", "failures found", "precision", title=title, title_justify="left")
    for point in score.operating_points:
        table.add_row(
            f"{point.upload_rate:.1%}",
            f"{point.threshold:.4g}",
            share_text(point.failure_recall),
            share_text(point.failure_precision),
        )
    return table


def _parity(manifest: Manifest) -> str:
    if manifest.parity is None:
        return "none: there was no trained model to compare with"
    worst = max(manifest.parity.max_abs, key=manifest.parity.max_abs.__getitem__)
    return (
        f"{manifest.parity.max_abs[worst]:.1e} at most ({worst}), {manifest.parity.images} images, "
        f"tolerance {manifest.parity.tolerance:g}"
    )


def _part(manifest: Manifest, name: str) -> dict[str, Any]:
    """Returns a report of the exporter; a foreign manifest may have none."""
    found = manifest.extra.get(name)
    return found if isinstance(found, dict) else {}


def _quantile(levels: tuple[float, ...], values: tuple[float, ...], level: float) -> float:
    nearest = min(range(len(levels)), key=lambda i: abs(levels[i] - level))
    return values[nearest]
