"""Implements `misfire fleet lineage`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from misfire_fleet.commands.options import AsJson, StoreOptions, show, with_options

if TYPE_CHECKING:
    from misfire_fleet.datasets.lineage import Node, Trace


@with_options(place=StoreOptions)
def lineage(
    name: Annotated[
        str,
        typer.Argument(
            help="Id of a sample or run, name of a snapshot or vehicle, or NAME@VERSION of a bundle.",
            metavar="ID",
        ),
    ],
    *,
    place: StoreOptions,
    kind: Annotated[
        Literal["sample", "snapshot", "run", "bundle", "vehicle"] | None,
        typer.Option(help="What ID is. Default: whatever has that id or name."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="List this many samples at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Print what came of a sample, snapshot, run, bundle or vehicle, and where it came from."""
    from misfire_fleet.datasets.lineage import trace

    with place.open() as store:
        found = trace(store, name, kind=kind, limit=limit)
    show(asdict(found), as_json=as_json, text=_table(found))


def _table(found: Trace) -> str:
    lines = [f"{found.start.kind} {found.start.id}"]
    for title, nodes in (("came from", found.up), ("led to", found.down)):
        lines.append(f"{title}:" if nodes else f"{title}: nothing that is known")
        lines += [f"  {_line(node)}" for node in nodes]
    for what, count in sorted(found.totals.items()):
        kind, _, way = what.partition("_")
        lines.append(f"{count} {kind} {'it came from' if way == 'up' else 'it led to'}")
    return "\n".join(lines)


def _line(node: Node) -> str:
    told = {k: v for k, v in node.detail.items() if isinstance(v, (str, int, float)) and v != ""}
    shown = [f"{key} {value}" for key, value in told.items()]
    return f"{node.kind:<9}{node.id}" + (f"  ({', '.join(shown)})" if shown else "")
