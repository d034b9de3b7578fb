"""Implements `misfire data`: lists, fetches, checks and shows data sets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_train.options import AsJson, DataFolder

if TYPE_CHECKING:
    from misfire_train.data.catalogue import Entry

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def root() -> None:
    """List, fetch, check and inspect data sets."""


@app.command("list")
def list_datasets(data: DataFolder = None, as_json: AsJson = False) -> None:
    """List every data set: task, licence, whether its files are here, size."""
    from rich.console import Console
    from rich.table import Table

    from misfire_train.data.catalogue import data_roots, entries

    rows = [_row(entry, data) for entry in entries().values()]
    if as_json:
        typer.echo(json.dumps({"roots": [str(folder) for folder in data_roots(data)], "datasets": rows}))
        return
    table = Table("name", "task", "here", "MB", "what, under which licence", box=None, header_style="bold")
    for row in rows:
        size = f"{row['bytes'] / 1e6:.1f}" if row["bytes"] else "-"
        table.add_row(row["name"], row["task"], row["state"], size, f"{row['about']} ({row['licence']})")
    console = Console()
    console.print(table)
    console.print(f"looked in: {', '.join(str(folder) for folder in data_roots(data))}", style="dim")


@app.command("fetch")
def fetch_dataset(
    name: Annotated[str, typer.Argument(help="Fetch this data set of `misfire data list`.")],
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Download a data set from its official addresses, verified by checksum."""
    from misfire_train.data.catalogue import find_entry, state

    entry = find_entry(name)
    if entry.files and state(entry, root=data, verify=True) == "present":
        fetched: list[Path] = []
    else:
        fetched = _fetch_with_bar(entry, _target(data), quiet=as_json)
    if as_json:
        typer.echo(
            json.dumps(
                {"name": name, "fetched": [str(path) for path in fetched], "state": state(entry, root=data)}
            )
        )
    elif not fetched:
        typer.echo(f"{name} is here already")
    else:
        typer.echo(f"{name}: {len(fetched)} files fetched and verified")


@app.command()
def check(
    name: Annotated[
        str, typer.Argument(help="Check this data set. Default: all that are here.", show_default=False)
    ] = "",
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Read every file and compare it with its published checksum; exit with 1 if one differs."""
    from misfire_train.data.catalogue import entries, find_entry, state

    chosen = [find_entry(name)] if name else [entry for entry in entries().values() if entry.files]
    rows = [{"name": entry.name, "state": state(entry, root=data, verify=True)} for entry in chosen]
    if as_json:
        typer.echo(json.dumps({"datasets": rows}))
    else:
        for row in rows:
            typer.echo(f"{row['name']:16} {row['state']}")
    # A missing file is an error only if the user named the data set.
    if any(row["state"] == "changed" or (name and row["state"] == "missing") for row in rows):
        raise typer.Exit(1)


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="Load this data set, or a reader and its path, such as image-folder:PATH.")
    ],
    sheet: Annotated[
        Path | None,
        typer.Option(help="Draw pictures with their labels into this PNG or JPEG file."),
    ] = None,
    count: Annotated[int, typer.Option(help="Draw this many pictures.", min=1, max=1000)] = 20,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Load a data set and print what is in it: sizes, classes, groups, input, what was skipped."""
    from misfire_train.data.loading import load_dataset

    dataset = load_dataset(name, root=data)
    if sheet is not None:
        from misfire_train.commands.contact_sheet import write_sheet

        write_sheet(dataset, sheet, count=count)
    found: dict[str, Any] = {
        "name": dataset.name,
        "task": dataset.task,
        "train": len(dataset.train),
        "test": len(dataset.test),
        "train_groups": len(set(dataset.train.groups)),
        "test_groups": len(set(dataset.test.groups)),
        "classes": list(dataset.classes),
        "input": f"{dataset.contract.width}x{dataset.contract.height} {dataset.contract.color}",
        "sha256": dataset.sha256,
        "licence": dataset.licence,
        "notes": list(dataset.notes),
    }
    if sheet is not None:
        found["sheet"] = str(sheet)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for key, value in found.items():
        if key != "notes":
            typer.echo(f"{key:13} {', '.join(value) if isinstance(value, list) else value}")
    for note in dataset.notes:
        typer.echo(f"{'note':13} {note}")


def _row(entry: Entry, data: Path | None) -> dict[str, Any]:
    from misfire_train.data.catalogue import state

    return {
        "name": entry.name + (f":{entry.argument}" if entry.argument else ""),
        "task": entry.task,
        "licence": entry.licence,
        "about": entry.about,
        "state": "reads yours" if entry.argument else state(entry, root=data),
        "bytes": entry.size_bytes,
        "files": [{"path": file.path, "url": file.url, "sha256": file.sha256} for file in entry.files],
    }


def _target(data: Path | None) -> Path:
    """Returns the folder into which files are fetched: the named one, or the cache."""
    from misfire_train.data.catalogue import cache_root

    named = data or (Path(os.environ["MISFIRE_DATA"]) if os.environ.get("MISFIRE_DATA") else None)
    return named or cache_root()


def _fetch_with_bar(entry: Entry, target: Path, *, quiet: bool) -> list[Path]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from misfire_train.data.download import fetch

    console = Console(stderr=True)
    # A bar in a log file is noise, and --json must leave standard output to the result.
    if quiet or not console.is_terminal:
        return fetch(entry, target=target)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(file: str, done: int) -> None:
            if file not in tasks:
                # The size of a file is unknown until its download starts.
                tasks[file] = bar.add_task(file, total=None)
            bar.update(tasks[file], completed=done)

        return fetch(entry, target=target, progress=report)
