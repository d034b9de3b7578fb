"""Serves a running collector's /metrics for Prometheus and /healthz for a supervisor."""

from __future__ import annotations

from misfire_fleet.collector.collector import Collector
from misfire_runtime.service.endpoint import Endpoint, Page, metrics_page


class MetricsEndpoint(Endpoint):
    """Listens for HTTP requests as soon as it is created.

    Args:
        collector: the collector to report on.
        host: address to bind to.
        port: port to bind to; 0 chooses a free one.

    Raises:
        ConfigError: the port is in use.
    """

    def __init__(self, collector: Collector, *, host: str, port: int) -> None:
        def healthz() -> Page:
            problems = collector.problems()
            text = "\n".join(problems or ["ok"]) + "\n"
            return Page(text.encode(), status=503 if problems else 200)

        pages = {"/metrics": lambda: metrics_page(collector.metrics.registry), "/healthz": healthz}
        super().__init__(pages, host=host, port=port)
