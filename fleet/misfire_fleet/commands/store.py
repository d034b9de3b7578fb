"""Implements `misfire fleet status|delete|hold|release|holds|retention|audit`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from misfire_fleet.actor import current_actor
from misfire_fleet.commands.options import (
    AsJson,
    DryRun,
    StoreOptions,
    moment,
    show,
    with_options,
)

if TYPE_CHECKING:
    from misfire_fleet.store.records import Deletion

Vehicle = Annotated[str | None, typer.Option("--vehicle", help="Take only this vehicle's samples.")]
Sample = Annotated[str | None, typer.Option("--sample", help="Take only the sample with this SHA-256.")]
Since = Annotated[
    str | None,
    typer.Option("--from", help="Take only what was captured at or after this time (ISO 8601, UTC)."),
]
Until = Annotated[
    str | None, typer.Option("--to", help="Take only what was captured before this time (ISO 8601, UTC).")
]
HoldName = Annotated[str, typer.Argument(help="Name of the hold.")]
Reason = Annotated[
    str, typer.Option("--reason", help="Give this reason; tombstones and the audit log keep it.")
]


@dataclass(frozen=True)
class Selection:
    """Holds the options that select samples: those that match all of them."""

    vehicle: Vehicle = None
    sample: Sample = None
    since: Since = None
    until: Until = None

    @property
    def captured_from(self) -> float | None:
        """Returns `--from` as seconds since 1970. Raises ConfigError."""
        return moment("--from", self.since)

    @property
    def captured_to(self) -> float | None:
        """Returns `--to` as seconds since 1970. Raises ConfigError."""
        return moment("--to", self.until)


@with_options(place=StoreOptions)
def status(
    *,
    place: StoreOptions,
    as_json: AsJson = False,
) -> None:
    """Print how many samples, bytes and vehicles the store holds."""
    from misfire_fleet.console.format import byte_count

    with place.open() as store:
        totals = store.totals()
    text = (
        f"{totals.samples} samples ({totals.random} random), {byte_count(totals.bytes)}, "
        f"{totals.online} of {totals.vehicles} vehicles online, {totals.declined} declined, "
        f"{totals.rejected} rejected, {totals.deleted} deleted"
    )
    show(asdict(totals), as_json=as_json, text=text)


@with_options(which=Selection, place=StoreOptions)
def delete(
    *,
    place: StoreOptions,
    which: Selection,
    reason: Reason,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Delete samples for good: what matches all that is given and is under no hold."""
    with place.open() as store:
        done = store.deletion.delete(
            vehicle=which.vehicle,
            sample=which.sample,
            captured_from=which.captured_from,
            captured_to=which.captured_to,
            reason=reason,
            actor=current_actor(),
            dry_run=dry_run,
        )
    show(asdict(done), as_json=as_json, text=_said(done))


@with_options(place=StoreOptions)
def retention(
    *,
    place: StoreOptions,
    days: Annotated[float | None, typer.Option(help="Delete what was stored more days ago.", min=0)] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="Delete the oldest above this many bytes.", min=0)
    ] = None,
    telemetry_days: Annotated[
        float | None, typer.Option(help="Forget heartbeats of more days ago.", min=0)
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Apply a retention rule once; run it from a timer. Holds are respected."""
    from misfire_runtime.clock import wall_time

    with place.open() as store:
        done = store.deletion.apply_retention(max_age_days=days, max_bytes=max_bytes, dry_run=dry_run)
        heartbeats = 0
        if telemetry_days is not None and not dry_run:
            heartbeats = store.vehicles.forget_telemetry(wall_time() - telemetry_days * 86_400)
    text = f"{_said(done)}; {heartbeats} heartbeats forgotten"
    show(asdict(done) | {"heartbeats_forgotten": heartbeats}, as_json=as_json, text=text)


@with_options(which=Selection, place=StoreOptions)
def hold(
    name: HoldName,
    *,
    place: StoreOptions,
    which: Selection,
    reason: Reason,
) -> None:
    """Keep samples from any deletion until `release NAME`; with no condition, all of them."""
    from misfire_fleet.store.records import Hold

    covered = Hold(name, reason, which.sample, which.vehicle, which.captured_from, which.captured_to)
    with place.open() as store:
        store.deletion.hold(covered, actor=current_actor())
    typer.echo(f"hold {name!r} is open")


@with_options(place=StoreOptions)
def release(name: HoldName, *, place: StoreOptions) -> None:
    """End a hold."""
    with place.open() as store:
        store.deletion.release(name, actor=current_actor())
    typer.echo(f"hold {name!r} is released")


@with_options(place=StoreOptions)
def holds(
    *,
    place: StoreOptions,
    as_json: AsJson = False,
) -> None:
    """List holds, open and released."""
    from misfire_fleet.console.format import utc

    with place.open() as store:
        listed = store.deletion.holds()
    lines = [
        f"{each.name}: {'released ' + utc(each.released_at) if each.released_at else 'open'}; {each.reason}"
        for each in listed
    ]
    show({"holds": [asdict(each) for each in listed]}, as_json=as_json, text="\n".join(lines) or "no holds")


@with_options(place=StoreOptions)
def audit(
    *,
    place: StoreOptions,
    limit: Annotated[int, typer.Option(min=1, help="List this many entries at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List who deleted, held, judged, published or else changed what, newest first."""
    from misfire_fleet.console.format import utc

    with place.open() as store:
        entries = store.deletion.audit(limit=limit)
    listed = [{"at": at, "actor": actor, "action": action, **detail} for at, actor, action, detail in entries]
    lines = [
        f"{utc(at)} {actor} {action} {json.dumps(_short(detail))}" for at, actor, action, detail in entries
    ]
    show({"audit": listed}, as_json=as_json, text="\n".join(lines) or "nothing was deleted or held")


def _short(detail: dict[str, object]) -> dict[str, object]:
    """Returns a line's detail without the numbers of the gate, which `--json` and `candidates` have."""
    summary = detail.get("summary")
    if not isinstance(summary, dict):
        return detail
    return {key: value for key, value in detail.items() if key != "summary"} | {"reasons": summary["reasons"]}


def _said(done: Deletion) -> str:
    from misfire_fleet.console.format import byte_count

    verb = "would delete" if done.dry_run else "deleted"
    return f"{verb} {done.deleted} samples ({byte_count(done.bytes)}); {done.held} kept by holds"
