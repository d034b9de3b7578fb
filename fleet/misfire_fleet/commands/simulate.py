"""Implements `misfire fleet simulate`: runs many simulated vehicles, for load and fault tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_fleet.commands.options import AsJson, BrokerUrl, FleetName, Insecure, Protocol, show

if TYPE_CHECKING:
    from misfire_fleet.simulate.simulator import FleetSimulator


def simulate(
    *,
    images: Annotated[Path, typer.Option(help="Let vehicles see the JPEG and PNG files in this folder.")],
    vehicles: Annotated[int, typer.Option(min=1, max=20_000, help="Simulate this many vehicles.")] = 100,
    rate: Annotated[
        float, typer.Option(min=0.001, help="Capture this many samples per second, all vehicles together.")
    ] = 10.0,
    seconds: Annotated[float, typer.Option(min=0, help="Capture samples for this many seconds.")] = 60.0,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Draw scores from this bundle's calibration. Default: uniform percentiles."),
    ] = None,
    broker: BrokerUrl = "mqtt://127.0.0.1:1883",
    protocol: Protocol = "5",
    insecure: Insecure = False,
    fleet: FleetName = "default",
    window: Annotated[int, typer.Option(min=1, help="Offer this many samples of a vehicle at once.")] = 4,
    max_pending: Annotated[
        int, typer.Option(min=1, help="Keep this many samples on a vehicle; more evict the oldest.")
    ] = 64,
    drain: Annotated[float, typer.Option(min=0, help="Wait this many seconds for the last verdicts.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    drop: Annotated[float, typer.Option(min=0, max=1, help="Lose this share of messages.")] = 0.0,
    repeat: Annotated[float, typer.Option(min=0, max=1, help="Send this share of messages twice.")] = 0.0,
    reorder: Annotated[float, typer.Option(min=0, max=1, help="Delay this share of messages.")] = 0.0,
    corrupt: Annotated[float, typer.Option(min=0, max=1, help="Damage this share of chunks.")] = 0.0,
    reconnect: Annotated[
        float, typer.Option(min=0, max=1, help="Reconnect with this probability per second and vehicle.")
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Simulate a fleet of vehicles, with faults if asked for."""
    from misfire_fleet.simulate.samples import SampleFactory, read_pictures
    from misfire_fleet.simulate.simulator import FleetSimulator
    from misfire_fleet.simulate.vehicle import Faults, Plan
    from misfire_runtime.bundle import read_manifest
    from misfire_runtime.mqtt.client import BrokerConfig
    from misfire_runtime.service.signals import stop_on_signals

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
    """Returns the counts of a run, and percentiles of the seconds from a first offer to `stored`."""
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
