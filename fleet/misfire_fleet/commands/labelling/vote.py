"""Implements `misfire labels vote`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from misfire_fleet.commands.options import WHERE_HELP, AsJson, StoreOptions, show, with_options
from misfire_runtime.errors import ConfigError

if TYPE_CHECKING:
    from misfire_fleet.labels.votes.ballots import Voter
    from misfire_fleet.labels.votes.poll import Poll
    from misfire_fleet.store import Store

LIST = "to-people.txt"
JOURNAL = "ballots.jsonl"


@dataclass(frozen=True)
class EndpointOptions:
    """Holds the options of a vision model behind an OpenAI-compatible address."""

    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", help="Ask the model at http[s]://HOST[:PORT]/v1; needs --send-images."),
    ] = None
    model: Annotated[str, typer.Option("--model", help="Name of the endpoint's model.")] = "default"
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            "--temperature", min=0, max=2, help="Ask at this temperature (repeat). Default: 0 and 0.7."
        ),
    ] = None
    send_images: Annotated[
        bool,
        typer.Option(
            "--send-images", help="Allow that pictures leave this machine for --endpoint. Off by default."
        ),
    ] = False
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="Read the endpoint's key from this file.")
    ] = None
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", min=0.1, max=3600, help="Wait this many seconds for an answer.")
    ] = 60.0
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow plain http:// to another machine.")] = (
        False
    )
    price_in: Annotated[
        float, typer.Option("--price-in", min=0, help="Price of a million tokens read, for the report.")
    ] = 0.0
    price_out: Annotated[
        float, typer.Option("--price-out", min=0, help="Price of a million tokens written, for the report.")
    ] = 0.0

    def voters(self) -> list[Voter]:
        """Returns a voter for each temperature. Raises ConfigError."""
        from misfire_fleet.labels.votes.endpoint import Endpoint, EndpointVoter

        if self.endpoint is None:
            return []
        try:
            key = "" if self.api_key_file is None else self.api_key_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file {self.api_key_file}: cannot be read ({error})") from error
        place = Endpoint(
            self.endpoint,
            self.model,
            key=key,
            consent=self.send_images,
            insecure=self.insecure,
            timeout_s=self.timeout_s,
        )
        return [EndpointVoter(place, temperature=each) for each in self.temperature or (0.0, 0.7)]


@with_options(remote=EndpointOptions, place=StoreOptions)
def vote(
    *,
    remote: EndpointOptions,
    place: StoreOptions,
    bundle: Annotated[
        list[Path] | None,
        typer.Option("--bundle", help="Let this bundle's classifier or detector vote: a folder (repeat)."),
    ] = None,
    augment: Annotated[
        list[str] | None,
        typer.Option(
            "--augment",
            help="Let each bundle also vote on a changed copy: flip, zoom, shift, bright, soft (repeat).",
        ),
    ] = None,
    class_name: Annotated[
        list[str] | None,
        typer.Option(
            "--class", help="Let them choose from this class (repeat). Default: the fleet's classes."
        ),
    ] = None,
    add_classes: Annotated[
        bool, typer.Option("--add-classes", help="Add classes that the fleet does not have.")
    ] = False,
    audit: Annotated[
        float, typer.Option("--audit", min=0, max=1, help="Share of the unanimous that people label, too.")
    ] = 0.05,
    where: Annotated[list[str] | None, typer.Option("--where", help=WHERE_HELP)] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Ask about this many samples, those before included.")
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", help=f"Keep the answers ({JOURNAL}) and the list for people ({LIST}) here."),
    ] = Path("votes"),
    as_json: AsJson = False,
) -> None:
    """Let models vote on unlabelled samples: what all agree on is labelled, the rest goes to people.

    A random part of what they agree on goes to people as well, and tells how many automatic labels are wrong.
    Run it again to go on after an error, and to see what people found since.
    """
    from misfire_fleet.labels.votes.ballots import Journal
    from misfire_fleet.labels.votes.bundles import Model
    from misfire_fleet.labels.votes.poll import VoteRun, write_list
    from misfire_fleet.store.where import parse_where

    filters = parse_where(where or [])
    voters = remote.voters()
    with ExitStack() as stack:
        store = stack.enter_context(place.open())
        models = []
        for folder in bundle or []:
            models.append(Model(folder))
            stack.callback(models[-1].close)
            voters += models[-1].voters(augment or ())
        if not voters:
            raise ConfigError("no voter: give --bundle FOLDER, or --endpoint URL with --send-images")
        classes = _classes(store, class_name or (), models[0].classes if models else (), add=add_classes)
        for model in models:
            needed = 2 if model.kind == "class" else 1
            if len(set(model.classes) & set(classes)) < needed:
                raise ConfigError(
                    f"{model.label} knows fewer than {needed} of the classes: {', '.join(classes)}"
                )
        journal = Journal(out / JOURNAL)
        stack.callback(journal.close)
        poll = VoteRun(store, voters, classes, journal, audit=audit)
        report = poll.run(filters, limit=limit)
        write_list(out / LIST, report.to_people)
    show(report.to_dict() | _quality(report), as_json=as_json, text=_text(report, out, remote))


def _classes(
    store: Store, given: tuple[str, ...] | list[str], known: tuple[str, ...], *, add: bool
) -> list[str]:
    """Returns the classes to choose from. Raises ConfigError if the fleet does not have them all."""
    from misfire_fleet.labels.ledger import LabelLedger

    ledger = LabelLedger(store)
    fleet = [each.name for each in ledger.classes()]
    classes = list(dict.fromkeys(given)) or fleet or list(known)
    new = [name for name in classes if name not in fleet]
    if new and not add:
        raise ConfigError(
            f"the fleet has no class {', '.join(map(repr, new[:8]))}; add them with --add-classes"
        )
    if new:
        ledger.add_classes(new, actor="vote")
    return classes


def _quality(report: Poll) -> dict[str, dict[str, float] | None]:
    """Returns the share of wrong automatic labels with its interval, None before people have checked one."""
    # The estimator is imported by the command: labels are below the failure rate in the layers.
    from misfire_fleet.truth.intervals import wilson

    if not report.checked:
        return {"slip_rate": None}
    found = wilson(report.slipped / report.checked, report.checked)
    return {"slip_rate": {"rate": float(found.rate), "low": float(found.low), "high": float(found.high)}}


def _text(report: Poll, out: Path, remote: EndpointOptions) -> str:
    lines = [
        f"{report.samples} samples, {report.unanimous} unanimous ({report.recorded} labels recorded now), "
        f"{len(report.to_people)} for people: {out / LIST}",
        f"audit: {report.audited} of the unanimous, {report.checked} checked by people, "
        f"{report.slipped} wrong" + _slip(report),
    ]
    for name, cost in report.cost.items():
        price = (cost.tokens_in * remote.price_in + cost.tokens_out * remote.price_out) / 1e6
        tokens = f", {cost.tokens_in} + {cost.tokens_out} tokens" if cost.tokens_in or cost.tokens_out else ""
        lines.append(
            f"{name}: {cost.calls} calls, {cost.seconds:.1f} s{tokens}"
            + (f", {price:.4f} at the given prices" if tokens and price else "")
            + (f", {cost.unsure} without a class" if cost.unsure else "")
        )
    if report.unreadable:
        lines.append(f"{report.unreadable} samples are no pictures that can be shown; people get them")
    return "\n".join(lines)


def _slip(report: Poll) -> str:
    found = _quality(report)["slip_rate"]
    if found is None:
        return "; label the list, and run this again to see how many are wrong"
    return f": {found['rate']:.1%} of the automatic labels ({found['low']:.1%} .. {found['high']:.1%})"
