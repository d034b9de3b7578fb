"""Defines a collector's Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)
"""Buckets from a commit to a fast disk (milliseconds) to a store that is away (a minute)."""


class CollectorMetrics:
    """Holds a collector's metrics in their own registry, so that a process can run several collectors."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.offers = Counter("misfire_offers", "Well-formed offers.", registry=self.registry)
        self.verdicts = Counter(
            "misfire_verdicts", "Verdicts given.", ["verdict", "cause"], registry=self.registry
        )
        self.chunks = Counter("misfire_chunks", "Chunks received.", registry=self.registry)
        self.chunk_bytes = Counter("misfire_chunk_bytes", "Bytes of chunks received.", registry=self.registry)
        self.stored_bytes = Counter("misfire_stored_bytes", "Bytes stored anew.", registry=self.registry)
        self.malformed = Counter(
            "misfire_malformed", "Messages that are not of the protocol.", ["kind"], registry=self.registry
        )
        self.dropped = Counter(
            "misfire_dropped", "Messages dropped because too many waited.", ["kind"], registry=self.registry
        )
        self.strangers = Counter(
            "misfire_strangers",
            "Vehicles not written down: too many are known of which no sample is stored.",
            registry=self.registry,
        )
        self.implausible_clocks = Counter(
            "misfire_implausible_clocks",
            "Samples stored whose time of capture by the vehicle's clock cannot be right.",
            registry=self.registry,
        )
        self.unknown_chunks = Counter(
            "misfire_unknown_chunks", "Chunks of transfers that are not open here.", registry=self.registry
        )
        self.asked_again = Counter(
            "misfire_asked_again", "Requests repeated after a gap or a stall.", registry=self.registry
        )
        self.spoiled = Counter(
            "misfire_spoiled", "Transfers begun again because the hash differed.", registry=self.registry
        )
        self.floods = Counter(
            "misfire_floods", "Transfers ended because of far too many chunks.", registry=self.registry
        )
        self.retained_cleared = Counter(
            "misfire_retained_cleared",
            "Messages cleared that a vehicle made the broker retain in data topics.",
            registry=self.registry,
        )
        self.abandoned = Counter("misfire_abandoned", "Transfers given up.", registry=self.registry)
        self.store_failures = Counter(
            "misfire_store_failures", "Commits that the store did not take.", registry=self.registry
        )
        self.failures = Counter(
            "misfire_failures",
            "Errors that nobody foresaw, by the part of the collector.",
            ["part"],
            registry=self.registry,
        )
        self.commit_seconds = Histogram(
            "misfire_commit_seconds",
            "Duration of writing a group's blobs, of committing its rows.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.group_size = Histogram(
            "misfire_group_size",
            "Samples per commit.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.seconds_to_stored = Histogram(
            "misfire_seconds_to_stored",
            "From the first `send` to `stored`.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.breaker_open = Gauge(
            "misfire_breaker_open", "1 while no new samples are taken.", registry=self.registry
        )
        self.last_stored = Gauge(
            "misfire_last_stored_timestamp_seconds",
            "When the last sample was stored, in seconds since 1970; 0 before the first.",
            registry=self.registry,
        )
        self.oldest_offer = Gauge(
            "misfire_oldest_offer_seconds",
            "For how long the oldest unanswered offer has waited.",
            registry=self.registry,
        )
        self.stuck = Gauge(
            "misfire_stuck_seconds",
            "For how long whole samples have been waiting without one being stored or rejected.",
            registry=self.registry,
        )
        self.longest_check = Gauge(
            "misfire_longest_check_seconds",
            "For how long the longest of the present checks has been running.",
            registry=self.registry,
        )
        self.busy_share = Gauge(
            "misfire_busy_share",
            "Share of `busy` for the collector's reasons in five minutes, the mean of all vehicles.",
            registry=self.registry,
        )
        self.rejected_share = Gauge(
            "misfire_rejected_share",
            "Share of `rejected` in five minutes, the mean of all vehicles.",
            registry=self.registry,
        )
        self.transfers = Gauge("misfire_transfers", "Transfers open.", registry=self.registry)
        self.transfer_bytes = Gauge(
            "misfire_transfer_bytes", "Bytes reserved by them.", registry=self.registry
        )
        self.transfers_full = Gauge(
            "misfire_transfers_full_seconds",
            "For how long no new transfer has found room.",
            registry=self.registry,
        )
        self.offers_waiting = Gauge(
            "misfire_offers_waiting", "Offers not yet answered.", registry=self.registry
        )
        self.verdicts_waiting = Gauge(
            "misfire_verdicts_waiting", "Verdicts to be sent.", registry=self.registry
        )
        self.ready = Gauge(
            "misfire_ready", "1 where the broker delivers to this collector.", registry=self.registry
        )
        self.reconnects = Gauge(
            "misfire_stall_reconnects", "Connections made anew by the watchdog.", registry=self.registry
        )
