"""Implements `misfire fleet collect`: runs a collector and its metrics until SIGTERM or Ctrl-C."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_fleet.commands.options import (
    BrokerOptions,
    JsonLogs,
    StoreOptions,
    with_options,
)

if TYPE_CHECKING:
    from misfire_fleet.collector import Collector
    from misfire_fleet.collector.settings import CollectorSettings


@with_options(at=BrokerOptions, place=StoreOptions)
def collect(
    *,
    at: BrokerOptions,
    place: StoreOptions,
    name: Annotated[
        str | None, typer.Option(help="Use this name, unique among collectors. Default: generated.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Read the collector's settings from this TOML file.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            envvar="MISFIRE_GROUP",
            help="Share offers in the group of this secret name. Default: that of --config.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Serve /metrics and /healthz on this port; 0 takes a free one. Default: none."),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Listen on this address for --metrics-port.")
    ] = "127.0.0.1",
    json_logs: JsonLogs = False,
) -> None:
    """Take uploads from vehicles and store them, until SIGTERM or Ctrl-C."""
    from misfire_fleet.collector import Collector
    from misfire_fleet.collector.endpoint import MetricsEndpoint
    from misfire_fleet.collector.malloc import limit_heaps
    from misfire_runtime.service.logs import logs_to
    from misfire_runtime.service.signals import stop_on_signals

    limit_heaps()  # before any thread starts
    settings = read_settings(config, group=group)
    broker = at.connection()
    with (
        logs_to(sys.stderr, form="json" if json_logs else "plain"),
        place.open(checked=True) as store,
        stop_on_signals() as stop,
    ):
        collector = Collector(store, broker=broker, fleet=at.fleet, name=name, settings=settings)
        # Before the collector runs, so that /healthz answers while it still connects.
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
    """Reads a collector's settings.

    Args:
        path: a TOML file; None uses the defaults.
        group: overrides the key `group` of the file.

    Raises:
        ConfigError: a value is invalid; the message has file, line, key and the expected value.
    """
    from misfire_fleet.collector.settings import CollectorSettings
    from misfire_runtime.toml import TomlFile, read_toml

    file = TomlFile({}, "", "options") if path is None else read_toml(path)
    return file.check(CollectorSettings, file.values if group is None else {**file.values, "group": group})


def summary(collector: Collector) -> dict[str, Any]:
    """Returns the object that the command prints at its end: verdicts by kind, and open transfers."""
    verdicts: dict[str, int] = {}
    for metric in collector.metrics.verdicts.collect():
        for sample in metric.samples:
            # prometheus_client adds a sample `_created` to each counter.
            if sample.name.endswith("_total"):
                kind = sample.labels["verdict"]
                verdicts[kind] = verdicts.get(kind, 0) + int(sample.value)
    return {"collector": collector.name, "verdicts": verdicts, "open_transfers": len(collector.transfers)}
