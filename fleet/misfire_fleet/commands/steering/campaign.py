"""Implements `misfire fleet campaign`: makes, estimates, starts, ends and delivers campaigns."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_fleet.actor import current_actor
from misfire_fleet.commands.options import (
    AsJson,
    BrokerOptions,
    JsonLogs,
    StoreOptions,
    show,
    with_options,
)
from misfire_runtime.errors import ConfigError

if TYPE_CHECKING:
    from misfire_fleet.campaigns.ledger import Campaign, Move, Progress

_GB = 10**9
Name = Annotated[str, typer.Argument(help="Name of the campaign.")]
Reason = Annotated[str, typer.Option(help="Say why; it is kept in the audit log.")]

campaign = typer.Typer(
    name="campaign",
    help="Make and run campaigns: which vehicles collect which frames, and how many.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@with_options(place=StoreOptions)
def create(
    name: Annotated[str, typer.Argument(help="Name of the new campaign: letters, digits, - and _.")] = "",
    *,
    place: StoreOptions,
    file: Annotated[
        Path | None, typer.Option(help="Read the campaign from this TOML file; options override it.")
    ] = None,
    vehicle: Annotated[
        list[str] | None, typer.Option(help="Mean vehicles of this name or pattern; repeat it for more.")
    ] = None,
    bundle: Annotated[
        list[str] | None, typer.Option(help="Mean vehicles that run this NAME@VERSION or pattern.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Mean vehicles with the tag KEY=VALUE (campaign tag).")
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option(help="Mean vehicles whose newest sample has KEY=VALUE.")
    ] = None,
    score: Annotated[str | None, typer.Option(help="Look at this score. Default: the bundle's own.")] = None,
    top: Annotated[float | None, typer.Option(help="Take this share of frames, 0..1, the highest.")] = None,
    level: Annotated[
        float | None, typer.Option(help="Take frames at or above this level of the calibration, 0..1.")
    ] = None,
    above: Annotated[float | None, typer.Option(help="Take frames at or above this score.")] = None,
    budget: Annotated[
        bool, typer.Option("--budget", help="Take frames above the threshold that the fleet's budget sets.")
    ] = False,
    when: Annotated[
        str | None,
        typer.Option(help='Take frames for which this holds: score.entropy > 1 and boxes.car > 2"'),
    ] = None,
    slice_: Annotated[
        list[str] | None, typer.Option("--slice", help="Take frames whose context has KEY=VALUE.")
    ] = None,
    near: Annotated[str | None, typer.Option(help="Take frames like the sample of this id.")] = None,
    similarity: Annotated[
        float | None, typer.Option(help="Cosine similarity for --near. Default: 0.9.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Take at most so many samples in all.")] = None,
    gb: Annotated[float | None, typer.Option(help="Take at most so many GB in all.")] = None,
    per_cluster: Annotated[
        int | None, typer.Option(help="Take at most so many near-duplicates of one another.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="End at this time, ISO 8601 (UTC).")] = None,
    privacy: Annotated[
        list[str] | None, typer.Option(help="Decline samples without this change, such as blur:faces.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(help="0 to 9; the highest gets a frame. Default: 5.")
    ] = None,
    note: Annotated[str | None, typer.Option(help="Say what it is for.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a campaign, as a draft that nothing is sent for until it is started."""
    from misfire_fleet.campaigns.ledger import CampaignLedger
    from misfire_fleet.campaigns.spec import parse_spec

    fields: dict[str, Any] = _read(file) if file is not None else {}
    _put(fields, (), {"name": name or None, "until": until, "privacy": privacy, "priority": priority})
    _put(fields, (), {"note": note})
    _put(fields, ("who",), {"vehicles": vehicle, "bundles": bundle})
    _put(
        fields, ("who",), {"tags": _pairs("--tag", tag, texts=True), "context": _pairs("--context", context)}
    )
    what = {
        "score": score,
        "top": top,
        "level": level,
        "above": above,
        "budget": budget or None,
        "when": when,
    }
    _put(fields, ("what",), {**what, "slice": _pairs("--slice", slice_)})
    if near is not None:
        _put(fields, ("what",), {"near": {"sample": near}})
    _put(fields, ("what", "near"), {"similarity": similarity})
    size = None if gb is None else round(gb * _GB)
    _put(fields, ("how_much",), {"samples": samples, "bytes": size, "per_cluster": per_cluster})
    spec = parse_spec(fields, origin=str(file) if file is not None else "campaign")
    with place.open() as store:
        made = CampaignLedger(store).create(spec, actor=current_actor())
    show(
        described(made),
        as_json=as_json,
        text=f"{made.name} is a draft; look at it with: campaign dry-run {made.name}",
    )


