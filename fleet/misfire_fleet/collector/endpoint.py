"""/metrics for Prometheus and /healthz for a supervisor, beside a running collector."""

from __future__ import annotations

from misfire_fleet.collector.collector import Collector
from misfire_runtime.service.endpoint import Endpoint, Page, metrics_page


class MetricsEndpoint(Endpoint):
    """Listens at once; `port` 0 takes a free one. Raises ConfigError where the port is taken."""

    def __init__(self, collector: Collector, *, host: str, port: int) -> None:
        def healthz() -> Page:
            problems = collector.problems()
            text = "\n".join(problems or ["ok"]) + "\n"
            return Page(text.encode(), status=503 if problems else 200)

        pages = {"/metrics": lambda: metrics_page(collector.metrics.registry), "/healthz": healthz}
        super().__init__(pages, host=host, port=port)
