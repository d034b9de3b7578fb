"""Implements `misfire fleet gate`, `candidates` and `publish`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from misfire_fleet.actor import current_actor
from misfire_fleet.commands.options import AsJson, StoreOptions, show, with_options

if TYPE_CHECKING:
    from misfire_fleet.candidates.publishing import Candidate

BundleName = Annotated[
    str, typer.Argument(help="Folder of the bundle, or NAME@VERSION of a published one.", metavar="CANDIDATE")
]


@with_options(place=StoreOptions)
def gate(
    candidate: BundleName,
    *,
    against: Annotated[
        str,
        typer.Option(
            metavar="INCUMBENT",
            help="Compare with this bundle: a folder, or NAME@VERSION of a published one.",
        ),
    ],
    snapshot: Annotated[str, typer.Option(help="Judge on the frozen test side of this snapshot.")],
    place: StoreOptions,
    html: Annotated[Path | None, typer.Option(help="Write a report to this file.")] = None,
    tolerance: Annotated[
        float, typer.Option(help="Loss of the task metric that must be excluded, as a share.")
    ] = 0.02,
    budget: Annotated[
        float | None,
        typer.Option(help="Share of frames that is uploaded. Default: as the bundle declares, or 0.05."),
    ] = None,
    min_frames: Annotated[
        int, typer.Option(help="Judge nothing with fewer frames, and compare no slice with fewer.")
    ] = 30,
    max_gap: Annotated[
        float | None,
        typer.Option(help="Fail if the task metric differs by more between slices. Default: only shown."),
    ] = None,
    max_slowdown: Annotated[
        float, typer.Option(help="Fail if a frame takes this many times as long.")
    ] = 1.25,
    max_growth: Annotated[float, typer.Option(help="Fail if the graph is this many times as large.")] = 2.0,
    replicates: Annotated[int, typer.Option(help="Number of bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    task: Annotated[str, typer.Option(help="module:task of a custom task.")] = "",
    as_json: AsJson = False,
) -> None:
    """Judge a candidate against the incumbent on a frozen test set. Exit with 1 if it does not pass."""
    from misfire_fleet.candidates.gate import judge_candidate
    from misfire_fleet.candidates.publishing import bundle_folder
    from misfire_fleet.candidates.rules import Rules
    from misfire_fleet.candidates.summary import describe
    from misfire_train.progress import Reporter

    rules = Rules(
        tolerance=tolerance,
        budget=budget,
        min_frames=min_frames,
        max_gap=max_gap,
        max_slowdown=max_slowdown,
        max_growth=max_growth,
        replicates=replicates,
        seed=seed,
    )
    with (
        place.open() as store,
        bundle_folder(store, candidate) as new,
        bundle_folder(store, against) as old,
    ):
        verdict = judge_candidate(
            new,
            old,
            store=store,
            snapshot=snapshot,
            html=html,
            rules=rules,
            task=task,
            progress=Reporter().line,
        )
    show(verdict.to_dict(), as_json=as_json, text=describe(verdict))
    if not verdict.passed:
        raise typer.Exit(1)


@with_options(place=StoreOptions)
def candidates(*, place: StoreOptions, as_json: AsJson = False) -> None:
    """List judged and published bundles with their newest verdicts, newest first."""
    from misfire_fleet.candidates.publishing import listed

    with place.open() as store:
        found = listed(store)
    text = "\n".join(line for each in found for line in _lines(each)) or "no candidates"
    show({"candidates": [asdict(each) for each in found]}, as_json=as_json, text=text)


@with_options(place=StoreOptions)
def publish(
    candidate: BundleName,
    *,
    place: StoreOptions,
    force: Annotated[
        bool, typer.Option("--force", help="Publish although it did not pass or was never judged.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why, for the audit log; --force needs it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Keep a bundle that passed the gate as published: its archive beside the blobs, which never changes."""
    from misfire_fleet.candidates.publishing import bundle_folder, publish_bundle

    with place.open() as store, bundle_folder(store, candidate) as folder:
        row = publish_bundle(store, folder, actor=current_actor(), force=force, reason=reason)
    text = f"{row.bundle} is published: {row.bytes} bytes, sha256 {row.sha256}"
    show(asdict(row), as_json=as_json, text=text + (f"\nforced: {row.reason}" if row.forced else ""))


def _lines(each: Candidate) -> list[str]:
    from misfire_fleet.console.format import utc

    state = "not published"
    if each.published is not None:
        state = f"published {utc(each.published.at)} by {each.published.actor}"
        state += f", forced: {each.published.reason}" if each.published.forced else ""
    lines = [f"{each.label}  sha256 {each.sha256[:16]}  {state}"]
    for verdict in each.verdicts[:1]:
        word = "passed" if verdict.passed else "not passed"
        when = f"{utc(verdict.at)} by {verdict.actor}"
        lines.append(f"  {word} against {verdict.incumbent} on {verdict.snapshot}, {when}")
        lines += [f"    {reason}" for reason in verdict.summary.get("reasons", ())]
    return lines if each.verdicts else [*lines, "  never judged"]
