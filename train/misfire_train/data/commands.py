"""`misfire data`: which data sets there are, whether they are here, and how to get them."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from misfire_train.data.catalogue import Entry, data_roots, entries, find_entry, state

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
DATA_OPTION = typer.Option(
    None, "--data", help="Folder of the data sets; else MISFIRE_DATA, else the usual places."
)
JSON_OPTION = typer.Option(False, "--json", help="Print one JSON object.")


def _row(entry: Entry, *, root: Path | None, verify: bool) -> dict[str, object]:
    where = state(entry, root=root, verify=verify)
    return {
        "name": entry.name + (f":{entry.argument}" if entry.argument else ""),
        "task": entry.task,
        "licence": entry.licence,
        "about": entry.about,
        "state": "reads yours" if entry.argument else where,
        "bytes": entry.size_bytes,
    }


@app.command("list")
def list_datasets(data: Path | None = DATA_OPTION, as_json: bool = JSON_OPTION) -> None:
    """Every data set: task, licence, whether its files are here, size."""
    rows = [_row(entry, root=data, verify=False) for entry in entries().values()]
    if as_json:
        typer.echo(json.dumps({"roots": [str(root) for root in data_roots(data)], "datasets": rows}))
        return
    table = Table("name", "task", "state", "MB", "about", "licence", box=None, header_style="bold")
    for row in rows:
        size = row["bytes"]
        megabytes = f"{size / 1e6:.1f}" if isinstance(size, int) and size else "-"
        table.add_row(
            *(str(row[key]) for key in ("name", "task", "state")),
            megabytes,
            str(row["about"]),
            str(row["licence"]),
        )
    Console().print(table)


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
