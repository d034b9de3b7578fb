"""`misfire fleet simulate`: many vehicles against a broker, for load and fault tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from misfire_fleet.commands.options import AsJson, Insecure, show
from misfire_fleet.simulate.samples import SampleFactory, read_pictures
from misfire_fleet.simulate.simulator import FleetSimulator
from misfire_fleet.simulate.vehicle import Faults, Plan
from misfire_runtime.bundle import read_manifest
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.service.signals import stop_on_signals

Chance = Annotated[float, typer.Option(min=0, max=1)]


def simulate(
    *,
    images: Annotated[Path, typer.Option(help="Folder with JPEG or PNG files: what the vehicles see.")],
    vehicles: Annotated[int, typer.Option(min=1, max=20_000)] = 100,
    rate: Annotated[float, typer.Option(min=0.001, help="Samples per second, all vehicles together.")] = 10.0,
    seconds: Annotated[float, typer.Option(min=0, help="How long samples arrive.")] = 60.0,
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle whose calibration the scores are drawn from.")
    ] = None,
    broker: Annotated[str, typer.Option(envvar="MISFIRE_BROKER")] = "mqtt://127.0.0.1:1883",
    protocol: Annotated[str, typer.Option(help="MQTT version: 5 or 3.1.1.")] = "5",
    insecure: Insecure = False,
    fleet: Annotated[str, typer.Option(help="The fleet's name in topics.")] = "default",
    window: Annotated[int, typer.Option(min=1, help="Samples that a vehicle offers at once.")] = 4,
    max_pending: Annotated[int, typer.Option(min=1, help="Samples that a vehicle keeps.")] = 64,
    drain: Annotated[float, typer.Option(min=0, help="Seconds to wait for the last verdicts.")] = 30.0,
    seed: int = 0,
    drop: Chance = 0.0,
    repeat: Chance = 0.0,
    reorder: Chance = 0.0,
    corrupt: Chance = 0.0,
    reconnect: Annotated[float, typer.Option(min=0, max=1, help="Per second and vehicle.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Simulate a fleet of vehicles, with faults if asked for."""
    samples = SampleFactory(
        read_pictures(images), manifest=None if bundle is None else read_manifest(bundle), seed=seed
    )
    plan = Plan(
        fleet=fleet,
        vehicles=vehicles,
        rate=rate,
        duration_s=seconds,
        window=window,
        max_pending=max_pending,
        drain_s=drain,
        seed=seed,
        faults=Faults(drop, repeat, reorder, corrupt, reconnect),
    )
    simulator = FleetSimulator(
        BrokerConfig.from_url(broker, protocol=protocol, insecure=insecure), plan, samples=samples
    )
    with stop_on_signals() as stop:
        simulator.run(stop)
    result = report(simulator)
    text = "\n".join(f"{name:>18}  {value}" for name, value in result.items())
    show(result, as_json=as_json, text=text)


def report(simulator: FleetSimulator) -> dict[str, Any]:
    """The account of a run; seconds from a sample's first offer to `stored`."""
    counts = simulator.counts
    seconds = {f"p{percent}_s": counts.percentile_s(percent) for percent in (50, 95, 99)}
    return {
        "vehicles": simulator.plan.vehicles,
        "captured": counts.captured,
        "stored": counts.stored,
        "declined": counts.declined,
        "rejected": counts.rejected,
        "evicted": counts.evicted,
        "pending": simulator.pending,
        "offers": counts.offers,
        "busy": counts.busy,
        "bytes_sent": counts.bytes_sent,
        "faults": counts.faults,
        "reconnects": counts.reconnects,
        **{name: None if value is None else round(value, 4) for name, value in seconds.items()},
    }
