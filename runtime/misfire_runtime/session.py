"""One run of a vehicle from its configuration: opens what it needs, runs, uploads, closes in order.

config --> bundle, engine, spool, uplink, sources --> Vehicle.run --> (until empty: wait) --> result

`run_vehicle` is the whole of `misfire run` without its command line: a thread or another program can call it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misfire_runtime.bandwidth import Bandwidth
from misfire_runtime.bundle import Bundle
from misfire_runtime.config import VehicleConfig
from misfire_runtime.context import Context, ContextListener
from misfire_runtime.engine import EngineOptions
from misfire_runtime.errors import ConfigError, MisfireError
from misfire_runtime.live_config import LiveConfig
from misfire_runtime.messages import Counters, Reported
from misfire_runtime.pipeline import Report, Vehicle
from misfire_runtime.scoring import Scorer
from misfire_runtime.sources import Source, open_source
from misfire_runtime.spool import Spool
from misfire_runtime.telemetry import TelemetryServer, heartbeat
from misfire_runtime.uplink import BrokerConfig, Uplink

_LOG = logging.getLogger(__name__)
STATE_FOLDER = "vehicle"
Watcher = Callable[[Vehicle, Spool], None]


@dataclass(frozen=True)
class RunResult:
    """What a run did, the spool's books after it, whether all was delivered, and what went wrong for good."""

    report: Report
    counters: Counters
    empty: bool
    failure: MisfireError | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the report's fields, the spool's books under `counters`."""
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
) -> RunResult:
    """Runs until the sources end or `stop`; with `until_empty` until the fleet has everything, too.

    file, overlay: the configuration file to watch, and what stands above it (see LiveConfig).
    hang_up: set to have the file read again. Raises a MisfireError where something cannot be opened. A broker
    that is not there is no error: samples wait in the spool, and `until_empty` waits for it until `stop`.
    """
    stopping = stop or threading.Event()
    with ExitStack() as stack:
        session = _Session(config, stack, resume=resume, watcher=on_tick)
        session.watch(file, overlay, hang_up)
        return session.run(stopping, until_empty=until_empty)


class _Session:
    """What is open during a run. Everything is closed by the stack, the newest first."""

    def __init__(
        self, config: VehicleConfig, stack: ExitStack, *, resume: bool, watcher: Watcher | None
    ) -> None:
        self._config = config
        self._watcher = watcher
        self._live: LiveConfig | None = None
        self._hang_up: threading.Event | None = None
        self._next_heartbeat_s = 0.0
        self._stack = stack
        self._broker = broker_config(config)
        scorer, sources = _load_scorer(config), _open_sources(config)
        self._state_dir = config.spool.path / STATE_FOLDER
        self._spool = Spool(
            config.spool.path, max_bytes=config.spool.max_bytes, reserve_bytes=config.spool.reserve_bytes
        )
        stack.callback(self._spool.close)
        context = Context(max_age_s=config.context.max_age_s if config.context else 10.0)
        if config.context is not None:
            stack.callback(ContextListener(context, config.context).close)
        self.vehicle = Vehicle(
            config,
            scorer=scorer,
            store=self._spool,
            sources=sources,
            state_dir=self._state_dir,
            context=context,
            resume=resume,
            on_tick=lambda _vehicle: self._tick(),
        )
        stack.callback(self.vehicle.close)
        self._uplink: Uplink | None = None
        self._upload_stop = threading.Event()
        self._told: tuple[str, Bandwidth, bool] | None = None

    def watch(
        self,
        file: Path | None,
        overlay: Callable[[VehicleConfig], VehicleConfig],
        hang_up: threading.Event | None,
    ) -> None:
        """Makes configuration live, and starts uplink and telemetry."""
        self._live = LiveConfig(
            self.vehicle,
            config=self._config,
            state_dir=self._state_dir,
            file=file,
            overlay=overlay,
            report=self._publish_reported,
        )
        live = self._live
        self._stack.push(lambda _kind, error, _trace: live.close(error))
        self._hang_up = hang_up
        self._live.restore()
        table = self._config.telemetry
        if table.port is not None:
            server = TelemetryServer(
                self.vehicle, counters=self._spool.counters, host=table.host, port=table.port
            )
            self._stack.callback(server.close)
            _LOG.info("telemetry", extra={"fields": {"host": table.host, "port": server.port}})
        if self._broker is not None:
            self._start_uplink(self._broker)

    def run(self, stop: threading.Event, *, until_empty: bool) -> RunResult:
        """Frames, then what is left to upload."""
        self.vehicle.run(stop)
        self.vehicle.writer.close()
        if until_empty:
            self._drain(stop)
        failure = self.vehicle.writer.failure
        counters = self._spool.counters()
        return RunResult(self.vehicle.report(), counters, counters.pending == 0, failure)

    def _drain(self, stop: threading.Event) -> None:
        """Waits until the spool is empty; without an uplink there is nothing to wait for."""
        while self._uplink is not None and not stop.is_set():
            if self._uplink.drain(0.5):
                return
            self._tick()

    def _tick(self) -> None:
        """About once a second, from the frame path and while draining."""
        if self._live is not None:
            if self._hang_up is not None and self._hang_up.is_set():
                self._hang_up.clear()
                self._live.reload()
            self._live.reload_if_changed()
            self._live.watch()
        if self._uplink is not None:
            self._tell(self._uplink)
        now = time.monotonic()
        if self._uplink is not None and now >= self._next_heartbeat_s:
            self._next_heartbeat_s = now + self._config.telemetry.heartbeat_s
            self._beat(self._uplink)
        if self._watcher is not None:
            self._watcher(self.vehicle, self._spool)

    def _tell(self, uplink: Uplink) -> None:
        """Hands the uplink what changed: bundle, bandwidth, and whether the link costs money."""
        bundle, bandwidth = self.vehicle.scorer.label, self.vehicle.config.bandwidth
        metered = self.vehicle.context.snapshot().get("metered", bandwidth.metered) is True
        told = (bundle, bandwidth, metered)
        if told == self._told:
            return
        uplink.set_bandwidth(bandwidth)
        uplink.set_metered(metered)
        if self._told is not None and self._told[0] != bundle:
            uplink.set_bundle(bundle)
        self._told = told

    def _publish_reported(self, reported: Reported) -> None:
        """A wish was taken back. Without a connection the fleet hears of it when it repeats the wish."""
        if self._uplink is not None:
            self._uplink.publish_reported(reported)

    def _beat(self, uplink: Uplink) -> None:
        """Hands over a heartbeat; the sketches begin anew only where the broker got them."""
        if uplink.publish_telemetry(heartbeat(self.vehicle, self._spool.counters(), disk=self._spool.path)):
            self.vehicle.statistics.begin_stretch()

    def _start_uplink(self, broker: BrokerConfig) -> None:
        assert self._live is not None
        self._uplink = Uplink(
            self._spool,
            fleet=self._config.fleet,
            vehicle=self._config.vehicle,
            broker=broker,
            stop=self._upload_stop,
            settings=self._config.uplink,
            bandwidth=self.vehicle.config.bandwidth,
            on_desired=self._live.take_desired,
            on_declined=self.vehicle.credit,
            bundle=self.vehicle.scorer.label,
        )
        self._stack.callback(self._uplink.close)
        self._uplink.start()


def broker_config(config: VehicleConfig) -> BrokerConfig | None:
    """The `[broker]` table; None where it names no broker. Raises ConfigError."""
    return config.broker.connection() if config.broker is not None else None


def _load_scorer(config: VehicleConfig) -> Scorer:
    if config.bundle is None:
        raise ConfigError("bundle: not set; give --bundle, or `bundle` in the configuration file")
    scorer = Scorer.load(Bundle.open(config.bundle), options=EngineOptions(**config.engine.model_dump()))
    if scorer.calibration_differs is not None:
        _LOG.warning("calibration_differs", extra={"fields": {"problem": scorer.calibration_differs}})
    return scorer


def _open_sources(config: VehicleConfig) -> list[Source]:
    if not config.source:
        raise ConfigError("source: not set; give --source, or a [[source]] table in the configuration file")
    return [
        open_source(table.input, name=table.name, topic=table.topic, options=table.options)
        for table in config.source
    ]
