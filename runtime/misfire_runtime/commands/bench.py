"""Implements `misfire bench BUNDLE`, which measures the cost of a bundle's scores with `latency`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from misfire_runtime.choices import Provider
from misfire_runtime.commands.options import AsJson, BundleFolder


def bench(
    bundle: BundleFolder,
    *,
    source: Annotated[
        Path | None, typer.Option(help="Run on the pictures in this folder. Default: the golden frames.")
    ] = None,
    provider: Annotated[Provider, typer.Option(help="Run the graph on this provider.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Use this many threads of the CPU provider.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Run this many frames per call.")] = 1,
    rounds: Annotated[int, typer.Option(min=10, help="Call each graph this many times.")] = 300,
    as_json: AsJson = False,
) -> None:
    """Measure what a bundle's scores cost."""
    from misfire_runtime.bundle import Bundle
    from misfire_runtime.commands.latency import load_frames, measure
    from misfire_runtime.engines.base import EngineOptions

    opened = Bundle.open(bundle)
    options = EngineOptions(provider=provider, threads=threads)
    result = measure(opened, options=options, frames=load_frames(opened, source), batch=batch, rounds=rounds)
    typer.echo(json.dumps(result, indent=2) if as_json else describe(result))


def describe(result: dict[str, Any]) -> str:
    """Returns the measurement as a table for a person."""
    lines = [
        f"{result['bundle']} on {result['provider']}, batch {result['batch']}, {result['rounds']} calls each"
    ]
    for name, values in result["latency_ms"].items():
        memory = result["memory_bytes"].get(name)
        size = f"  {memory / 1e6:7.1f} MB" if memory else ""
        timing = "  ".join(f"{key} {value:8.3f} ms" for key, value in values.items())
        lines.append(f"{name:7} {timing}{size}")
    if "ratio" in result:
        lines.append(f"scores cost {100 * (result['ratio'] - 1):+.1f} % of the median")
    return "\n".join([*lines, result["note"]] if result["note"] else lines)
