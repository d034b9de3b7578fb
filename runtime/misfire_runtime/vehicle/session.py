"""Runs a vehicle once from its configuration: opens what it needs, runs, uploads, closes in order.

config --> spool, uplink --> bundle, engine, sources --> Vehicle.run --> (until empty: wait) --> result

`run_vehicle` is the whole of `misfire run` without its command line: a thread or another program can call it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misfire_runtime.bundle import Bundle
from misfire_runtime.config.tables import VehicleConfig
from misfire_runtime.engines.base import EngineOptions
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import ConfigError, MisfireError, SourceError, SpoolError
from misfire_runtime.messages import Counters, Desired, Reported
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.sources import Source
from misfire_runtime.sources.context import Context, ContextListener
from misfire_runtime.sources.files import RecordedFiles
from misfire_runtime.sources.registry import open_table
from misfire_runtime.spool import Spool
from misfire_runtime.uplink import Uplink
from misfire_runtime.uplink.bandwidth import Bandwidth
from misfire_runtime.vehicle.live_config import LiveConfig
from misfire_runtime.vehicle.pipeline import Report, Vehicle
from misfire_runtime.vehicle.telemetry import TelemetryServer, heartbeat

_LOG = logging.getLogger(__name__)
STATE_FOLDER = "vehicle"
"""In the spool's folder: budgets and positions are lost and kept together with the samples."""
Watcher = Callable[[Vehicle | None, Spool], None]
"""Gets None if the vehicle could not be started."""
UPLOAD_GRACE_S = 60.0
"""A run that failed ends after this long without an upload."""


