"""Defines options that several of the vehicle's commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from misfire_runtime.choices import MqttVersion, Provider

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
BundleFolder = Annotated[Path, typer.Argument(help="Folder of the bundle.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Read this TOML file; options given here override it.")
]
BrokerUrl = Annotated[
    str | None,
    typer.Option("--broker", help="Connect to mqtts://HOST:PORT. Default: that of --config, else no broker."),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow plain mqtt:// to another machine.")]
Protocol = Annotated[
    MqttVersion | None, typer.Option("--protocol", help="Speak this version of MQTT. Default: 5.")
]
Engine = Annotated[
    Provider | None, typer.Option("--provider", help="Run the graph on this provider. Default: auto.")
]
FleetName = Annotated[str | None, typer.Option("--fleet", help="Use this fleet's name in topics.")]
VehicleName = Annotated[str | None, typer.Option("--vehicle", help="Use this vehicle's name in topics.")]
