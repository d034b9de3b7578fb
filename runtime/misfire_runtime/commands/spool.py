"""Implements `misfire spool ...`: inspects and empties a vehicle's spool without its model and cameras.

list, verify, export --> spool/inspection.py: read only, also while the vehicle runs, or on a copy of its disk
drain, resume --> Spool and Uplink: `drain` needs a stopped vehicle, `resume` sends a request to a running one
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_runtime import clock
from misfire_runtime.commands.options import AsJson, BrokerUrl, FleetName, Insecure, Protocol, VehicleName
from misfire_runtime.errors import ConfigError, SpoolError, SpoolInUseError

if TYPE_CHECKING:
    from misfire_runtime.config.tables import VehicleConfig
    from misfire_runtime.spool import Spool
    from misfire_runtime.spool.inspection import Inspection

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Inspect, empty and export a spool.",
)

_RESUME_S = 15.0
"""Seconds to wait for the vehicle, which looks for the request every second while it is connected."""
Folder = Annotated[
    Path | None,
    typer.Option("--spool", help="Use the spool in this folder. Default: that of --config, else spool."),
]
Config = Annotated[
    Path | None, typer.Option("--config", help="Read this TOML file of the vehicle, which names the spool.")
]


@app.command("list")
def list_samples(
    *,
    spool: Folder = None,
    config: Config = None,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="List rejected samples whose files are kept.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print what waits by priority and trigger, and what became of the rest."""
    from misfire_runtime.spool import inspection as spool_inspection

    folder = _settings(config, spool).spool.path
    if rejected:
        kept = spool_inspection.rejected(folder)
        lines = [f"{row['id']}  {row['bytes']:>9}  {row['trigger']}: {row['reason']}" for row in kept]
        typer.echo(json.dumps({"rejected": kept}) if as_json else "\n".join(lines or ["none"]))
        return
    found = spool_inspection.inspect(folder)
    if as_json:
        names = ("verdict", "reason", "samples", "bytes")
        result = {
            "counters": found.counters.model_dump(),
            "pending": [asdict(group) for group in found.pending],
            "account": [dict(zip(names, line, strict=True)) for line in found.account],
            "hold": None if found.hold is None else asdict(found.hold),
        }
        typer.echo(json.dumps(result))
        return
    for line in _page(found):
        typer.echo(line)


