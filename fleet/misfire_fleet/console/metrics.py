"""Exports the console's /metrics: vehicles' counters compared with the store, for alerts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from misfire_fleet.console.reconciliation import Difference
from misfire_fleet.store.records import Totals


class FleetMetrics(Collector):
    """Reads the store at each scrape; callers pass cached counts, so that frequent scrapes cost little."""

    def __init__(self, difference: Callable[[], Difference], totals: Callable[[], Totals]) -> None:
        self._difference, self._totals = difference, totals
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Returns nothing, so that the registry does not query the store at registration."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Yields one gauge per number. Raises what the store raises."""
        difference, totals = self._difference(), self._totals()
        for name, text, value in (
            (
                "misfire_books_difference",
                "Samples that vehicles count as stored and the fleet never had.",
                difference.missing,
            ),
            (
                "misfire_books_vehicles_missing",
                "Vehicles with such samples.",
                difference.vehicles_missing,
            ),
            (
                "misfire_books_vehicles_unbalanced",
                "Vehicles whose own counts do not add up.",
                difference.vehicles_unbalanced,
            ),
            ("misfire_frames_lost", "Chosen frames that never became a sample.", difference.lost),
            ("misfire_samples", "Samples stored.", totals.samples),
            ("misfire_vehicles", "Vehicles heard of.", totals.vehicles),
            ("misfire_vehicles_online", "Vehicles online, with heartbeats in time.", totals.online),
        ):
            yield GaugeMetricFamily(name, text, value=value)
