"""Implements `misfire run`: scores frames and uploads the informative ones.

options override file --> VehicleConfig --> session.run_vehicle, with signals, progress, systemd and a result

A terminal gets a progress line. Logs go to standard error, as plain lines or, with --json, as JSON lines.
Only the result goes to standard output.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from misfire_runtime.commands.options import (
    BrokerUrl,
    ConfigFile,
    Engine,
    FleetName,
    Insecure,
    Protocol,
    VehicleName,
)

if TYPE_CHECKING:
    from rich.progress import Progress

    from misfire_runtime.config.tables import VehicleConfig
    from misfire_runtime.spool import Spool
    from misfire_runtime.vehicle.pipeline import Vehicle
    from misfire_runtime.vehicle.session import RunResult


def run(
    *,
    bundle: Annotated[Path | None, typer.Option(help="Run the model bundle in this folder.")] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Read frames from an image, a video, a folder, an .mcap file, rtsp://..., /dev/videoN or "
            "gst:PIPELINE. Repeat it for several cameras."
        ),
    ] = None,
    spool: Annotated[Path | None, typer.Option(help="Keep chosen samples in this folder.")] = None,
    broker: BrokerUrl = None,
    insecure: Insecure = False,
    fleet: FleetName = None,
    vehicle: VehicleName = None,
    rate: Annotated[
        float | None, typer.Option(min=0, max=1, help="Choose this share of frames by score.")
    ] = None,
    random_rate: Annotated[
        float | None, typer.Option(min=0, max=1, help="Choose this share of frames at random.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the random stream.")] = None,
    protocol: Protocol = None,
    provider: Engine = None,
    config: ConfigFile = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve /metrics and /healthz on this port.")
    ] = None,
    nice: Annotated[
        int, typer.Option(min=0, max=19, help="Lower the priority of this process by this much.")
    ] = 0,
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="Stay until the fleet has all samples.")
    ] = False,
    show: Annotated[
        str,
        typer.Option(
            help="Draw every frame with its answer and its score into this .mp4 file, or in a 'window'."
        ),
    ] = "",
    resume: Annotated[bool, typer.Option(help="Continue where an interrupted run stopped.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Score frames and upload the informative ones."""
    from misfire_runtime.config.tables import VehicleConfig, read_config
    from misfire_runtime.vehicle.session import run_vehicle

    options = {
        "bundle": bundle,
        "source": [{"input": item, "name": _camera(item, source)} for item in source] if source else None,
        "spool": {"path": spool} if spool else None,
        "broker": broker_options(broker, protocol, insecure=insecure),
        "fleet": fleet,
        "vehicle": vehicle,
        "rate": rate,
        "random": {k: v for k, v in (("rate", random_rate), ("seed", seed)) if v is not None} or None,
        "engine": {"provider": provider} if provider else None,
        "telemetry": {"port": metrics_port} if metrics_port is not None else None,
    }
    if nice:
        os.nice(nice)
    settings = overlay(read_config(config) if config is not None else VehicleConfig(), options)
    with _surroundings(as_json=as_json) as (stop, hang_up, watcher):
        result = run_vehicle(
            settings,
            stop=stop,
            until_empty=until_empty,
            resume=resume,
            on_tick=watcher,
            file=config,
            overlay=lambda fresh: overlay(fresh, options),
            hang_up=hang_up,
            show=show,
        )
    _print(result, as_json=as_json)
    _raise_for(result, interrupted=stop.is_set())


def overlay(config: VehicleConfig, options: dict[str, Any]) -> VehicleConfig:
    """Returns `config` with its values replaced by the given options.

    Args:
        config: the configuration from the file.
        options: values by key; None means not given.

    Raises:
        ConfigError: the result is invalid.
    """
    from misfire_runtime.config.tables import validated
    from misfire_runtime.triggers.rates import TargetRateTable

    # exclude_unset: an option must not turn defaults into values that were set.
    data = config.model_dump(mode="python", exclude_unset=True, by_alias=True)
    for key, value in options.items():
        if value is None:
            continue
        if key == "rate":
            kept = data.get("triggers", {})
            data["triggers"] = {
                **kept,
                "target-rate": TargetRateTable(kind="target-rate", rate=value).model_dump(),
            }
        elif isinstance(value, dict):
            data[key] = {**(data.get(key) or {}), **value}
        else:
            data[key] = value
    return validated(data, origin="command line")