@app.command()
def verify(*, spool: Folder = None, config: Config = None, as_json: AsJson = False) -> None:
    """Check the hash of every pending sample, and the counters; exit 1 on any problem."""
    from misfire_runtime.spool import inspection as spool_inspection

    whole, problems = spool_inspection.verify(_settings(config, spool).spool.path)
    if as_json:
        typer.echo(json.dumps({"ok": not problems, "whole": whole, "problems": problems}))
    else:
        typer.echo("\n".join([f"{whole} pending samples are whole", *problems]))
    if problems:
        raise typer.Exit(1)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Copy to this folder.")],
    *,
    spool: Folder = None,
    config: Config = None,
    rejected: Annotated[bool, typer.Option("--rejected", help="Copy kept rejected samples, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy pending samples and their offers; they stay pending. Exit 1 if any is damaged."""
    from misfire_runtime.spool import inspection as spool_inspection

    folder = _settings(config, spool).spool.path
    copied, damaged = spool_inspection.export(folder, out, with_rejected=rejected)
    if as_json:
        typer.echo(json.dumps({"copied": copied, "damaged": damaged}))
    else:
        typer.echo("\n".join([f"{copied} samples copied to {out}", *(f"{i} is damaged" for i in damaged)]))
    if damaged:
        raise typer.Exit(1)


@app.command()
def drain(
    *,
    spool: Folder = None,
    config: Config = None,
    broker: BrokerUrl = None,
    insecure: Insecure = False,
    protocol: Protocol = None,
    fleet: FleetName = None,
    vehicle: VehicleName = None,
    as_json: AsJson = False,
) -> None:
    """Upload what waits, until nothing is pending; needs no model and no camera."""
    from misfire_runtime.service.logs import logs_to
    from misfire_runtime.service.signals import stop_on_signals
    from misfire_runtime.uplink import Uplink

    table = {"url": broker, "insecure": insecure or None, "protocol": protocol}
    settings = _settings(config, spool, broker=table, fleet=fleet, vehicle=vehicle)
    address = settings.broker.connection() if settings.broker is not None else None
    if address is None:
        raise ConfigError("broker: not set; give --broker, or a [broker] table in the configuration file")
    logs = logs_to(sys.stderr, form="json" if as_json else "plain")
    with logs, _opened(settings) as opened, stop_on_signals() as stop:
        if opened.hold is not None:
            raise SpoolError(f"uploads are held: {opened.hold.reason}; `misfire spool resume` ends that")
        uplink = Uplink(
            opened,
            fleet=settings.fleet,
            vehicle=settings.vehicle,
            broker=address,
            settings=settings.uplink,
            bandwidth=settings.bandwidth,
        )
        uplink.start()
        while not (stop.is_set() or uplink.drain(0.5) or opened.hold is not None):
            pass
        problem = uplink.problem
        uplink.close()
        counters, hold = opened.counters(), opened.hold
    text = f"{counters.stored} stored, {counters.pending} pending"
    typer.echo(json.dumps({"counters": counters.model_dump()}) if as_json else text)
    if counters.pending:
        reason = hold.reason if hold is not None else problem or "stopped"
        raise SpoolError(f"{counters.pending} samples are left in {settings.spool.path}: {reason}")


@app.command()
def resume(*, spool: Folder = None, config: Config = None, as_json: AsJson = False) -> None:
    """End a hold after a wave of rejections, and offer the kept rejected samples again."""
    from misfire_runtime.spool import RESUME

    settings = _settings(config, spool)
    try:
        with _opened(settings) as opened:
            again = opened.resume()
    except SpoolInUseError:
        taken = _ask(settings.spool.path / RESUME)
        text = "resumed by the process that has the spool open"
        if not taken:
            text = "asked the process that has the spool open; it resumes when its uplink is connected"
        typer.echo(json.dumps({"resumed": taken}) if as_json else text)
        return
    typer.echo(json.dumps({"resumed": True, "offered_again": again}) if as_json else f"{again} offered again")


def _ask(request: Path) -> bool:
    """Leaves a request for the process that uses the spool; returns False if it was not handled in time."""
    try:
        request.touch()
    except OSError as error:
        raise SpoolError(f"{request}: {error.strerror}") from error
    until = time.monotonic() + _RESUME_S
    while request.exists() and time.monotonic() < until:
        time.sleep(0.1)
    return not request.exists()


def _settings(config: Path | None, spool: Path | None, **options: Any) -> VehicleConfig:
    """Returns the configuration with its values replaced by the given options. Raises ConfigError."""
    from misfire_runtime.config.tables import VehicleConfig, read_config, validated

    read = read_config(config) if config is not None else VehicleConfig()
    data = read.model_dump(mode="python", exclude_unset=True, by_alias=True)
    for name, value in {"spool": {"path": spool}, **options}.items():
        if isinstance(value, dict):
            given = {key: part for key, part in value.items() if part is not None}
            data[name] = {**(data.get(name) or {}), **given} if given else data.get(name, {})
        elif value is not None:
            data[name] = value
    return validated(data, origin="command line")


@contextmanager
def _opened(settings: VehicleConfig) -> Iterator[Spool]:
    """Opens an existing spool. Raises SpoolError if there is none: a mistyped path must not create one."""
    from misfire_runtime.spool import Spool

    table = settings.spool
    if not (table.path / "spool.sqlite").exists() and not (table.path / "samples").is_dir():
        raise SpoolError(f"{table.path} is no spool; give --spool or --config")
    with Spool(table.path, max_bytes=table.max_bytes, reserve_bytes=table.reserve_bytes) as opened:
        yield opened


def _page(found: Inspection) -> Iterator[str]:
    yield found.counters.balance
    if found.hold is not None:
        since = clock.utc_text(found.hold.since)
        yield f"uploads are held since {since}: {found.hold.reason}; `misfire spool resume` ends that"
    for group in found.pending:
        yield f"pending: priority {group.priority}, {group.trigger}: {group.samples}, {group.bytes} bytes"
    for verdict, reason, samples, size in found.account:
        yield f"{verdict}: {reason}: {samples}" + (f", {size} bytes" if size else "")