@dataclass(frozen=True)
class RunResult:
    """Reports what a run did, the counters after it, whether all was delivered, and what failed for good."""

    report: Report
    counters: Counters
    empty: bool
    failure: MisfireError | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the report's fields for JSON, with the spool's counters under `counters`."""
        return {
            **self.report.as_dict(),
            "counters": self.counters.model_dump(),
            "empty": self.empty,
            "failure": None if self.failure is None else str(self.failure),
        }


def run_vehicle(
    config: VehicleConfig,
    *,
    stop: threading.Event | None = None,
    until_empty: bool = False,
    resume: bool = True,
    on_tick: Watcher | None = None,
    file: Path | None = None,
    overlay: Callable[[VehicleConfig], VehicleConfig] = lambda config: config,
    hang_up: threading.Event | None = None,
    show: str = "",
) -> RunResult:
    """Runs until the sources end or `stop`; with `until_empty` until the fleet has everything, too.

    A broker that cannot be reached is no error: samples wait in the spool, and `until_empty` waits for it
    until `stop`.

    Args:
        config: names at least a bundle and a source.
        stop: set to end the run in order.
        until_empty: stay until nothing is pending.
        resume: go on where an interrupted run stopped.
        on_tick: called about once a second.
        file: the configuration file to watch; None watches none.
        overlay: puts options that override the file on top of it (see LiveConfig).
        hang_up: set to have the file read again.
        show: draw every frame with its answer into this video file, or in a "window"; "" shows nothing.

    Returns:
        What the run did, and the spool's counters after it.

    Raises:
        MisfireError: something cannot be opened or fails for good; what waits was uploaded first, if it
            could be.
    """
    stopping = stop or threading.Event()
    with ExitStack() as stack:
        session = _Session(config, stack, watcher=on_tick)
        try:
            session.start_vehicle(resume=resume, file=file, overlay=overlay, hang_up=hang_up)
            if show:
                session.show(show)
            return session.run(stopping, until_empty=until_empty)
        except MisfireError as error:
            session.upload_what_waits(error, stopping, until_empty=until_empty)
            raise


class _Session:
    """Owns what is open during a run. Everything is closed by the stack, the newest first.

    Spool and uplink are there before the model and the cameras, so that what waits is uploaded without them.
    """

    def __init__(self, config: VehicleConfig, stack: ExitStack, *, watcher: Watcher | None) -> None:
        self._config = _complete(config)
        self._watcher = watcher
        self._live: LiveConfig | None = None
        self._hang_up: threading.Event | None = None
        self._next_heartbeat_s = 0.0
        self._stack = stack
        self._failure: MisfireError | None = None
        self._server: TelemetryServer | None = None
        self._state_dir = config.spool.path / STATE_FOLDER
        self._vehicle: Vehicle | None = None
        self._started = threading.Event()
        self._declined: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._uplink: Uplink | None = None
        self._passed: tuple[str, Bandwidth, bool] | None = None
        broker = broker_config(config)
        self._spool = Spool(
            config.spool.path, max_bytes=config.spool.max_bytes, reserve_bytes=config.spool.reserve_bytes
        )
        # First on the stack, so closed last: writer and uplink need the spool until they end.
        stack.callback(self._spool.close)
        if broker is not None:
            self._uplink = self._start_uplink(broker)

    def start_vehicle(
        self,
        *,
        resume: bool,
        file: Path | None,
        overlay: Callable[[VehicleConfig], VehicleConfig],
        hang_up: threading.Event | None,
    ) -> None:
        """Opens model and sources, makes configuration live, and serves telemetry."""
        config, stack = self._config, self._stack
        scorer = _load_scorer(config)
        sources = _open_sources(config, channels=scorer.bundle.manifest.input.channels)
        context = Context(max_age_s=config.context.max_age_s if config.context else 10.0)
        if config.context is not None:
            stack.callback(ContextListener(context, config.context).close)
        vehicle = self._vehicle = Vehicle(
            config,
            scorer=scorer,
            store=self._spool,
            sources=sources,
            state_dir=self._state_dir,
            context=context,
            resume=resume,
            on_tick=lambda _vehicle: self._tick(),
        )
        stack.callback(vehicle.close)
        live = self._live = LiveConfig(
            vehicle,
            config=config,
            state_dir=self._state_dir,
            file=file,
            overlay=overlay,
            report=self._publish_reported,
        )
        stack.push(lambda _kind, error, _trace: live.close(error))
        self._hang_up = hang_up
        # Before `_started`: what the fleet sends now is compared with what was kept.
        live.restore()
        self._started.set()
        self._serve()
        self._tell()

    def show(self, target: str) -> None:
        """Shows every frame from now on. Raises ConfigError if it cannot be shown there."""
        # Imported here: only who looks needs what draws.
        from misfire_runtime.vehicle.show import Show

        vehicle = self._vehicle
        assert vehicle is not None
        shown = Show(target, privacy=vehicle.privacy, several=len(vehicle.sources) > 1)
        vehicle.on_frame = shown.see
        self._stack.callback(shown.close)

    def run(self, stop: threading.Event, *, until_empty: bool) -> RunResult:
        """Processes frames, then uploads what is left."""
        vehicle = self._vehicle
        assert vehicle is not None
        vehicle.run(stop)
        # Before the counters are read: the writer may still add samples.
        vehicle.writer.close()
        if until_empty:
            self._drain(stop)
        # Once more: verdicts may have come since the last tick.
        self._credit(vehicle)
        # The frames since the last heartbeat count too; where the fleet is short of them it would say so.
        if self._uplink is not None:
            self._beat(self._uplink)
        hold = self._spool.hold
        failure = vehicle.writer.failure
        if failure is None and until_empty and hold is not None:
            failure = SpoolError(f"uploads are held: {hold.reason}; see `misfire spool resume`")
        counters = self._spool.counters()
        return RunResult(vehicle.report(), counters, counters.pending == 0, failure)

    def upload_what_waits(self, error: MisfireError, stop: threading.Event, *, until_empty: bool) -> None:
        """Uploads what is pending after an error that ends the run, before it is raised.

        It stays as long as uploads go forward, and a minute beyond, so that the service manager may try
        again; with `until_empty` until nothing is pending. Meanwhile /healthz says what is wrong.
        """
        pending = self._spool.counters().pending
        if self._uplink is None or not pending:
            return
        _LOG.error("cannot_run", extra={"fields": {"problem": str(error), "pending": pending}})
        self._failure = error
        self._started.set()
        with suppress(ConfigError):  # the port may be what failed
            self._serve()
        moved_s = time.monotonic()
        while not (stop.is_set() or self._uplink.drain(0.5) or self._spool.hold is not None):
            self._tick()
            left = self._spool.counters().pending
            if left < pending:
                moved_s = time.monotonic()
            elif not until_empty and time.monotonic() - moved_s > UPLOAD_GRACE_S:
                return
            pending = left

    def _drain(self, stop: threading.Event) -> None:
        """Waits until the spool is empty or holds; without an uplink there is nothing to wait for."""
        while self._uplink is not None and self._spool.hold is None and not stop.is_set():
            if self._uplink.drain(0.5):
                return
            self._tick()

    def _tick(self) -> None:
        """Does the regular work, about once a second, from the frame path and while draining."""
        if self._live is not None and self._failure is None:
            if self._hang_up is not None and self._hang_up.is_set():
                self._hang_up.clear()
                self._live.reload()
            self._live.reload_if_changed()
            self._live.watch()
        if self._vehicle is not None:
            self._credit(self._vehicle)
            self._tell()
        now = time.monotonic()
        if self._uplink is not None and now >= self._next_heartbeat_s:
            self._next_heartbeat_s = now + self._config.telemetry.heartbeat_s
            self._beat(self._uplink)
        if self._watcher is not None:
            self._watcher(self._vehicle, self._spool)

    def _credit(self, vehicle: Vehicle) -> None:
        """Gives back the budget of declined samples, also of those from before there was a vehicle."""
        # A queue: declined samples arrive on the uplink's thread.
        while not self._declined.empty():
            vehicle.credit(self._declined.get())

    def _tell(self) -> None:
        """Passes to the uplink what changed: bundle, bandwidth, and whether the link costs money."""
        uplink, vehicle = self._uplink, self._vehicle
        if uplink is None or vehicle is None:
            return
        bundle, bandwidth = vehicle.scorer.label, vehicle.config.bandwidth
        # "is True": a text such as "no" must not count as metered.
        metered = vehicle.context.snapshot().get("metered", bandwidth.metered) is True
        passed = (bundle, bandwidth, metered)
        # Only changes: a new bandwidth makes the uplink look at its limits at once.
        if passed == self._passed:
            return
        uplink.set_bandwidth(bandwidth)
        uplink.set_metered(metered)
        if self._passed is None or self._passed[0] != bundle:
            uplink.set_bundle(bundle)
        self._passed = passed

    def _take_desired(self, desired: Desired) -> Reported:
        """Applies what the fleet desires once there is a vehicle. Raises ConfigError if there is none."""
        self._started.wait()
        if self._live is None:
            raise ConfigError("the vehicle cannot run; the desired configuration is not applied")
        return self._live.take_desired(desired)

    def _publish_reported(self, reported: Reported) -> None:
        """Reports a configuration that was taken back; offline, the fleet hears of it when it asks again."""
        if self._uplink is not None:
            self._uplink.publish_reported(reported)

    def _beat(self, uplink: Uplink) -> None:
        """Sends a heartbeat; the sketches begin anew only if the broker got them."""
        beat = heartbeat(
            self._vehicle,
            self._spool.counters(),
            disk=self._spool.path,
            hold=self._hold(),
            backlog=self._spool.backlog(),
        )
        if uplink.publish_telemetry(beat) and self._vehicle is not None:
            self._vehicle.statistics.begin_stretch()

    def _hold(self) -> str:
        hold = self._spool.hold
        return "" if hold is None else hold.reason

    def _problems(self) -> list[str]:
        """Returns the problems that the vehicle itself does not know of."""
        problems = [] if self._failure is None else [f"cannot run: {self._failure}"]
        return [*problems, f"uploads are held: {self._hold()}"] if self._hold() else problems

    def _serve(self) -> None:
        """Serves telemetry if that is configured, and not served yet."""
        table = self._config.telemetry
        if table.port is None or self._server is not None:
            return
        self._server = TelemetryServer(
            self._vehicle,
            counters=self._spool.counters,
            hold=self._hold,
            problems=self._problems,
            uplink=lambda: None if self._uplink is None else self._uplink.problem,
            uplink_counts=lambda: {} if self._uplink is None else self._uplink.counts,
            host=table.host,
            port=table.port,
        )
        self._stack.callback(self._server.close)
        _LOG.info("telemetry", extra={"fields": {"host": table.host, "port": self._server.port}})

    def _start_uplink(self, broker: BrokerConfig) -> Uplink:
        uplink = Uplink(
            self._spool,
            fleet=self._config.fleet,
            vehicle=self._config.vehicle,
            broker=broker,
            settings=self._config.uplink,
            bandwidth=self._config.bandwidth,
            on_desired=self._take_desired,
            on_declined=self._declined.put,
        )
        self._stack.callback(uplink.close)
        self._stack.callback(self._started.set)  # before that: nobody waits any more for a vehicle
        uplink.start()
        return uplink


def _complete(config: VehicleConfig) -> VehicleConfig:
    """Raises ConfigError if the configuration names no bundle or no source."""
    if config.bundle is None:
        raise ConfigError("bundle: not set; give --bundle, or `bundle` in the configuration file")
    if not config.source:
        raise ConfigError("source: not set; give --source, or a [[source]] table in the configuration file")
    return config


def broker_config(config: VehicleConfig) -> BrokerConfig | None:
    """Returns the broker of the `[broker]` table; None if it names none.

    Raises:
        ConfigError: the address or TLS settings do not fit; the message shows no password.
    """
    return config.broker.connection() if config.broker is not None else None


def _load_scorer(config: VehicleConfig) -> Scorer:
    assert config.bundle is not None
    scorer = Scorer.load(Bundle.open(config.bundle), options=EngineOptions(**config.engine.model_dump()))
    if scorer.calibration_differs is not None:
        _LOG.warning("calibration_differs", extra={"fields": {"problem": scorer.calibration_differs}})
    return scorer


def _open_sources(config: VehicleConfig, *, channels: int) -> list[Source]:
    """Returns the sources. Raises SourceError if the model takes four channels and one cannot give them."""
    sources = [open_table(table) for table in config.source]
    for source in sources if channels == 4 else ():
        if not isinstance(source, RecordedFiles):
            raise SourceError(
                f"{source.name}: the model takes pictures of four channels; cameras, streams and recordings "
                "give three, only image files (an RGBA PNG) have a fourth"
            )
        source.channels = channels
    return sources
