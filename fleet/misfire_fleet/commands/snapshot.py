"""Implements `misfire fleet snapshot NAME|diff|verify|rebuild`, `snapshots` and `classes`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from misfire_fleet.actor import current_actor
from misfire_fleet.commands.options import AsJson, StoreOptions, show, with_options

if TYPE_CHECKING:
    from misfire_fleet.datasets.snapshots import Made, Verified
    from misfire_fleet.store.curated.snapshots import SnapshotRow

SnapshotName = Annotated[str, typer.Argument(help="Name of the snapshot.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        help="Take only samples with KEY=VALUE; repeat it for more. Keys: vehicle, bundle, trigger, "
        "random (yes, no), from, to, percentile (0..1), class, verdict, snapshot, selection, pinned, ids "
        "(@FILE). Default: all labelled samples.",
    ),
]
_SHOWN = 10


class _Group(TyperGroup):
    """Takes a first word that is no subcommand as the name of a new snapshot."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the subcommand, or `create` with all words."""
        if args and args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return "create", self.commands["create"], args


snapshot = typer.Typer(
    name="snapshot",
    cls=_Group,
    help="Make a snapshot (misfire fleet snapshot NAME [--where KEY=VALUE]...), or look at one.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)


@with_options(place=StoreOptions)
def create(
    name: SnapshotName,
    *,
    place: StoreOptions,
    where: Where = None,
    group_by: Annotated[
        Literal["vehicle", "drive", "day"],
        typer.Option(help="Keep what belongs together on one side of the split."),
    ] = "drive",
    holdout: Annotated[float, typer.Option(min=0, max=1, help="Share of groups held out of training.")] = 0.2,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of groups for testing.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the split; the same seed gives the same sides.")] = 0,
    kind: Annotated[
        Literal["class", "classes", "values", "boxes", "points", "mask"] | None,
        typer.Option(help="Take only labels of this kind. Default: all, which must have one kind."),
    ] = None,
    test_from: Annotated[
        str | None, typer.Option(help="Take the test set of this snapshot, instead of a share.")
    ] = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Freeze the test set: nothing may ever train on it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an immutable snapshot of labelled samples; the word `create` may be left out."""
    from misfire_fleet.datasets.snapshots import Plan, Snapshots
    from misfire_fleet.datasets.splits import Shares
    from misfire_fleet.store.where import parse_where

    filters = parse_where(where or [])
    plan = Plan(
        group_by=group_by,
        seed=seed,
        shares=Shares(holdout, test),
        test_from=test_from,
        frozen=frozen,
        kind=kind or "",
    )
    with place.open() as store:
        made = Snapshots(store).create(name, filters, plan=plan, actor=current_actor())
    result = made.manifest.header() | {"sha256": made.sha256, "warnings": list(made.warnings)}
    show(result, as_json=as_json, text=_made(made))


@with_options(place=StoreOptions)
def diff(
    before: Annotated[str, typer.Argument(help="Name of a snapshot.")],
    after: Annotated[str, typer.Argument(help="Name of another one.")],
    *,
    place: StoreOptions,
    as_json: AsJson = False,
) -> None:
    """Print what differs: samples added and removed, labels changed, sides changed."""
    from misfire_fleet.datasets.snapshots import Snapshots

    with place.open() as store:
        found = Snapshots(store).diff(before, after)
    lines = []
    for what in ("added", "removed", "relabelled"):
        ids = getattr(found, what)
        lines.append(f"{what}: {len(ids)}{_examples(ids)}")
    moved = [f"{key[:16]} {old} -> {new}" for key, (old, new) in found.moved.items()]
    lines.append(f"moved to another side: {len(moved)}{_examples(moved)}")
    show(asdict(found), as_json=as_json, text="\n".join(lines))


@with_options(place=StoreOptions)
def verify(
    name: SnapshotName,
    *,
    place: StoreOptions,
    deep: Annotated[bool, typer.Option("--deep", help="Read and hash every sample, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare a snapshot with the store. Exit with 1 if its manifest, a label or a sample was altered."""
    from misfire_fleet.datasets.snapshots import Snapshots

    with place.open() as store:
        found = Snapshots(store).verify(name, deep=deep)
    show(asdict(found) | {"intact": found.intact}, as_json=as_json, text=_verified(found))
    if not found.intact:
        raise typer.Exit(1)


@with_options(place=StoreOptions)
def rebuild(name: SnapshotName, *, place: StoreOptions, as_json: AsJson = False) -> None:
    """Make a snapshot's bytes again from its query and the labels of its time. Exit with 1 if they differ."""
    from misfire_fleet.datasets.snapshots import Snapshots

    with place.open() as store:
        done = Snapshots(store).rebuild(name)
    text = f"{name}: the same bytes, sha256 {done.sha256}"
    if not done.identical:
        text = f"{name}: other bytes, sha256 {done.sha256} instead of {done.expected}"
        if done.deleted:
            text += f"; {len(done.deleted)} of its samples were deleted{_examples(done.deleted)}"
    show(asdict(done), as_json=as_json, text=text)
    if not done.identical:
        raise typer.Exit(1)


for _command in (create, diff, verify, rebuild):
    snapshot.command()(_command)


@with_options(place=StoreOptions)
def snapshots(*, place: StoreOptions, as_json: AsJson = False) -> None:
    """List snapshots, oldest first."""
    from misfire_fleet.datasets.snapshots import Snapshots

    with place.open() as store:
        found = Snapshots(store).listed()
    text = "\n".join(map(_row, found)) or "no snapshots"
    show({"snapshots": [asdict(each) for each in found]}, as_json=as_json, text=text)


@with_options(place=StoreOptions)
def classes(
    *,
    place: StoreOptions,
    add: Annotated[
        list[str] | None, typer.Option("--add", help="Add this class; repeat it for more.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the classes that labels of the fleet may name, or add some."""
    from misfire_fleet.console.format import utc
    from misfire_fleet.labels.ledger import LabelLedger

    with place.open() as store:
        ledger = LabelLedger(store)
        added = ledger.add_classes(add or [], actor=current_actor())
        found = ledger.classes()
    lines = [f"{each.name}: added by {each.added_by} {utc(each.added_at)}" for each in found]
    result = {"classes": [asdict(each) for each in found], "added": added}
    show(result, as_json=as_json, text="\n".join(lines) or "no classes; add some with --add NAME")


def _made(made: Made) -> str:
    manifest = made.manifest
    groups = manifest.groups()
    sides = ", ".join(f"{count} {side} ({groups[side]} groups)" for side, count in manifest.counts().items())
    lines = [
        f"snapshot {manifest.name}: {len(manifest.members)} samples with {manifest.kind} labels: {sides}",
        f"sha256 {made.sha256}",
    ]
    if manifest.left_out:
        lines.append(f"{manifest.left_out} samples left out: they belong to a frozen test set")
    if manifest.frozen:
        lines.append("its test set is frozen: nothing may train on it")
    return "\n".join([*lines, *(f"warning: {each}" for each in made.warnings)])


def _verified(found: Verified) -> str:
    lines = [f"{found.name}: {found.samples} samples, sha256 {found.sha256}"]
    if found.altered:
        lines.append(f"altered: {found.altered}")
    for what, ids in (
        ("deleted since", found.deleted),
        ("labels lost or changed", found.lost_labels),
        ("samples lost or changed", found.damaged),
    ):
        if ids:
            lines.append(f"{what}: {len(ids)}{_examples(ids)}")
    lines.append("intact" if found.intact else "not intact")
    return "\n".join(lines)


def _row(row: SnapshotRow) -> str:
    from misfire_fleet.console.format import utc

    notes = [f"{row.gone} deleted since"] if row.gone else []
    notes += ["frozen test"] if row.frozen else []
    return (
        f"{row.name}: {row.count} samples with {row.kind} labels, {utc(row.created_at)} by {row.actor}, "
        f"sha256 {row.sha256[:16]}" + "".join(f", {note}" for note in notes)
    )


def _examples(ids: tuple[str, ...] | list[str]) -> str:
    """Returns the first few, for people; --json has all."""
    if not ids:
        return ""
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return " (" + ", ".join(each[:40] for each in ids[:_SHOWN]) + more + ")"
