"""`misfire data`: which data sets there are, whether they are here, and how to get them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from misfire_train.data.catalogue import Entry, cache_root, data_roots, entries, find_entry, state
from misfire_train.data.download import fetch
from misfire_train.data.loading import load_dataset

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
DATA_OPTION = typer.Option(
    None, "--data", help="Folder of the data sets; else MISFIRE_DATA, else the user's cache."
)
JSON_OPTION = typer.Option(False, "--json", help="Print one JSON object.")


@app.callback()
def root() -> None:
    """List, fetch, check and inspect data sets."""


@app.command("list")
def list_datasets(data: Path | None = DATA_OPTION, as_json: bool = JSON_OPTION) -> None:
    """Every data set: task, licence, whether its files are here, size."""
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
    name: str = typer.Argument(..., help="One of `misfire data list`."),
    data: Path | None = DATA_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Download a data set from its official addresses, verified by checksum."""
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
    name: str = typer.Argument("", help="One data set; all that are here without."),
    data: Path | None = DATA_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Read every file and compare it with its published checksum; exit 1 where one differs."""
    chosen = [find_entry(name)] if name else [entry for entry in entries().values() if entry.files]
    rows = [{"name": entry.name, "state": state(entry, root=data, verify=True)} for entry in chosen]
    if as_json:
        typer.echo(json.dumps({"datasets": rows}))
    else:
        for row in rows:
            typer.echo(f"{row['name']:16} {row['state']}")
    if any(row["state"] == "changed" or (name and row["state"] == "missing") for row in rows):
        raise typer.Exit(1)


@app.command()
def show(
    name: str = typer.Argument(..., help="A data set, or a reader and its path: image-folder:PATH."),
    data: Path | None = DATA_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Load a data set and say what is in it: sizes, classes, groups, input, what was skipped."""
    dataset = load_dataset(name, root=data)
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
    if as_json:
        typer.echo(json.dumps(found))
        return
    for key, value in found.items():
        if key != "notes":
            typer.echo(f"{key:13} {', '.join(value) if isinstance(value, list) else value}")
    for note in dataset.notes:
        typer.echo(f"{'note':13} {note}")


def _row(entry: Entry, data: Path | None) -> dict[str, Any]:
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
    """Where to put files: the named folder, or the cache."""
    named = data or (Path(os.environ["MISFIRE_DATA"]) if os.environ.get("MISFIRE_DATA") else None)
    return named or cache_root()


def _fetch_with_bar(entry: Entry, target: Path, *, quiet: bool) -> list[Path]:
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        return fetch(entry, target=target)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(file: str, done: int) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file, total=None)
            bar.update(tasks[file], completed=done)

        return fetch(entry, target=target, progress=report)
