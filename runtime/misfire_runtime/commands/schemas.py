"""`misfire schemas`: the JSON Schemas of the bundle and of every message, for programs in other languages.

docs/schemas/ holds what this writes; a test fails when a contract changes and the files do not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from misfire_runtime.bundle import Manifest
from misfire_runtime.errors import MisfireError
from misfire_runtime.messages import Desired, Offer, Reply, Reported, State, Telemetry

DEFAULT_OUT = Path("docs/schemas")
CONTRACTS: dict[str, type[BaseModel]] = {
    "manifest": Manifest,
    "offer": Offer,
    "reply": Reply,
    "state": State,
    "telemetry": Telemetry,
    "desired": Desired,
    "reported": Reported,
}


def schema_text(contract: type[BaseModel]) -> str:
    """The JSON Schema (2020-12) of one contract, with a stable layout."""
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema.update(contract.model_json_schema())
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def schemas(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = DEFAULT_OUT,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where a file differs.")] = False,
) -> None:
    """Write the JSON Schemas of bundle and messages."""
    stale = []
    for name, contract in CONTRACTS.items():
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
