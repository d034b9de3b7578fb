"""Implements `misfire fleet simulate`: runs many simulated vehicles, or fills a store with a drawn fleet."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_fleet.commands.options import (
    AsJson,
    BrokerUrl,
    FleetName,
    Insecure,
    Protocol,
    StoreOptions,
    show,
    with_options,
)
from misfire_runtime.errors import ConfigError

if TYPE_CHECKING:
    from misfire_fleet.simulate.simulator import FleetSimulator


@with_options(place=StoreOptions)
def simulate(
    *,
    place: StoreOptions,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Let vehicles see the JPEG and PNG files in this folder. "
            "Needed with a broker. Default with --seed-store: drawn streets."
        ),
    ] = None,
    vehicles: Annotated[
        int | None,
        typer.Option(
            min=1, max=20_000, help="Simulate this many vehicles. Default: 100, with --seed-store 200."
        ),
    ] = None,
    seed_store: Annotated[
        bool,
        typer.Option(
            "--seed-store", help="Fill a new store with days of a drawn fleet, instead of using a broker."
        ),
    ] = False,
    samples: Annotated[
        int, typer.Option(min=1, max=2_000_000, help="With --seed-store: store this many samples.")
    ] = 100_000,
    days: Annotated[
        int, typer.Option(min=1, max=60, help="With --seed-store: spread them over this many days.")
    ] = 7,
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
    """Simulate a fleet of vehicles, with faults if asked for, or fill a store with one."""
    if seed_store:
        _seed(place, vehicles or 200, samples, days=days, seed=seed, images=images, as_json=as_json)
        return
    if images is None:
        raise ConfigError("--images FOLDER is missing: simulated vehicles upload its pictures")
    from misfire_fleet.simulate.samples import SampleFactory, read_pictures
    from misfire_fleet.simulate.simulator import FleetSimulator
    from misfire_fleet.simulate.vehicle import Faults, Plan
    from misfire_runtime.bundle import read_manifest
    from misfire_runtime.mqtt.client import BrokerConfig
    from misfire_runtime.service.signals import stop_on_signals

    factory = SampleFactory(
        read_pictures(images), manifest=None if bundle is None else read_manifest(bundle), seed=seed
    )
    plan = Plan(
        fleet=fleet,
        vehicles=vehicles or 100,
        rate=rate,
        duration_s=seconds,
        window=window,
        max_pending=max_pending,
        drain_s=drain,
        seed=seed,
        faults=Faults(drop, repeat, reorder, corrupt, reconnect),
    )
    simulator = FleetSimulator(
        BrokerConfig.from_url(broker, protocol=protocol, insecure=insecure), plan, samples=factory
    )
    with stop_on_signals() as stop:
        simulator.run(stop)
    result = report(simulator)
    text = "\n".join(f"{name:>18}  {value}" for name, value in result.items())
    show(result, as_json=as_json, text=text)


def _seed(
    place: StoreOptions,
    vehicles: int,
    samples: int,
    *,
    days: int,
    seed: int,
    images: Path | None,
    as_json: bool,
) -> None:
    """Fills a new store and prints what was written."""
    import time

    from misfire_fleet.simulate.seeding.plan import SeedPlan
    from misfire_fleet.simulate.seeding.seeding import seed_store
    from misfire_runtime.service.signals import stop_on_signals

    def progress(done: int, of: int) -> None:
        typer.echo(f"\r{done:,} of {of:,} samples", nl=False, err=True)

    began = time.monotonic()
    plan = SeedPlan(vehicles=vehicles, samples=samples, days=days, seed=seed)
    with place.open(checked=True) as store, stop_on_signals() as stop:
        done = seed_store(store, plan, images=images, stop=stop, progress=progress)
    typer.echo("", err=True)
    result = asdict(done) | {"seconds": round(time.monotonic() - began, 1)}
    text = "\n".join(f"{name:>18}  {value:,}" for name, value in result.items())
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
