"""Reports a vehicle's condition: Prometheus metrics, a health page, and the heartbeat's message.

Statistics + Counters --at scrape time--> /metrics;  liveness of the frame path --> /healthz (200 or 503)
Nothing is measured for the metrics' sake on the frame path: they are read off what is counted anyway.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from misfire_runtime.clock import boot_id, wall_time
from misfire_runtime.messages import Clock, Counters, Place, Telemetry
from misfire_runtime.service.endpoint import Endpoint, Page, metrics_page
from misfire_runtime.vehicle.pipeline import Vehicle

# Longer than the default `stall_s`: a stalled source is reported first, by its name.
SILENCE_S = 30.0
STANDING_S = 5.0
"""After a frame has taken this long, or frames have come this long and none was scored."""
_LEVELS = (0.5, 0.9, 0.99)


def heartbeat(
    vehicle: Vehicle | None,
    counters: Counters,
    *,
    disk: Path,
    hold: str = "",
    backlog: tuple[int, float] | None = None,
) -> Telemetry:
    """Returns the telemetry message: counters since the spool was made, sketches since the last heartbeat.

    Args:
        vehicle: None if it could not be started, and only uploads what waits.
        counters: of the spool.
        disk: folder whose disk is measured.
        hold: why the vehicle offers nothing.
        backlog: bytes of the pending samples, and the age of the oldest in seconds; None if unknown.
    """
    at = Clock(wall=wall_time(), monotonic=time.monotonic(), boot_id=boot_id())
    free = _free_bytes(disk)
    size, age_s = backlog or (None, None)
    if vehicle is None:
        return Telemetry(
            at=at,
            bundle="",
            counters=counters,
            disk_free_bytes=free,
            hold=hold,
            pending_bytes=size,
            pending_age_s=age_s,
        )
    p50, p99 = vehicle.statistics.latency_ms()
    return Telemetry(
        at=at,
        bundle=vehicle.scorer.label,
        counters=counters,
        disk_free_bytes=free,
        latency_ms_p50=p50,
        latency_ms_p99=p99,
        thresholds=vehicle.selector.thresholds,
        sketches=vehicle.statistics.sketches(),
        hold=hold,
        pending_bytes=size,
        pending_age_s=age_s,
        degradation=vehicle.ladder.step,
        place=place_of(vehicle.context.snapshot()),
    )


def place_of(context: Mapping[str, float | str | bool]) -> Place | None:
    """Returns where the vehicle is: `lat` and `lon` of its context in degrees, and `region`; None if nowhere.

    A position that is not on the Earth is no position: signals come from other programs.
    """
    lat, lon = (_degrees(context.get(name), limit) for name, limit in (("lat", 90.0), ("lon", 180.0)))
    region = context.get("region")
    named = region[:256] if isinstance(region, str) else ""
    if lat is None or lon is None:
        return Place(region=named) if named else None
    return Place(lat=lat, lon=lon, region=named)


def _degrees(value: float | str | bool | None, limit: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= limit else None


def _free_bytes(disk: Path) -> int:
    try:
        return shutil.disk_usage(disk).free
    except OSError:  # the disk is gone: that must not end the frame path
        return 0


def health(
    vehicle: Vehicle | None,
    *,
    silence_s: float = SILENCE_S,
    others: Sequence[str] = (),
    uplink: str | None = None,
) -> dict[str, Any]:
    """Returns `ok` and what is wrong; others: problems that the vehicle itself does not know of.

    uplink: why nothing gets through to the fleet. It is shown, but a vehicle without a connection is well:
    its samples wait. So is one whose frames are too rare for a score that a trigger names (`not_available`).
    A vehicle is ill if a source stalls or fails, nothing may leave for privacy's sake, the spool fails, the
    frame path stands still, frames come and none is scored, or there was no frame for `silence_s`.
    """
    if vehicle is None:
        return {"ok": False, "problems": list(others), "uplink": uplink}
    problems = [*others, *(f"source {name} is stalled" for name in vehicle.stalled)]
    problems += [f"source {name} ended by an error" for name in vehicle.lost]
    if vehicle.privacy is not None and vehicle.privacy.problem is not None:
        problems.append(f"privacy: {vehicle.privacy.problem}")
    if vehicle.writer.trouble is not None:
        problems.append(f"spool: {vehicle.writer.trouble}")
    silent = time.monotonic() - vehicle.statistics.last_frame_s
    if vehicle.standing_s > STANDING_S:
        problems.append(f"the frame path has stood still for {vehicle.standing_s:.0f} s")
    elif vehicle.unscored_s > STANDING_S:
        problems.append(f"frames come, but no frame was scored for {vehicle.unscored_s:.0f} s")
    elif silent > silence_s and not vehicle.finished:
        problems.append(f"no frame was scored for {silent:.0f} s")
    return {
        "ok": not problems,
        "problems": problems,
        "bundle": vehicle.scorer.label,
        "provider": vehicle.scorer.engine.provider,
        "step": vehicle.ladder.step,
        "frames": vehicle.statistics.frames,
        "not_available": vehicle.not_available,
        "uplink": uplink,
    }


class VehicleMetrics(Collector):
    """Collects metrics for Prometheus: reads the vehicle when it is scraped."""

    def __init__(
        self,
        vehicle: Vehicle | None,
        *,
        counters: Callable[[], Counters],
        hold: Callable[[], str] = str,
        uplink_counts: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._vehicle = vehicle
        self._counters = counters
        self._hold = hold
        self._uplink_counts = uplink_counts

    def describe(self) -> Iterator[Metric]:
        """Describes nothing in advance: the vehicle need not be ready when it is registered."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yields all metric families."""
        counters = self._counters()
        yield from _sample_counters(counters)
        yield GaugeMetricFamily("misfire_uploads_held", "1 after a wave of rejections", bool(self._hold()))
        events = CounterMetricFamily("misfire_uplink", "Events of the uplink", labels=["event"])
        for event, count in self._uplink_counts().items():
            events.add_metric([event], count)
        yield events
        if self._vehicle is not None:
            yield from _frames(self._vehicle)
            yield from _distributions(self._vehicle)
            yield from _sources(self._vehicle)


