"""Implements `misfire bundle verify`, `misfire bundle inspect` and `misfire bundle apply-delta`.

They read manifests and hash files; none loads the graph, so all work without an engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from misfire_runtime.commands.options import AsJson, BundleFolder

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Inspect and verify bundles."
)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle, or of a delta.")],
    base: Annotated[
        Path | None, typer.Option(help="Of a delta: check also that it fits the bundle in this folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every file against the manifest. Exit with 1 if one is changed, missing or extra."""
    from misfire_runtime.bundle import read_manifest, verify_files
    from misfire_runtime.delta import is_delta
    from misfire_runtime.errors import ConfigError

    if is_delta(bundle):
        _verify_delta(bundle, base, as_json=as_json)
        return
    if base is not None:
        raise ConfigError(f"--base is for deltas; {bundle} is none")
    manifest = read_manifest(bundle)
    problems = verify_files(bundle, manifest)
    if as_json:
        typer.echo(json.dumps({"bundle": manifest.label, "intact": not problems, "problems": problems}))
    elif problems:
        for problem in problems:
            typer.echo(problem)
    else:
        typer.echo(f"{manifest.label}: intact, {len(manifest.files)} files")
    if problems:
        raise typer.Exit(1)


def _verify_delta(path: Path, base: Path | None, *, as_json: bool) -> None:
    from misfire_runtime.bundle import Bundle
    from misfire_runtime.delta import Delta
    from misfire_runtime.errors import BundleError

    problem = None
    try:
        delta = Delta.open(path)
        if base is not None:
            delta.require_fits(Bundle.open(base))
    except BundleError as error:
        problem = str(error)
    if as_json:
        found = {"delta": str(path), "intact": problem is None, "problems": [problem] if problem else []}
        typer.echo(json.dumps(found))
    elif problem is not None:
        typer.echo(problem)
    else:
        about = delta.about
        what = "its calibration alone" if not about.tensors else f"{len(about.tensors)} tensors"
        typer.echo(
            f"{about.base.label} -> {about.result.label}: intact, {delta.bytes} bytes, "
            f"replaces {what} of {about.score}"
        )
    if problem is not None:
        raise typer.Exit(1)


@app.command("apply-delta")
def apply_delta(
    bundle: BundleFolder,
    delta: Annotated[Path, typer.Argument(help="Folder of the delta.")],
    out: Annotated[Path, typer.Option(help="Write the new bundle to this folder; it may be BUNDLE itself.")],
    as_json: AsJson = False,
) -> None:
    """Replace the failure head of a bundle by a delta. The new bundle is written whole, or not at all."""
    from misfire_runtime.delta import Delta
    from misfire_runtime.errors import BundleError

    try:
        made = Delta.open(delta).apply(bundle, out=out)
    except OSError as error:
        raise BundleError(f"{error.filename or out}: {error.strerror}; nothing was written") from error
    if as_json:
        typer.echo(json.dumps({"bundle": made.manifest.label, "path": str(out)}))
    else:
        typer.echo(f"{made.manifest.label} written to {out}")


@app.command()
def inspect(
    bundle: BundleFolder,
    html: Annotated[Path | None, typer.Option(help="Write a page with the curves to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Show what is inside: input, outputs, scores, what thresholds cost and find, parity, lineage."""
    from rich.console import Console

    from misfire_runtime.bundle import Bundle
    from misfire_runtime.commands.bundle_page import render_page
    from misfire_runtime.commands.bundle_tables import tables
    from misfire_runtime.errors import BundleError

    opened = Bundle.open(bundle)
    if html is not None:
        try:
            html.write_text(render_page(opened.manifest), encoding="utf-8")
        except OSError as error:
            raise BundleError(f"{html}: {error.strerror}") from error
    if as_json:
        typer.echo(opened.manifest.model_dump_json(indent=2))
        return
    console = Console(width=None if Console().is_terminal else 120)
    for table in tables(opened.manifest):
        console.print(table)
    if html is not None:
        console.print(f"page written to {html}")
