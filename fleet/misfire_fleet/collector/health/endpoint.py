"""/metrics for Prometheus and /healthz for a supervisor, beside a running collector."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from misfire_fleet.collector.collector import Collector
from misfire_fleet.errors import CollectorError


class MetricsEndpoint:
    """Listens at once; `port` 0 takes a free one. Raises CollectorError where the port is taken."""

    def __init__(self, collector: Collector, *, host: str, port: int) -> None:
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(collector))
        except OSError as error:
            raise CollectorError(f"metrics port {host}:{port}: {error.strerror}") from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._reply(200, generate_latest(collector.metrics.registry), CONTENT_TYPE_LATEST)
            elif self.path == "/healthz":
                problems = collector.problems()
                text = "\n".join(problems or ["ok"]) + "\n"
                self._reply(503 if problems else 200, text.encode(), "text/plain; charset=utf-8")
            else:
                self._reply(404, b"/metrics and /healthz are here\n", "text/plain; charset=utf-8")

        def _reply(self, status: int, body: bytes, media_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silent: a scrape every few seconds is no news."""

    return Handler