class _Watcher:
    """Resets systemd's watchdog and updates the progress line, about once a second."""

    def __init__(self, progress: Progress | None) -> None:
        from misfire_runtime.service.systemd import ServiceNotifier

        self._notifier = ServiceNotifier()
        self._progress = progress
        self._task = progress.add_task("starting") if progress is not None else None
        self._ready = False

    def __call__(self, vehicle: Vehicle | None, spool: Spool) -> None:
        counters = spool.counters()
        doing = "cannot run"
        if vehicle is not None:
            doing = f"{vehicle.statistics.frames} frames, {vehicle.statistics.spooled} chosen"
        text = f"{doing}, {counters.stored} stored, {counters.pending} pending"
        if not self._ready:
            self._ready = self._notifier.ready()
        self._notifier.alive(text)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=text)

    def close(self) -> None:
        self._notifier.stopping()


@contextmanager
def _surroundings(*, as_json: bool) -> Iterator[tuple[threading.Event, threading.Event, _Watcher]]:
    """Sets up signals, logs and progress line, and restores everything at the end of the block.

    Yields:
        The events that SIGTERM or SIGINT (stop) and SIGHUP (reload) set, and the watcher.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from misfire_runtime.service.logs import set_up_logs, take_down_logs

    stop, hang_up = threading.Event(), threading.Event()
    previous = {}

    def end(number: int, _frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C ends at once; the spool survives that
        stop.set()

    for number, handler in (
        (signal.SIGINT, end),
        (signal.SIGTERM, end),
        (signal.SIGHUP, lambda _n, _f: hang_up.set()),
    ):
        previous[number] = signal.signal(number, handler)
    form: Literal["json", "plain"] = "json" if as_json else "plain"
    log_handler = set_up_logs(sys.stderr, form=form)
    console = Console(stderr=True)
    progress = (
        Progress(SpinnerColumn(), TextColumn("{task.description}"), console=console, transient=True)
        if console.is_terminal and not as_json
        else None
    )
    watcher = _Watcher(progress)
    try:
        if progress is not None:
            progress.start()
        yield stop, hang_up, watcher
    finally:
        watcher.close()
        if progress is not None:
            progress.stop()
        # After the progress line, which shares the terminal with the logs.
        take_down_logs(log_handler)
        for number, old in previous.items():
            signal.signal(number, old)


def _camera(item: str, items: list[str] | None) -> str:
    """Returns a camera's name, or "" if there is only one."""
    return f"camera{items.index(item)}" if items is not None and len(items) > 1 else ""


def broker_options(url: str | None, protocol: str | None, *, insecure: bool) -> dict[str, Any] | None:
    """Returns the keys of the `[broker]` table that were given as options; None if there are none."""
    given = {"url": url, "protocol": protocol, "insecure": insecure or None}
    return {key: value for key, value in given.items() if value is not None} or None


def _print(result: RunResult, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
        return
    report = result.report
    typer.echo(
        f"{report.bundle} on {report.provider}: {report.frames} frames, {report.frames_per_s:.1f} per second"
    )
    chosen = ", ".join(f"{count} by {name}" for name, count in sorted(report.chosen.items())) or "none"
    typer.echo(f"chosen: {chosen}; {report.duplicates} known already")
    for label, counts in (("not taken", report.suppressed), ("lost", report.lost)):
        if counts:
            typer.echo(
                f"{label}: " + ", ".join(f"{count} by {name}" for name, count in sorted(counts.items()))
            )
    if report.unreadable or report.dropped:
        typer.echo(f"unreadable: {report.unreadable}, dropped: {report.dropped}")
    for problem in report.problems:
        typer.echo(f"  {problem}")
    typer.echo(f"spool: {result.counters.balance}")


def _raise_for(result: RunResult, *, interrupted: bool) -> None:
    """Raises the error of a failed run: it must not exit like a successful one."""
    from misfire_runtime.errors import SourceError

    if result.failure is not None:
        raise result.failure
    if not interrupted and result.report.frames == 0 and result.report.unreadable:
        raise SourceError(f"nothing could be read: {result.report.problems[0]}")
