"""Implements `misfire fleet import`: labels come back from files of a label tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from misfire_fleet.actor import current_actor
from misfire_fleet.commands.options import AsJson, StoreOptions, with_options
from misfire_runtime.errors import ConfigError

if TYPE_CHECKING:
    from misfire_fleet.labels.exchange.importing import Imported

_SHOWN = 20
"""Problems on the terminal; if there are more, all of them go to a file."""


@with_options(place=StoreOptions)
def import_(
    path: Annotated[Path, typer.Argument(help="Read labels from this folder, file or archive.")],
    *,
    place: StoreOptions,
    form: Annotated[
        str | None, typer.Option("--from", help="Its format. Default: recognised by its content.")
    ] = None,
    kind: Annotated[
        Literal["class", "classes", "values", "boxes", "points", "mask"] | None,
        typer.Option(
            help="Kind of its labels, if the file does not say it. Default: that of the store's labels."
        ),
    ] = None,
    annotator: Annotated[
        str, typer.Option(help="Who made the labels, if the file does not say. Default: nobody is named.")
    ] = "",
    add_classes: Annotated[
        bool, typer.Option("--add-classes", help="Add classes that the fleet does not have.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Record what is right, and leave out what is wrong.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check, and record nothing.")] = False,
    problems: Annotated[
        Path | None,
        typer.Option(help="List what is wrong in this file. Default: NAME.problems.txt here, if it is long."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Record labels from files; if anything is wrong, nothing is recorded and all of it is listed."""
    from misfire_fleet.labels.exchange.importing import Wish, import_labels
    from misfire_fleet.labels.formats.registry import format_of

    wish = Wish(
        form=None if form is None else format_of(form),
        kind=kind,
        annotator=annotator,
        add_classes=add_classes,
        skip_bad=skip_bad,
        dry_run=dry_run,
    )
    with place.open() as store:
        found = import_labels(store, path, wish=wish, actor=current_actor())
    listed, differ = found.problems(), list(found.conflicts)
    long = max(len(listed), len(differ)) > _SHOWN
    file = problems or (Path(f"{path.resolve().name}.problems.txt") if long else None)
    if file is not None and (listed or differ):
        _write(file, [*listed, *differ])
    if as_json:
        typer.echo(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        typer.echo(_summary(found, listed, file, dry_run=dry_run))
    if listed and not (found.added.written or (skip_bad and not dry_run)):
        raise typer.Exit(1)


def _beginning(word: str, listed: list[str], file: Path | None) -> list[str]:
    more = [f"{word}: {len(listed):,} in all; see {file}"] if len(listed) > _SHOWN else []
    return [*(f"{word}: {line}" for line in listed[:_SHOWN]), *more]


def _write(file: Path, listed: list[str]) -> None:
    try:
        # A name from a file may hold half a character.
        text = "".join(f"{line}\n" for line in listed)
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{file}: the list of problems cannot be written ({error.strerror})") from error


def _summary(found: Imported, listed: list[str], file: Path | None, *, dry_run: bool) -> str:
    added = found.added
    verb = "recorded" if added.written else "would be recorded"
    lines = [
        f"{found.format}: {found.seen}; {found.labels:,} labels",
        f"{verb}: {added.recorded:,} new, {added.unchanged:,} were known already"
        + (f", {found.scaled:,} scaled to the size of the stored picture" if found.scaled else ""),
    ]
    if added.new_classes:
        lines.append(f"classes added: {', '.join(added.new_classes)}")
    lines += _beginning("differs", list(found.conflicts), file)
    if listed:
        lines += _beginning("wrong", listed, file)
        if not added.written:
            lines.append("nothing was recorded" + ("" if dry_run else ": mend the file, or use --skip-bad"))
        if added.unknown_classes:
            lines.append("--add-classes adds the classes that the fleet does not have")
    elif not added.written:
        lines.append("nothing was recorded: this was a dry run")
    return "\n".join(lines)