@with_options(place=StoreOptions)
def list_(*, place: StoreOptions, as_json: AsJson = False) -> None:
    """List all campaigns, the running ones first."""
    from misfire_fleet.campaigns.ledger import CampaignLedger

    with place.open() as store:
        ledger = CampaignLedger(store)
        listed = ledger.listed()
        progress = ledger.progress_of([each.name for each in listed])
        found = [(each, progress[each.name]) for each in listed]
    rows = [described(each, counts) for each, counts in found]
    lines = [
        f"{each.name:24} {each.state:8} {counts.samples:>8} samples {counts.bytes / _GB:8.3f} GB"
        f"  {each.reason}".rstrip()
        for each, counts in found
    ]
    show({"campaigns": rows}, as_json=as_json, text="\n".join(lines) or "no campaigns")


@with_options(place=StoreOptions)
def show_(name: Name, *, place: StoreOptions, as_json: AsJson = False) -> None:
    """Show a campaign, what it has brought, and what each vehicle says to it."""
    from misfire_fleet.campaigns.documents import Documents
    from misfire_fleet.campaigns.ledger import CampaignLedger

    with place.open() as store:
        ledger = CampaignLedger(store)
        found, progress = ledger.get(name), ledger.progress(name)
        rows = Documents(store).all(campaign=name)
    vehicles = {
        vehicle: {
            "version": row.version,
            "state": row.state if name in row.campaigns else "left out",
            "reason": row.left_out.get(name, "") or row.reason,
            "samples": progress.by_vehicle.get(vehicle, (0, 0))[0],
        }
        for vehicle, row in rows.items()
    }
    spec = json.dumps(found.spec.model_dump(mode="json", exclude_defaults=True), indent=2)
    lines = [f"{found.name}: {found.state} {found.reason}", spec]
    lines.append(f"{progress.samples} samples, {progress.bytes / _GB:.3f} GB, {progress.vehicles} vehicles")
    lines += [
        f"  {v:24} {row['state']:10} {row['samples']:>7}  {row['reason']}" for v, row in vehicles.items()
    ]
    result = {**described(found, progress), "vehicles": vehicles, "dry_run": found.dry_run}
    show(result, as_json=as_json, text="\n".join(lines))


@with_options(place=StoreOptions)
def dry_run(
    name: Name,
    *,
    place: StoreOptions,
    days: Annotated[float, typer.Option(min=0.1, max=365, help="Estimate so many days ahead.")] = 7.0,
    back: Annotated[float, typer.Option(min=0.1, max=90, help="From the last so many days.")] = 7.0,
    as_json: AsJson = False,
) -> None:
    """Estimate what a campaign would send and find, from recorded sketches and the random stream."""
    from misfire_fleet.campaigns.dry_run import Horizon, estimate
    from misfire_fleet.campaigns.ledger import CampaignLedger

    with place.open() as store:
        ledger = CampaignLedger(store)
        found = estimate(store, ledger.get(name).spec, Horizon(days=days, back_days=back))
        ledger.keep_dry_run(name, found.to_dict(), actor=current_actor())
    show(found.to_dict(), as_json=as_json, text=found.text)


@with_options(place=StoreOptions)
def start(name: Name, *, place: StoreOptions, reason: Reason = "", as_json: AsJson = False) -> None:
    """Start or resume a campaign; `campaign deliver` brings it to the vehicles."""
    _move(place, name, "start", reason, as_json)


@with_options(place=StoreOptions)
def pause(name: Name, *, place: StoreOptions, reason: Reason = "", as_json: AsJson = False) -> None:
    """Pause a campaign: vehicles stop collecting, and keep what they have for it."""
    _move(place, name, "pause", reason, as_json)


@with_options(place=StoreOptions)
def end(name: Name, *, place: StoreOptions, reason: Reason = "", as_json: AsJson = False) -> None:
    """End a campaign for good: what vehicles still have for it is declined."""
    _move(place, name, "end", reason, as_json)


@with_options(place=StoreOptions)
def tag_(
    vehicle: Annotated[str, typer.Argument(help="Name of the vehicle.")],
    tags: Annotated[list[str], typer.Argument(help="KEY=VALUE sets a tag, KEY= removes it.")],
    *,
    place: StoreOptions,
    as_json: AsJson = False,
) -> None:
    """Set or remove tags of a vehicle, such as region=eu, that campaigns select by."""
    from misfire_fleet.campaigns.vehicles import tag

    pairs = _pairs("tag", tags, texts=True) or {}
    changes = {key: value or None for key, value in pairs.items()}
    with place.open() as store:
        found = tag(store, vehicle, changes, actor=current_actor())
    text = " ".join(f"{key}={value}" for key, value in found.items())
    show({"vehicle": vehicle, "tags": found}, as_json=as_json, text=f"{vehicle}: {text or 'no tags'}")


