"""Implements `misfire fleet serve`: runs the console until SIGTERM or Ctrl-C."""

from __future__ import annotations

import socket
import sys
from typing import Annotated
from urllib.parse import urlsplit

import typer

from misfire_fleet.commands.options import JsonLogs, StoreOptions, with_options
from misfire_runtime.errors import ConfigError


@with_options(place=StoreOptions)
def serve(
    *,
    place: StoreOptions,
    host: Annotated[
        str, typer.Option(help="Listen on this address; the console has no accounts of its own.")
    ] = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            envvar="MISFIRE_ALLOWED_HOSTS",
            help="Answer browsers that ask by this name, such as the proxy's; repeat it for several. "
            "Default: localhost, --host and any address.",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(help="Listen on this port; 0 takes a free one.", min=0, max=65535)
    ] = 8000,
    label_tool: Annotated[
        str,
        typer.Option(
            help="Let pages of the label tool at http[s]://HOST[:PORT] show uploads, "
            "for `misfire labels push --images console`."
        ),
    ] = "",
    json_logs: JsonLogs = False,
) -> None:
    """Show what was uploaded, as pages and as JSON."""
    import uvicorn

    from misfire_fleet.console.app import create_app
    from misfire_runtime.service.logs import logs_to

    origin = checked_origin(label_tool) if label_tool else ""
    # Before the store is opened and checked, which takes seconds: a port in use is reported at once.
    listener = listen(host, port)
    with (
        logs_to(sys.stderr, form="json" if json_logs else "plain"),
        place.open(checked=True) as store,
        listener,
    ):
        typer.echo(f"console at http://{host}:{listener.getsockname()[1]}/")
        app = create_app(store, allowed_hosts=[host, *(allowed_host or [])], label_tool=origin)
        config = uvicorn.Config(app, log_level="warning", server_header=False)
        uvicorn.Server(config).run(sockets=[listener])


def checked_origin(url: str) -> str:
    """Returns an origin as browsers send it. Raises ConfigError if it is none."""
    parts = urlsplit(url.rstrip("/"))
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc or parts.path:
        raise ConfigError(f"--label-tool {url!r}: expected http://HOST[:PORT] or https://HOST[:PORT]")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def listen(host: str, port: int) -> socket.socket:
    """Returns a bound socket, so that the port chosen for port 0 is known before the server runs.

    Raises:
        ConfigError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    # Otherwise a restart fails while connections of the previous server are in TIME_WAIT.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"--host {host} --port {port}: {error.strerror}") from error
    return listener
