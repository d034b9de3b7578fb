"""`misfire fleet collect`: one collector as a program, with its metrics, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from misfire_fleet.collector import Collector
from misfire_fleet.collector.health.endpoint import MetricsEndpoint
from misfire_fleet.collector.malloc import limit_heaps
from misfire_fleet.collector.settings import CollectorSettings
from misfire_fleet.commands.options import (
    DEFAULT_DIR,
    BlobsUrl,
    BrokerUrl,
    CaFile,
    CertFile,
    DatabaseUrl,
    FleetDir,
    FleetName,
    Insecure,
    KeyFile,
    PasswordFile,
    Protocol,
    open_store,
)
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.service.stopping import stop_on_signals
from misfire_runtime.toml import TomlFile, read_toml


def collect(
    *,
    broker: BrokerUrl = "mqtt://127.0.0.1:1883",
    fleet: FleetName = "default",
    fleet_dir: FleetDir = DEFAULT_DIR,
    database: DatabaseUrl = None,
    blobs: BlobsUrl = None,
    name: Annotated[str | None, typer.Option(help="Unique among collectors. Default: generated.")] = None,
    protocol: Protocol = "5",
    insecure: Insecure = False,
    config: Annotated[Path | None, typer.Option(help="TOML file of collector settings.")] = None,
    group: Annotated[
        str | None,
        typer.Option(
            envvar="MISFIRE_GROUP", help="Secret name of the collectors' group. Default: that of --config."
        ),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve /metrics and /healthz here; 0 takes a free port.")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address of the metrics port.")] = "127.0.0.1",
    ca_file: CaFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
    password_file: PasswordFile = None,
) -> None:
    """Take uploads from vehicles and store them, until SIGTERM or Ctrl-C."""
    limit_heaps()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    settings = read_settings(config, group=group)
    address = BrokerConfig.from_url(
        broker,
        protocol=protocol,
        insecure=insecure,
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
        password_file=password_file,
    )
    with open_store(fleet_dir, database, blobs, checked=True) as store, stop_on_signals() as stop:
        collector = Collector(store, broker=address, fleet=fleet, name=name, settings=settings)
        endpoint = None
        if metrics_port is not None:
            endpoint = MetricsEndpoint(collector, host=metrics_host, port=metrics_port)
            typer.echo(f"metrics at http://{metrics_host}:{endpoint.port}/metrics", err=True)
        try:
            collector.run(stop)
        finally:
            if endpoint is not None:
                endpoint.close()
        typer.echo(json.dumps(summary(collector)))


def read_settings(path: Path | None, *, group: str | None = None) -> CollectorSettings:
    """Settings from a TOML file, or the defaults; `group` overrides its own.

    Raises ConfigError with file, line, key and expected value.
    """
    file = TomlFile({}, "", "options") if path is None else read_toml(path)
    return file.check(CollectorSettings, file.values if group is None else {**file.values, "group": group})


def summary(collector: Collector) -> dict[str, Any]:
    """Verdicts by kind, and bytes, since this collector's start."""
    verdicts: dict[str, int] = {}
    for metric in collector.metrics.verdicts.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                kind = sample.labels["verdict"]
                verdicts[kind] = verdicts.get(kind, 0) + int(sample.value)
    return {"collector": collector.name, "verdicts": verdicts, "open_transfers": len(collector.transfers)}