def _frames(vehicle: Vehicle) -> Iterator[Metric]:
    stats = vehicle.statistics
    for name, text, counts in (
        ("misfire_chosen", "Samples spooled, by trigger", stats.chosen),
        ("misfire_suppressed", "Firings not taken, by reason", vehicle.selector.suppressed),
        ("misfire_refused_scores", "Scores that were not finite, by score", stats.refused_scores),
    ):
        family = CounterMetricFamily(name, text, labels=["kind"])
        for kind, value in dict(counts).items():
            family.add_metric([kind], value)
        yield family
    yield CounterMetricFamily("misfire_engine_failures", "Frames the engine failed on", stats.engine_failures)
    yield GaugeMetricFamily(
        "misfire_degradation_step", "Step of the ladder, 0 is normal", vehicle.ladder.step
    )
    yield GaugeMetricFamily(
        "misfire_writer_fill", "How full the writer's queue is, 0..1", vehicle.writer.fill
    )


def _sample_counters(counters: Counters) -> Iterator[Metric]:
    for name, value in counters.model_dump(exclude={"lost"}).items():
        # Pending samples become fewer; the others only count up.
        kind = GaugeMetricFamily if name == "pending" else CounterMetricFamily
        yield kind(f"misfire_{name}", f"{name} since the spool was made", value)
    lost = CounterMetricFamily("misfire_lost", "Chosen frames lost since the spool was made", labels=["kind"])
    for reason, value in counters.lost.items():
        lost.add_metric([reason], value)
    yield lost


def _distributions(vehicle: Vehicle) -> Iterator[Metric]:
    stats = vehicle.statistics
    p50, p99 = stats.latency_ms()
    latency = GaugeMetricFamily("misfire_latency_ms", "Frame latency, quantiles", labels=["quantile"])
    latency.add_metric(["0.5"], p50)
    latency.add_metric(["0.99"], p99)
    yield latency
    scores = GaugeMetricFamily("misfire_score", "Score quantiles", labels=["score", "quantile"])
    for level in _LEVELS:
        for name, value in stats.quantiles(level).items():
            scores.add_metric([name, str(level)], value)
    yield scores
    thresholds = GaugeMetricFamily("misfire_threshold", "Present thresholds", labels=["trigger"])
    for name, value in vehicle.selector.thresholds.items():
        thresholds.add_metric([name], value)
    yield thresholds


def _sources(vehicle: Vehicle) -> Iterator[Metric]:
    family = CounterMetricFamily("misfire_source", "Events per source", labels=["source", "event"])
    for source in vehicle.sources:
        for event in ("read", "unreadable", "dropped", "stalls", "reconnects"):
            family.add_metric([source.name, event], getattr(source.counts, event))
    yield family


class TelemetryServer(Endpoint):
    """Serves /metrics and /healthz from its own thread."""

    def __init__(
        self,
        vehicle: Vehicle | None,
        *,
        counters: Callable[[], Counters],
        host: str,
        port: int,
        hold: Callable[[], str] = str,
        problems: Callable[[], Sequence[str]] = tuple,
        uplink: Callable[[], str | None] = lambda: None,
        uplink_counts: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """port: 0 lets the system choose (`port` tells). Raises ConfigError where it cannot listen.

        vehicle: None if it could not be started. hold: why nothing is offered, or "".
        problems, uplink: see `health`. uplink_counts: what the uplink did, by event.
        """
        registry = CollectorRegistry(auto_describe=False)
        registry.register(VehicleMetrics(vehicle, counters=counters, hold=hold, uplink_counts=uplink_counts))

        def healthz() -> Page:
            state = health(vehicle, others=problems(), uplink=uplink())
            return Page(json.dumps(state).encode(), "application/json", 200 if state["ok"] else 503)

        pages = {"/metrics": lambda: metrics_page(registry), "/healthz": healthz}
        super().__init__(pages, host=host, port=port, name="telemetry")
