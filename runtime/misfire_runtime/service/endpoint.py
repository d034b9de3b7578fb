"""Pages for programs beside a running service: /metrics for Prometheus, /healthz for a supervisor.

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
"""How long `close` waits at most for the server to notice."""
_REQUEST_S = 10
"""A client that sends nothing for this long is hung up on."""


@dataclass(frozen=True)
class Page:
    """What is answered."""

    body: bytes
    media_type: str = "text/plain; charset=utf-8"
    status: int = 200


class Endpoint:
    """Listens at once.

    Args:
        pages: by path; each function is called at each request.
        host, port: where to listen; port 0 takes a free one, which `port` names.
        name: of its thread, and in errors.

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
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._worker = Worker(name, self._serve, wake=self._server.shutdown)
        self._worker.start()

    def close(self) -> None:
        """Stops listening."""
        self._worker.close(timeout_s=5.0)
        self._server.server_close()

    def _serve(self, _stop: threading.Event) -> None:
        self._server.serve_forever(_POLL_S)


def metrics_page(registry: CollectorRegistry) -> Page:
    """Returns what Prometheus scrapes."""
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
            """A scrape every few seconds is not worth a log line."""

    return Handler


def _absent(pages: Mapping[str, Callable[[], Page]]) -> Page:
    return Page(f"there are {' and '.join(pages)}\n".encode(), status=404)
