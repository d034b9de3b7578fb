"""Implements `misfire fleet bought`."""

from __future__ import annotations

import math
import textwrap
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_fleet.commands.options import AsJson, StoreOptions, show, with_options
from misfire_runtime.errors import ConfigError

if TYPE_CHECKING:
    from misfire_fleet.bought.findings import Findings
    from misfire_fleet.bought.training import Gain
    from misfire_train.metrics import Estimate


@with_options(place=StoreOptions)
def bought(
    *,
    place: StoreOptions,
    where: Annotated[
        list[str],
        typer.Option(
            "--where",
            help="What the campaign took, KEY=VALUE (repeat for more): trigger, bundle, vehicle, from, to, "
            "percentile, snapshot, ids (@FILE).",
        ),
    ],
    run: Annotated[
        Path | None,
        typer.Option(
            help="Also measure accuracy: train from this run, with the samples and with random ones."
        ),
    ] = None,
    snapshot: Annotated[
        str | None,
        typer.Option(help="Take samples of this snapshot's train side, and judge on its frozen test side."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Keep the trained runs in this folder.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Train each arm with this many seeds.")] = 3,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs. Default: as misfire retrain.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the run's data set.")] = None,
    bundle_dir: Annotated[
        Path | None, typer.Option(help="Read a detector's rule and input size from this bundle's folder.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="Largest error of a value, or of a point as a share of the diagonal."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a campaign's uploads found and gave, beside as many of the random stream."""
    from misfire_fleet.bought.findings import find
    from misfire_fleet.candidates.verdict import plain
    from misfire_fleet.store.where import parse_where
    from misfire_fleet.truth.judging import Judge
    from misfire_runtime.bundle import read_manifest

    if (run is None) != (snapshot is None) or (run is None) != (out is None):
        raise ConfigError("accuracy needs --run, --snapshot and --out together")
    filters = parse_where(where)
    manifest = None if bundle_dir is None else read_manifest(bundle_dir)
    gain = None
    with place.open() as store, ExitStack() as stack:
        masks = None
        if bundle_dir is not None and manifest is not None and manifest.task == "segmentation":
            from misfire_fleet.candidates.rerunning import MaskJudge

            masks = stack.enter_context(MaskJudge(store, bundle_dir)).failed
        found = find(store, filters, judge=Judge(manifest, tolerance, masks))
        if run is not None and snapshot is not None and out is not None:
            from misfire_fleet.bought.training import measure_gain
            from misfire_train.data import load_dataset
            from misfire_train.progress import Reporter
            from misfire_train.runs import load_run

            current = load_run(run)
            gain = measure_gain(
                store,
                current,
                where=filters,
                snapshot=snapshot,
                dataset=load_dataset(current.record.dataset.name, root=data),
                out=out,
                seeds=range(seeds),
                epochs=epochs,
                reporter=Reporter(),
            )
    result: dict[str, Any] = {"where": where, "found": plain(asdict(found))}
    result["accuracy"] = None if gain is None else plain(asdict(gain))
    show(result, as_json=as_json, text=_describe(found, gain))


def _describe(found: Findings, gain: Gain | None) -> str:
    lines = [f"{'':24}{'campaign':>28}{'random':>28}"]
    both = (found.campaign, found.random)
    rows = {
        "uploads": [f"{each.uploads}" for each in both],
        "megabytes": [f"{each.bytes / 1e6:.1f}" for each in both],
        "labelled and judged": [f"{each.rates.labels}" for each in both],
        "failures": [f"{each.rates.failures}" for each in both],
        "failures per label": [_interval(each.rates.per_label, 2) for each in both],
        "failures per GB": [_interval(each.rates.per_gb, 0) for each in both],
    }
    lines += [f"{name:24}{values[0]:>28}{values[1]:>28}" for name, values in rows.items()]
    lines.append(f"per label the campaign finds {_interval(found.per_label, 2)} times as many,")
    lines.append(f"per GB {_interval(found.per_gb, 2)} times (95 % intervals)")
    for each in found.notes:
        lines += textwrap.wrap(f"note: {each}", 80, subsequent_indent="      ")
    if gain is not None:
        lines += ["", *_accuracy(gain)]
    return "\n".join(lines)


def _accuracy(gain: Gain) -> list[str]:
    return [
        f"{gain.metric} on {gain.frames} frozen frames, {gain.samples} samples in each arm, "
        f"{len(gain.seeds)} seeds",
        f"before                  {100 * gain.before:6.2f} %",
        f"with the campaign's     {100 * _mean(gain.campaign):6.2f} %  {_points(gain.campaign_gain)}",
        f"with random ones        {100 * _mean(gain.random):6.2f} %  {_points(gain.random_gain)}",
        f"campaign minus random   {_points(gain.difference)} points (95 % interval)",
    ]


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def _points(found: Estimate) -> str:
    return f"{100 * found.value:+.2f} ({100 * found.low:+.2f} .. {100 * found.high:+.2f})"


def _interval(found: Estimate, digits: int) -> str:
    if not math.isfinite(found.low):
        return "-"
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} .. {found.high:.{digits}f})"
