"""Implements `misfire fleet export`: samples leave as files of a label tool."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from misfire_fleet.commands.options import AsJson, StoreOptions, show, with_options
from misfire_runtime.errors import ConfigError

if TYPE_CHECKING:
    from misfire_fleet.labels.content import Label
    from misfire_fleet.labels.exchange.exporting import Exported
    from misfire_fleet.labels.formats.base import ExportItem

Destination = Annotated[
    Path,
    typer.Argument(
        help="A new folder; an archive if it ends in .zip, .tar, .tar.gz or .tgz; only the labels' document "
        "if it has that document's ending, such as labels.csv."
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        help="Take only samples with KEY=VALUE; repeat it for more. Keys: vehicle, bundle, trigger, random "
        "(yes, no), from, to, percentile (0..1), labelled (yes, no), class, snapshot, selection, pinned, ids "
        "(@FILE). Default: all samples.",
    ),
]


@with_options(place=StoreOptions)
def export(
    destination: Destination,
    *,
    place: StoreOptions,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="Write this format; `misfire fleet formats` lists them. `mcap` writes a recording for "
            "Foxglove, of pictures and clips.",
        ),
    ],
    where: Where = None,
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="Write labels and fields without the pictures.")
    ] = False,
    points: Annotated[
        str, typer.Option(help="Names of a skeleton's points, separated by commas. Default: numbers.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Write samples with their labels, scores and the vehicles' answers as files of a label tool."""
    if to == "mcap":
        _as_mcap(destination, place, where or [], as_json=as_json)
        return
    from misfire_fleet.labels.exchange.exporting import export as write
    from misfire_fleet.labels.formats.base import Plan
    from misfire_fleet.labels.formats.registry import format_of
    from misfire_fleet.labels.items import export_items
    from misfire_fleet.labels.ledger import LabelLedger
    from misfire_fleet.store.where import parse_where, where_of

    form, filters = format_of(to), parse_where(where or [])
    left_out: Counter[str] = Counter()
    with place.open() as store:
        ledger = LabelLedger(store)
        count = store.count(filters)
        if not count:
            raise ConfigError("no sample of the store matches; see --where, and `misfire fleet status`")
        plan = Plan(
            classes=tuple(each.name for each in ledger.classes()),
            pictures=not no_pictures,
            points=tuple(filter(None, (name.strip() for name in points.split(",")))),
            project=place.fleet_dir.resolve().name if place.database is None else "",
        )
        # Labels that are recorded meanwhile would be on some pictures, and not on others.
        up_to = ledger.last_recorded()
        items = export_items(store, filters, pictures=plan.pictures, up_to=up_to, left_out=left_out)
        with _progress(items, count) as shown:
            done = write(shown, form, destination, plan=plan, where=where_of(filters), left_out=left_out)
    show(_numbers(done), as_json=as_json, text=_summary(done))


def _as_mcap(destination: Path, place: StoreOptions, where: list[str], *, as_json: bool) -> None:
    """Writes samples and clips as one MCAP file, whole or not at all, in the order of their ids."""
    from misfire_fleet.decoding.decoder import Decoder
    from misfire_fleet.gallery.foxglove import write_recording
    from misfire_fleet.labels.ledger import LabelLedger
    from misfire_fleet.store.where import parse_where

    if destination.suffix.lower() != ".mcap" or destination.exists():
        raise ConfigError(f"{destination}: name a new file that ends in .mcap")
    partial = destination.with_name(f".{destination.name}.partial")
    filters = parse_where(where)
    decoder = Decoder(workers=2)
    with place.open() as store, closing(decoder):
        ledger = LabelLedger(store)

        def label_of(sample: str) -> Label | None:
            record = ledger.label_of(sample)
            return None if record is None else record.label

        try:
            with partial.open("wb") as stream:
                written, left_out = write_recording(
                    store.each(filters),
                    stream,
                    read=store.read_blob,
                    packets=decoder.packets,
                    label_of=label_of,
                )
            if not written:
                raise ConfigError("no sample of the store matches; see --where, and `misfire fleet status`")
            partial.replace(destination)
        except OSError as error:
            raise ConfigError(f"{destination}: cannot be written ({error.strerror})") from error
        finally:
            partial.unlink(missing_ok=True)
    lines = [f"{destination}: {written:,} samples", *(f"left out: {each}" for each in left_out[:20])]
    numbers = {"destination": str(destination), "format": "mcap", "samples": written, "left_out": left_out}
    show(numbers, as_json=as_json, text="\n".join(lines))


def formats(*, as_json: AsJson = False) -> None:
    """List the formats of `export` and `import`, and what each can carry."""
    from misfire_fleet.labels.formats.registry import formats as all_formats

    found = sorted(all_formats(), key=lambda form: form.name)
    rows = [
        {"name": form.name, "help": form.help, "kinds": sorted(form.kinds), "answers": form.answers}
        for form in found
    ]
    lines = [
        f"{form.name:<13} {form.help}\n{'':<13} labels of kind {', '.join(sorted(form.kinds))}"
        for form in found
    ]
    show({"formats": rows}, as_json=as_json, text="\n".join(lines))


@contextmanager
def _progress(items: Iterable[ExportItem], count: int) -> Iterator[Iterable[ExportItem]]:
    """Shows a bar on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield items
        return
    with typer.progressbar(items, length=count, label="samples", file=sys.stderr) as bar:
        yield bar


def _numbers(done: Exported) -> dict[str, object]:
    written = done.written
    return {
        "destination": str(done.destination),
        "format": done.format,
        "samples": written.samples,
        "labelled": written.labelled,
        "answered": written.answered,
        "pictures": done.pictures,
        "left_out": dict(sorted(written.left_out.items())),
    }


def _summary(done: Exported) -> str:
    written = done.written
    what = "pictures" if done.pictures else "samples, without their pictures"
    lines = [
        f"{done.destination}: {written.samples:,} {what} as {done.format}; {written.labelled:,} labelled, "
        f"{written.answered:,} with the vehicle's answer"
    ]
    lines += [f"left out: {count:,} {reason}" for reason, count in sorted(written.left_out.items())]
    return "\n".join(lines)
