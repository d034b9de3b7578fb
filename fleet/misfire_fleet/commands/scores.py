"""Implements `misfire fleet scores`: writes the scores of a store or a spool as a table, one row per sample.

store | spool --> id, group, shift, captured_at, trigger, random, bundle, [failed, loss,] every score
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_fleet.commands.options import WHERE_HELP, AsJson, StoreOptions, show, with_options

if TYPE_CHECKING:
    from misfire_fleet.store import Store
    from misfire_fleet.store.records import SampleFilter
    from misfire_runtime.messages import Offer

_MANY = 500
_TRUTH = ("failed", "loss")


@with_options(place=StoreOptions)
def scores(
    *,
    place: StoreOptions,
    out: Annotated[Path, typer.Option(help="Write to this .parquet, .csv or .npz.")],
    spool: Annotated[
        Path | None, typer.Option(help="Read this spool of a vehicle, instead of the fleet's store.")
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option(help="Take only samples that this bundle scored, NAME@VERSION. Default: all."),
    ] = None,
    where: Annotated[list[str] | None, typer.Option("--where", help=WHERE_HELP)] = None,
    verdicts: Annotated[
        bool,
        typer.Option(
            "--verdicts",
            help="Add what people said of the answers as column failed. Samples without a verdict, or with "
            "ignore, are left out.",
        ),
    ] = False,
    truth: Annotated[
        Path | None,
        typer.Option(
            help="Add what is known of the samples from this CSV: columns id, and failed or loss. Samples "
            "without a row are left out."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a table of the samples' scores, for `misfire evaluate --scores` and `misfire select`."""
    from misfire_fleet.errors import StoreError
    from misfire_fleet.store.where import parse_where
    from misfire_runtime.errors import ConfigError
    from misfire_train.judge.files.score_table import TableFacts, require_table_name, write_columns

    require_table_name(out)
    if spool is not None and (where or verdicts):
        raise ConfigError("--where and --verdicts are about a store; a spool has no verdicts")
    if truth is not None and verdicts:
        raise ConfigError("--truth and --verdicts both tell what failed; give one of them")
    known: Mapping[str, Mapping[str, float]] | None = None if truth is None else _read_truth(truth)
    if spool is not None:
        from misfire_runtime.spool.files import kept_offers

        if not (spool / "samples").is_dir():
            raise StoreError(f"{spool} is no spool: it has no folder samples")
        offers = list(_wanted(kept_offers(spool / "samples"), bundle))
    else:
        with place.open() as store:
            filters = parse_where(where or [])
            offers = list(_wanted(_stored(store, filters), bundle))
            if verdicts:
                known = _judged(store, filters)
    if known is not None:
        offers = [offer for offer in offers if offer.id in known]
    if not offers:
        raise StoreError("no sample with a score" + (f" of {bundle}" if bundle else "") + " is there")
    columns = _columns(offers, known)
    write_columns(out, columns, TableFacts(written=True))
    names = sorted({name for offer in offers for name in offer.scores})
    bundles = sorted({offer.bundle for offer in offers})
    text = f"{out}: {len(offers)} samples of {', '.join(bundles)}; scores {', '.join(names)}"
    if len(bundles) > 1:
        # Their scores are on different scales: one ranking of both would mean nothing.
        text += "\nscores of several bundles do not compare: name one with --bundle"
    show(
        {"out": str(out), "samples": len(offers), "scores": names, "bundles": bundles},
        as_json=as_json,
        text=text,
    )


def _judged(store: Store, filters: SampleFilter) -> dict[str, dict[str, float]]:
    """Returns {id: {failed: 0 or 1}} of the samples that people judged."""
    from misfire_fleet.labels.verdicts.ledger import settled_verdicts

    found = settled_verdicts(store, filters)
    return {
        each.sample: {"failed": float(each.verdict != "right")} for each in found if each.verdict != "ignore"
    }


def _stored(store: Store, filters: SampleFilter) -> Iterator[Offer]:
    """Yields the offers of the samples that match and whose rows can be read, page by page."""
    before: int | None = None
    while page := store.newest(_MANY, replace(filters, before_seq=before)):
        yield from (sample.offer for sample in page if not sample.unreadable)
        before = page[-1].seq


def _wanted(offers: Iterable[Offer], bundle: str | None) -> Iterator[Offer]:
    return (offer for offer in offers if offer.scores and bundle in (None, offer.bundle))


def _columns(offers: list[Offer], truth: Mapping[str, Mapping[str, float]] | None) -> dict[str, Any]:
    """Returns {column: [N]}; a score that a sample's bundle does not have is NaN."""
    import numpy as np

    from misfire_runtime.clock import utc_text

    # Frames of a vehicle's day look alike, and folds must not divide them.
    days = [utc_text(offer.captured_at.wall)[:10] for offer in offers]
    columns: dict[str, Any] = {
        "id": np.array([offer.id for offer in offers]),
        "group": np.array([f"{offer.vehicle}/{day}" for offer, day in zip(offers, days, strict=True)]),
        "shift": np.full(len(offers), "clean"),
        "captured_at": np.array([utc_text(offer.captured_at.wall) for offer in offers]),
        "trigger": np.array([offer.trigger.name for offer in offers]),
        # As text: a column of truth values would be read as a score.
        "random": np.array(["yes" if offer.trigger.random else "no" for offer in offers]),
        "bundle": np.array([offer.bundle for offer in offers]),
    }
    for name in _TRUTH:
        if truth is not None and all(name in truth[offer.id] for offer in offers):
            columns[name] = np.array([truth[offer.id][name] for offer in offers])
    for name in sorted({name for offer in offers for name in offer.scores}):
        columns[name] = np.array([offer.scores.get(name, np.nan) for offer in offers])
    return columns


def _read_truth(path: Path) -> dict[str, dict[str, float]]:
    """Returns {id: {failed or loss: number}}. Raises ConfigError that names file and line."""
    from misfire_runtime.errors import ConfigError

    words = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
    found: dict[str, dict[str, float]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            given = [name for name in _TRUTH if name in (rows.fieldnames or ())]
            if "id" not in (rows.fieldnames or ()) or not given:
                raise ConfigError(f"{path}: the header needs the column id, and failed or loss")
            for row in rows:
                values = {name: (row[name] or "").strip().lower() for name in given}
                numbers = {name: words.get(v, v) for name, v in values.items() if v}
                found[(row["id"] or "").strip()] = {name: float(v) for name, v in numbers.items()}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise ConfigError(f"{path}, near line {rows.line_num}: {error}") from error
    return found