@with_options(place=StoreOptions)
def budget_(
    gb_per_day: Annotated[
        str, typer.Argument(help="GB per day for all campaigns with --budget; 'none' removes it.")
    ] = "",
    *,
    place: StoreOptions,
    as_json: AsJson = False,
) -> None:
    """Show or set the fleet's budget, which becomes a threshold for each vehicle."""
    from misfire_fleet.campaigns.budget import BudgetKeeper

    with place.open() as store:
        keeper = BudgetKeeper(store)
        if gb_per_day:
            keeper.set(_bytes(gb_per_day), actor=current_actor())
        found = keeper.state()
    show(found, as_json=as_json, text="\n".join(f"{key:>16}  {value}" for key, value in found.items()))


@with_options(at=BrokerOptions, place=StoreOptions)
def deliver(
    *,
    at: BrokerOptions,
    place: StoreOptions,
    once: Annotated[bool, typer.Option("--once", help="Publish what has changed, and end.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="With --once: wait for answers, seconds.")] = 0.0,
    period: Annotated[float, typer.Option(min=1, help="Look at campaigns every so many seconds.")] = 10.0,
    as_json: JsonLogs = False,
) -> None:
    """Deliver campaigns to vehicles as desired configuration, until SIGTERM or Ctrl-C."""
    from misfire_fleet.campaigns.delivery import Deliverer
    from misfire_runtime.service.logs import logs_to
    from misfire_runtime.service.signals import stop_on_signals

    broker = at.connection()
    with (
        logs_to(sys.stderr, form="json" if as_json else "plain"),
        place.open(checked=True) as store,
        stop_on_signals() as stop,
    ):
        deliverer = Deliverer(store, broker=broker, fleet=at.fleet, period_s=period)
        if not once:
            deliverer.run(stop)
            return
        with deliverer:
            done = deliverer.step()
            deliverer.wait_for_answers(wait)
        typer.echo(json.dumps(asdict(done)))


def described(each: Campaign, progress: Progress | None = None) -> dict[str, Any]:
    """Returns a campaign as an object for JSON."""
    found: dict[str, Any] = {
        "name": each.name,
        "state": each.state,
        "reason": each.reason,
        "spec": each.spec.model_dump(mode="json", exclude_defaults=True),
        "created_by": each.created_by,
        "changed_by": each.changed_by,
    }
    if progress is not None:
        found |= {"samples": progress.samples, "bytes": progress.bytes, "vehicles": progress.vehicles}
    return found


def _move(place: StoreOptions, name: str, move: Move, reason: str, as_json: bool) -> None:
    from misfire_fleet.campaigns.ledger import CampaignLedger

    with place.open() as store:
        found = CampaignLedger(store).move(name, move, actor=current_actor(), reason=reason)
    show(described(found), as_json=as_json, text=f"{found.name} is {found.state}")


def _read(file: Path) -> dict[str, Any]:
    from misfire_runtime.toml import read_toml

    return dict(read_toml(file).values)


def _put(fields: dict[str, Any], path: Sequence[str], values: Mapping[str, Any]) -> None:
    """Puts the values that were given into a table of nested tables."""
    given = {key: value for key, value in values.items() if value is not None}
    if not given:
        return
    for name in path:
        fields = fields.setdefault(name, {})
        if not isinstance(fields, dict):
            raise ConfigError(f"{name}: expected a table")
    fields.update(given)


def _pairs(option: str, given: Sequence[str] | None, *, texts: bool = False) -> dict[str, Any] | None:
    """Returns KEY=VALUE pairs; a value that is a JSON number or truth value is one, unless `texts`."""
    if not given:
        return None
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} {text!r}: expected KEY=VALUE")
        found[key] = value if texts else _value(value)
    return found


def _value(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, (bool, int, float)) else text


def _bytes(text: str) -> int | None:
    if text == "none":
        return None
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 10**6:
        raise ConfigError(f"budget {text!r}: expected GB per day, or none")
    return round(found * _GB)


for _name, _command in (
    ("create", create),
    ("list", list_),
    ("show", show_),
    ("dry-run", dry_run),
    ("start", start),
    ("pause", pause),
    ("end", end),
    ("tag", tag_),
    ("budget", budget_),
    ("deliver", deliver),
):
    campaign.command(_name)(_command)
