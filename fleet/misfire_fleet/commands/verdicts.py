"""Implements `misfire fleet verdicts`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from misfire_fleet.commands.options import AsJson, StoreOptions, show, with_options

if TYPE_CHECKING:
    from misfire_fleet.labels.verdicts.agreement import Agreement
    from misfire_fleet.labels.verdicts.counting import Person, Summary


@with_options(place=StoreOptions)
def verdicts(
    *,
    place: StoreOptions,
    bundle: Annotated[
        str | None, typer.Option("--bundle", help="Count only verdicts on this NAME@VERSION. Default: all.")
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", min=0.5, max=0.999, help="Confidence of the intervals.")
    ] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Count people's verdicts by bundle and person, and how far two people agree."""
    from misfire_fleet.labels.verdicts.counting import summary

    with place.open() as store:
        found = summary(store, bundle=bundle, confidence=confidence)
    show(found.to_dict(), as_json=as_json, text=_text(found))


def _text(found: Summary) -> str:
    if not found.samples:
        return "no verdicts yet; give them on the console's page Verdicts"
    lines = [f"{found.samples} samples have a verdict"]
    for bundle, counts in found.bundles.items():
        total = sum(counts.values())
        parts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        lines.append(f"{bundle}: {total} samples, {parts}")
    lines += [_person(each) for each in found.people]
    lines += [_agreement(each) for each in found.agreement]
    if not found.agreement:
        lines.append("agreement: no sample was judged by two people yet")
    return "\n".join(lines)


def _person(each: Person) -> str:
    shared = each.verdicts - each.shown
    time = "" if each.median_s is None else f", {each.median_s:.1f} s each (median)"
    return f"{each.name}: {each.shown} judged, {shared} shared with near-duplicates{time}"


def _agreement(each: Agreement) -> str:
    who = " and ".join(each.people)
    text = (
        f"{each.bundle}, {who}: {each.agreed} of {each.samples} alike, "
        f"{each.share:.1%} ({each.share_low:.1%} .. {each.share_high:.1%})"
    )
    if each.kappa is None:
        return f"{text}; kappa is not defined, since both gave one verdict only"
    return f"{text}; Cohen's kappa {each.kappa:.2f} ({each.kappa_low:.2f} .. {each.kappa_high:.2f})"
