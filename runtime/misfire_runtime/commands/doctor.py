"""Implements `misfire doctor`: checks this machine, and prints ok, warn or fail for each check.

Only configured parts are checked: without a broker, none is connected to. The exit status is 1 if a check
failed. The checks are in `checks`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from misfire_runtime.commands.options import AsJson, Insecure


def doctor(
    *,
    config: Annotated[Path | None, typer.Option(help="Check the machine for this TOML file.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Try the model bundle in this folder.")] = None,
    broker: Annotated[str | None, typer.Option(help="Call the broker at mqtts://HOST:PORT.")] = None,
    spool: Annotated[Path | None, typer.Option(help="Check the folder where samples will wait.")] = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine for what a vehicle needs."""
    from misfire_runtime.commands.checks import Finding, examine, passed
    from misfire_runtime.commands.run import broker_options, overlay
    from misfire_runtime.config.tables import VehicleConfig, read_config
    from misfire_runtime.errors import MisfireError

    findings: list[Finding] = []
    settings = VehicleConfig()
    if config is not None:
        try:
            settings = read_config(config)
            findings.append(Finding("configuration", "ok", f"{config} is valid"))
        except MisfireError as error:
            findings.append(Finding("configuration", "fail", str(error)))
    options = {
        "bundle": bundle,
        "broker": broker_options(broker, None, insecure=insecure),
        "spool": {"path": spool} if spool else None,
    }
    try:
        settings = overlay(settings, options)
    except MisfireError as error:
        findings.append(Finding("configuration", "fail", str(error)))
    findings += examine(settings)
    if as_json:
        typer.echo(json.dumps({"ok": passed(findings), "findings": [asdict(each) for each in findings]}))
    else:
        for finding in findings:
            typer.echo(f"{finding.status:4}  {finding.check:13}  {finding.text}")
    if not passed(findings):
        raise typer.Exit(1)
