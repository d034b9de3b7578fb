"""Serves a service's HTTP pages for programs: /metrics for Prometheus, /healthz for a supervisor.

GET path -> the page's function -> status, media type, body.  Each request has a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from misfire_runtime.errors import ConfigError
from misfire_runtime.service.worker import Worker

_POLL_S = 0.2
"""Period at which the server checks for its end, and so the longest wait of `close`."""
_REQUEST_S = 10
"""Seconds after which a silent client is disconnected: each one holds a thread."""


@dataclass(frozen=True)
class Page:
    """Holds a response."""

    body: bytes
    media_type: str = "text/plain; charset=utf-8"
    status: int = 200


class Endpoint:
    """Serves pages from its creation until `close`.

    Args:
        pages: functions by path, called at each request.
        host: address to listen on.
        port: port to listen on; 0 chooses a free one, see the attribute `port`.
        name: name of the thread, also used in errors.

    Raises:
        ConfigError: the address cannot be used.
    """

    def __init__(
        self, pages: Mapping[str, Callable[[], Page]], *, host: str, port: int, name: str = "metrics"
    ) -> None:
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(pages))
        except OSError as error:
            raise ConfigError(f"{name}: cannot listen on {host}:{port}: {error.strerror}") from error
        # A client that reads slowly must not keep the process from ending.
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._worker = Worker(name, self._serve, wake=self._server.shutdown)
        self._worker.start()

    def close(self) -> None:
        """Stops listening."""
        # Stopped before the socket is closed, which the server still polls.
        self._worker.close(timeout_s=5.0)
        self._server.server_close()

    def _serve(self, _stop: threading.Event) -> None:
        self._server.serve_forever(_POLL_S)


def metrics_page(registry: CollectorRegistry) -> Page:
    """Returns a registry as a page for Prometheus."""
    return Page(generate_latest(registry), CONTENT_TYPE_LATEST)


def _handler(pages: Mapping[str, Callable[[], Page]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_S

        def do_GET(self) -> None:
            page = pages.get(self.path)
            answer = _absent(pages) if page is None else page()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.media_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing: there is a request every few seconds."""

    return Handler


def _absent(pages: Mapping[str, Callable[[], Page]]) -> Page:
    return Page(f"there are {' and '.join(pages)}\n".encode(), status=404)
