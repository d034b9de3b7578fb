"""Implements `misfire fleet truth`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

import typer

from misfire_fleet.actor import current_actor
from misfire_fleet.commands.options import AsJson, DryRun, StoreOptions, moment, show, with_options
from misfire_runtime.errors import ConfigError

if TYPE_CHECKING:
    from misfire_fleet.truth.report import Report, SliceRate


@with_options(place=StoreOptions)
def truth(
    *,
    place: StoreOptions,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            help="Also print a rate for each: vehicle, day, class (as answered), label (the true class), "
            "or a context key.",
        ),
    ] = "",
    bundle: Annotated[
        str | None,
        typer.Option("--bundle", help="Judge this NAME@VERSION. Default: every bundle with random frames."),
    ] = None,
    bundle_dir: Annotated[
        Path | None,
        typer.Option(
            "--bundle-dir",
            help="The bundle's folder: read a detector's rule and input size, and judge masks by running it.",
        ),
    ] = None,
    score: Annotated[
        str | None, typer.Option("--score", help="Cut strata by this score. Default: the best one known.")
    ] = None,
    vehicle: Annotated[str | None, typer.Option("--vehicle", help="Only frames of this vehicle.")] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", help="Only frames captured at or after this time (ISO 8601, UTC)."),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Only frames captured before this time (ISO 8601, UTC).")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance", min=0, help="Largest error of a value, or of a point as a share of the diagonal."
        ),
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", min=0.5, max=0.999, help="Confidence of the intervals.")
    ] = 0.95,
    to_label: Annotated[
        int | None,
        typer.Option(
            "--to-label",
            "--sample",
            min=1,
            help="Deal this many frames of the random stream and print their ids, one a line.",
        ),
    ] = None,
    outstanding: Annotated[
        bool, typer.Option("--outstanding", help="Print the ids of dealt frames that have no label yet.")
    ] = False,
    console: Annotated[
        str, typer.Option("--console", help="Address of the console, for the link to judge dealt frames.")
    ] = "http://127.0.0.1:8000",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Estimate the failure rate of deployed bundles from labels of the random stream.

    Prints rate, interval, labels and frames, and how many more labels would halve each interval. With
    --to-label N, deals the next frames to label instead, remembers the deal, and prints a link to judge them.
    """
    from misfire_fleet.errors import StoreError
    from misfire_fleet.truth.judging import Judge
    from misfire_fleet.truth.report import FieldTruth, Query
    from misfire_fleet.truth.stream import bundles
    from misfire_runtime.bundle import Bundle

    manifest = None if bundle_dir is None else Bundle.open(bundle_dir).manifest
    start, end = moment("--since", since), moment("--until", until)
    with place.open() as store, ExitStack() as stack:
        names = [bundle] if bundle else bundles(store, since=start, until=end)
        if not names:
            raise StoreError(
                "no frame of the random stream in this store or period; vehicles draw it with `[random] rate`"
            )
        if (to_label is not None or outstanding) and len(names) > 1:
            option = "--outstanding" if to_label is None else "--to-label"
            raise ConfigError(f"{option} needs --bundle; there are {', '.join(names)}")
        if manifest is not None and names != [manifest.label]:
            raise ConfigError(f"--bundle-dir holds {manifest.label}; give --bundle {manifest.label}")
        masks = None
        if bundle_dir is not None and manifest is not None and manifest.task == "segmentation":
            from misfire_fleet.candidates.rerunning import MaskJudge

            masks = stack.enter_context(MaskJudge(store, bundle_dir)).failed
        judge = Judge(manifest, tolerance, masks)
        found = [
            FieldTruth(
                store,
                Query(
                    bundle=name,
                    by=by,
                    score=score,
                    since=start,
                    until=end,
                    vehicle=vehicle,
                    confidence=confidence,
                    judge=judge,
                ),
            )
            for name in names
        ]
        if to_label is not None:
            ids = found[0].deal(to_label, actor=current_actor(), dry_run=dry_run)
            if len(ids) < to_label:
                typer.echo(f"misfire: the random stream has only {len(ids)} unlabelled frames left", err=True)
            link = _link(console, names[0])
            if ids and not dry_run:
                typer.echo(f"misfire: judge them with the score hidden: {link}", err=True)
            show({"bundle": names[0], "samples": ids, "link": link}, as_json=as_json, text="\n".join(ids))
            return
        if outstanding:
            ids = found[0].outstanding()
            show({"bundle": names[0], "samples": ids}, as_json=as_json, text="\n".join(ids))
            return
        reports = [each.report() for each in found]
    show(
        {"reports": [report.to_dict() for report in reports]},
        as_json=as_json,
        text="\n\n".join(map(_table, reports)),
    )


def _link(console: str, bundle: str) -> str:
    """Returns the address of the verdict screen with all dealt frames of a bundle."""
    return f"{console.rstrip('/')}/verdicts?" + urlencode({"order": "dealt", "where": f"bundle={bundle}"})


def _table(report: Report) -> str:
    head = (report.by or "slice", "rate", "interval", "labels", "frames", "estimator", "to halve it")
    rows = [head, *(_row(rate, report) for rate in (report.whole, *report.slices))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        f"{report.bundle}, strata by {report.score or 'no score'}, "
        f"{report.confidence:.0%} intervals" + _period(report)
    ]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in report.warnings)])


def _period(report: Report) -> str:
    from misfire_fleet.console.format import utc

    start = "" if report.since is None else f", from {utc(report.since)}"
    return start + ("" if report.until is None else f", before {utc(report.until)}")


def _row(rate: SliceRate, report: Report) -> tuple[str, ...]:
    name = rate.name or "all"
    frames = f"{rate.frames} ({rate.source})"
    if rate.rate is None or rate.low is None or rate.high is None:
        return name, "-", "-", "0", frames, "-", f"label some of {rate.unlabelled}"
    return (
        name,
        f"{rate.rate:.2%}",
        f"{rate.low:.2%} .. {rate.high:.2%}",
        f"{rate.labels} ({rate.failures} failures)",
        frames,
        rate.estimator,
        _halving(rate),
    )


def _halving(rate: SliceRate) -> str:
    if rate.to_halve is None:
        return "more frames"
    if rate.to_halve > rate.unlabelled:
        return f"+{rate.to_halve} labels, {rate.unlabelled} frames left"
    return f"+{rate.to_halve} labels"
