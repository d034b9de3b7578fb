"""Implements `misfire fleet loop`: snapshot, retrain, gate, candidate, on a schedule or at new labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_fleet.commands.options import AsJson, StoreOptions, show, with_options

if TYPE_CHECKING:
    from misfire_fleet.loop.state import LoopState, Round
    from misfire_train.train_config import MixtureTable


@with_options(place=StoreOptions)
def loop(
    *,
    run: Annotated[Path, typer.Option(help="Begin with the run in this folder.")],
    bundle: Annotated[Path, typer.Option(help="Begin with its bundle in this folder, the incumbent.")],
    exam: Annotated[str, typer.Option("--test-from", help="Judge on the frozen test set of this snapshot.")],
    place: StoreOptions,
    work: Annotated[
        Path | None,
        typer.Option(help="Keep runs, bundles and the loop's state here. Default: loop/ in --fleet-dir."),
    ] = None,
    every: Annotated[
        str | None, typer.Option(help="Start a round this long after the last one started, such as 24h.")
    ] = None,
    new_labels: Annotated[
        int | None, typer.Option(min=1, help="Start a round once so many samples are newly labelled.")
    ] = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="Finish the open round, or run one, and exit: 1 if it did not pass."),
    ] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", help="Train only on samples with KEY=VALUE, as of misfire fleet snapshot; repeat it."
        ),
    ] = None,
    holdout: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of groups held out for the failure score.")
    ] = 0.2,
    name: Annotated[str, typer.Option(help="Begin the names of snapshots with this.")] = "loop",
    data: Annotated[Path | None, typer.Option(help="Folder of the published data sets.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of epochs. Default: as misfire retrain.")
    ] = None,
    replay: Annotated[
        float | None, typer.Option(help="Share of an epoch that is old data. Default: the run's.")
    ] = None,
    class_balance: Annotated[
        float | None,
        typer.Option(
            help="Show rare classes more often: 0 (no) to 1 (all classes equally). Default: the run's."
        ),
    ] = None,
    slice_balance: Annotated[
        float | None, typer.Option(help="Show rare slices of uploads more often: 0 to 1. Default: the run's.")
    ] = None,
    slice_by: Annotated[
        str,
        typer.Option(
            help="Slice uploads by vehicle, day, class, or a key of their context, such as weather."
        ),
    ] = "vehicle",
    tolerance: Annotated[
        float | None,
        typer.Option(help="Loss of the task metric that the gate must exclude. Default: the gate's."),
    ] = None,
    min_frames: Annotated[
        int | None, typer.Option(min=1, help="Frames that the gate needs. Default: the gate's.")
    ] = None,
    poll: Annotated[str, typer.Option(help="Look for new labels this often.")] = "60s",
    attempts: Annotated[
        int, typer.Option(min=1, help="Try a failing step so often before its round is given up.")
    ] = 3,
    pause: Annotated[
        str, typer.Option(help="Wait so long before the second attempt; doubled for each further one.")
    ] = "60s",
    as_json: AsJson = False,
) -> None:
    """Retrain and judge again and again: snapshot, retrain, export, gate, candidate. Nothing is published."""
    from misfire_fleet.candidates.rules import DEFAULT
    from misfire_fleet.loop.lock import only_loop
    from misfire_fleet.loop.loop import Loop, Pace, parse_span
    from misfire_fleet.loop.rounds import Settings
    from misfire_runtime.errors import ConfigError
    from misfire_runtime.service.signals import stop_on_signals
    from misfire_train.progress import Reporter
    from misfire_train.retraining import Schedule

    if not once and every is None and new_labels is None:
        raise ConfigError("say when rounds start: --every 24h, --new-labels 200, or --once")
    pace = Pace(
        every_s=None if every is None else parse_span(every),
        new_labels=new_labels,
        poll_s=parse_span(poll),
        attempts=attempts,
        pause_s=parse_span(pause),
    )
    changed: dict[str, Any] = {"tolerance": tolerance, "min_frames": min_frames}
    settings = Settings(
        run=run,
        bundle=bundle,
        exam=exam,
        folder=work or place.fleet_dir / "loop",
        name=name,
        where=tuple(where or ()),
        holdout=holdout,
        data=data,
        schedule=Schedule(
            epochs=epochs,
            mixture=_mixture(run, replay=replay, class_balance=class_balance, slice_balance=slice_balance),
        ),
        slice_by=slice_by,
        rules=replace(DEFAULT, **{key: value for key, value in changed.items() if value is not None}),
    )
    with place.open() as store, stop_on_signals() as stop, only_loop(store.database):
        running = Loop(store, settings, pace=pace, stop=stop, say=Reporter().line)
        last: Round | None = None
        if once:
            last = running.round()
        else:
            running.run()
        state = running.state
    show(state.model_dump(mode="json"), as_json=as_json, text=_described(state))
    # A loop that was stopped has done what it was asked.
    if last is not None and not last.open and not last.passed:
        raise typer.Exit(1)


def _mixture(run: Path, **stated: float | None) -> MixtureTable | None:
    """Returns the first run's mixture with what is stated; None, each parent's own, if nothing is."""
    if all(value is None for value in stated.values()):
        return None
    from misfire_fleet.retrain.command import changed_mixture
    from misfire_train.runs import load_run

    return changed_mixture(load_run(run), **stated)


def _described(state: LoopState) -> str:
    return "\n".join(map(_line, state.rounds[-10:])) or "no round yet: nothing is newly labelled"


def _line(each: Round) -> str:
    name = f"round {each.number}: {each.bundle or each.snapshot or 'no snapshot'}"
    if each.open:
        return f"{name}, open at {each.step}" + (f": {each.error}" if each.error else "")
    if each.passed is None:
        return f"{name}, given up at {each.step}: {each.error}"
    return f"{name}, " + ("candidate" if each.passed else "not passed: " + "; ".join(each.reasons))
