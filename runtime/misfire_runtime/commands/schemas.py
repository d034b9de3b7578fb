"""Implements `misfire schemas`: writes JSON Schemas of bundle and messages for programs in other languages.

docs/schemas/ has its output; a test fails if a contract changes and the files do not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_runtime.errors import MisfireError

if TYPE_CHECKING:
    from pydantic import BaseModel

DEFAULT_OUT = Path("docs/schemas")


def contracts() -> dict[str, type[BaseModel]]:
    """Returns the pydantic model of every contract by the name of its file."""
    from misfire_runtime.bundle import Manifest
    from misfire_runtime.delta.delta import DeltaManifest
    from misfire_runtime.messages import Desired, Offer, Reply, Reported, State, Telemetry

    return {
        "manifest": Manifest,
        "delta": DeltaManifest,
        "offer": Offer,
        "reply": Reply,
        "state": State,
        "telemetry": Telemetry,
        "desired": Desired,
        "reported": Reported,
    }


def schema_text(contract: type[BaseModel]) -> str:
    """Returns the JSON Schema (2020-12) of one contract, with a stable layout."""
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema.update(contract.model_json_schema())
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def schemas(
    out: Annotated[Path, typer.Option(help="Write to this folder.")] = DEFAULT_OUT,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if a file differs.")
    ] = False,
) -> None:
    """Write the JSON Schemas of bundle and messages."""
    stale = []
    for name, contract in contracts().items():
        file = out / f"{name}.schema.json"
        text = schema_text(contract)
        if check:
            if not file.is_file() or file.read_text(encoding="utf-8") != text:
                stale.append(file.name)
            continue
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        typer.echo(str(file))
    if stale:
        raise MisfireError(f"out of date: {', '.join(stale)}; run `misfire schemas`")
