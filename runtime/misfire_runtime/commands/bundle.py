"""Implements `misfire bundle verify` and `misfire bundle inspect`.

Both read the manifest and hash the files; neither loads the graph, so both work without an engine.
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
def verify(bundle: BundleFolder, as_json: AsJson = False) -> None:
    """Check every file against the manifest. Exit with 1 if one is changed, missing or extra."""
    from misfire_runtime.bundle import read_manifest, verify_files

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
