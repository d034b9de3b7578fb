"""Implements `misfire labels push|pull|status`: samples to a label tool, and people's labels back."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from misfire_fleet.actor import current_actor
from misfire_fleet.commands.options import WHERE_HELP, AsJson, DryRun, StoreOptions, show, with_options

if TYPE_CHECKING:
    from misfire_fleet.labels.formats.base import ExportItem
    from misfire_fleet.labels.tools.connect import ProjectRequest
    from misfire_fleet.store.records import SampleFilter

ToolName: TypeAlias = Literal["label-studio", "cvat"]
ImagesBy: TypeAlias = Literal["upload", "console", "signed", "embed"]
KindName: TypeAlias = Literal["class", "classes", "values", "boxes", "points", "mask"]

To = Annotated[ToolName, typer.Option("--to", "--from", help="Use this label tool.")]
Url = Annotated[
    str, typer.Option("--url", envvar="MISFIRE_LABELS_URL", help="Use the tool at http[s]://HOST[:PORT].")
]
ProjectName = Annotated[str, typer.Option("--project", help="Use the project with this title or number.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="Read the token from this file. Default: LABEL_STUDIO_API_KEY or CVAT_ACCESS_TOKEN.",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", envvar="MISFIRE_INSECURE", help="Allow plain http:// to another machine."),
]
Kind = Annotated[
    KindName | None,
    typer.Option(
        "--kind",
        help="Ask for labels of this kind. Default: that of the vehicles' answers, or of the project.",
    ),
]
Where = Annotated[list[str] | None, typer.Option("--where", help=WHERE_HELP)]


@dataclass(frozen=True)
class ToolOptions:
    """Holds the options that name a project of a label tool."""

    to: To = "label-studio"
    url: Url = "http://127.0.0.1:8080"
    project: ProjectName = "misfire"
    token_file: TokenFile = None
    insecure: Insecure = False


@with_options(at=ToolOptions, place=StoreOptions)
def push(
    *,
    at: ToolOptions,
    place: StoreOptions,
    where: Where = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Send this many of the most suspicious samples at most.")
    ] = None,
    kind: Kind = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            help="Offer this class, or the name of a point or value (repeat). Default: the fleet's classes.",
        ),
    ] = None,
    images: Annotated[
        ImagesBy,
        typer.Option(
            help="Upload pictures to the tool, link to the console (--console) or to the object store "
            "(both signed, for a week), or put them into the tasks."
        ),
    ] = "upload",
    console: Annotated[
        str, typer.Option(help="Link to the console at this address, for --images console.")
    ] = "http://127.0.0.1:8000",
    update_project: Annotated[
        bool, typer.Option("--update-project", help="Add the classes that an existing project lacks.")
    ] = False,
    blind: Annotated[
        bool,
        typer.Option("--blind", help="Hide answers, scores and triggers, and send in no telling order."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send samples to a label tool, the most suspicious first; those that are there already are left out."""
    from misfire_fleet.accounts.links import SignedLinks
    from misfire_fleet.labels.tools.connect import ProjectRequest, connect_for_push

    with place.open() as store:
        request = ProjectRequest(
            sign=SignedLinks(store).query,
            tool=at.to,
            url=at.url,
            project=at.project,
            token_file=at.token_file,
            insecure=at.insecure,
            kind=kind,
            names=tuple(names or ()),
            images=images,
            console=console,
            update=update_project,
            blind=blind,
        )
        filters = _unlabelled(where)
        tool, items = connect_for_push(store, request, filters, limit=limit)
        count = store.count(filters) if limit is None else min(limit, store.count(filters))
        with _progress(items, count) as shown:
            done = tool.push(shown)
    left_out = "".join(f"\nleft out {count}: {reason}" for reason, count in done.left_out.most_common())
    text = (
        f"{tool.place}: {done.created} tasks created, {done.present} were there, {done.predictions} answers "
        f"added{left_out}"
    )
    if done.duplicates_removed or done.duplicates_kept:
        text += (
            f"\nduplicates: {done.duplicates_removed} removed, {done.duplicates_kept} kept, with work in both"
        )
    show(asdict(done) | {"place": tool.place}, as_json=as_json, text=text)


@with_options(at=ToolOptions, place=StoreOptions)
def pull(
    *,
    at: ToolOptions,
    place: StoreOptions,
    kind: Kind = None,
    add_classes: Annotated[
        bool, typer.Option("--add-classes", help="Add classes that the fleet does not have yet.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Read all labels again, not only those that changed.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Record the labels that changed since the last pull. Exits with 1 if one could not be recorded."""
    from misfire_fleet.labels.tools.connect import connect
    from misfire_fleet.labels.tools.pull import pull as pull_labels

    with place.open() as store:
        tool = connect(_request(at, kind))
        done = pull_labels(
            store,
            tool,
            add_classes=add_classes,
            everything=everything,
            dry_run=dry_run,
            actor=current_actor(),
        )
    verb = "would be recorded" if dry_run else "recorded"
    lines = [
        f"{tool.place}: {done.recorded} labels {verb}, {done.unchanged} unchanged, {done.skipped} skipped"
    ]
    if done.new_classes:
        lines.append(f"classes added: {', '.join(sorted(done.new_classes))}")
    if done.deleted or done.foreign:
        lines.append(f"left out: {done.deleted} of deleted samples, {done.foreign} tasks of no sample")
    lines += [f"not recorded: {problem}" for problem in done.problems]
    show(done.to_dict() | {"place": tool.place}, as_json=as_json, text="\n".join(lines))
    if done.problems:
        raise typer.Exit(1)


@with_options(at=ToolOptions, place=StoreOptions)
def status(
    *, at: ToolOptions, place: StoreOptions, where: Where = None, kind: Kind = None, as_json: AsJson = False
) -> None:
    """Print what the tool has, what is not pushed and what is not pulled; nothing is changed."""
    from misfire_fleet.labels.tools.connect import connect
    from misfire_fleet.labels.tools.pull import status as status_of

    with place.open() as store:
        tool = connect(_request(at, kind))
        now = status_of(store, tool, _unlabelled(where))
    has = now.tool
    until = "never" if now.pulled_until is None else now.pulled_until.isoformat(timespec="seconds")
    lines = [
        f"{tool.place}: {has.tasks} tasks, {has.annotated} annotated, {has.skipped} skipped, "
        f"{has.predictions} predictions",
        f"not pulled: {now.not_pulled} of {has.annotations} labels; last pull: {until}",
        f"not pushed: {now.not_pushed} samples; {now.pushed} have a task",
    ]
    if now.duplicates or now.foreign:
        lines.append(
            f"{now.duplicates} second tasks of a sample; {now.foreign} tasks of samples not in the store"
        )
    lines += [f"cannot be pulled: {problem}" for problem in now.problems]
    show(
        asdict(now)
        | {"place": tool.place, "pulled_until": now.pulled_until and now.pulled_until.isoformat()},
        as_json=as_json,
        text="\n".join(lines),
    )


@contextmanager
def _progress(items: Iterable[ExportItem], count: int) -> Iterator[Iterable[ExportItem]]:
    """Shows a bar on a terminal while the items are consumed."""
    if not sys.stderr.isatty():
        yield items
        return
    with typer.progressbar(items, length=count, label="samples", file=sys.stderr) as bar:
        yield bar


def _request(at: ToolOptions, kind: KindName | None) -> ProjectRequest:
    from misfire_fleet.labels.tools.connect import ProjectRequest

    return ProjectRequest(
        tool=at.to, url=at.url, project=at.project, token_file=at.token_file, insecure=at.insecure, kind=kind
    )


def _unlabelled(where: Sequence[str] | None) -> SampleFilter:
    """Returns the filter of `--where`: without a condition on labels, samples that have none."""
    from dataclasses import replace

    from misfire_fleet.store.where import parse_where

    filters = parse_where(where or ())
    labels = (filters.labelled, filters.label_class, filters.snapshot)
    return filters if any(each is not None for each in labels) else replace(filters, labelled=False)
