"""Implements `misfire fleet serve`: runs the console until SIGTERM or Ctrl-C."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from misfire_fleet.commands.options import JsonLogs, StoreOptions, with_options
from misfire_runtime.errors import ConfigError

if TYPE_CHECKING:
    from misfire_fleet.store import Store

_END_S = 3
"""Seconds that requests may take when the console ends."""


@with_options(place=StoreOptions)
def serve(
    *,
    place: StoreOptions,
    host: Annotated[str, typer.Option(help="Listen on this address.")] = "127.0.0.1",
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
    open_: Annotated[
        bool,
        typer.Option("--open", help="Ask for no name and password; for a laptop, only on a loopback --host."),
    ] = False,
    url: Annotated[
        str,
        typer.Option(
            envvar="MISFIRE_CONSOLE_URL",
            help="Be reached at this address, such as https://console.example, through a proxy. "
            "With https, cookies are for https only.",
        ),
    ] = "",
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Believe X-Forwarded-For of the proxy with this address or network (repeat). "
            "Default: of none."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Read the identity provider ([oidc]) from this TOML file.")
    ] = None,
    idle_hours: Annotated[
        float, typer.Option(help="End a session after so many hours without a request.", min=0.01, max=720)
    ] = 12.0,
    session_days: Annotated[
        float, typer.Option(help="End a session after so many days in any case.", min=0.01, max=90)
    ] = 7.0,
    open_metrics: Annotated[
        bool,
        typer.Option("--open-metrics", help="Let programs on this machine read /metrics without a token."),
    ] = False,
    json_logs: JsonLogs = False,
) -> None:
    """Show what was uploaded, as pages and as JSON."""
    import uvicorn

    from misfire_fleet.accounts.oidc import read_console_config
    from misfire_fleet.accounts.sessions import SessionLimits
    from misfire_fleet.console.access.settings import AccessSettings
    from misfire_fleet.console.app import create_app
    from misfire_runtime.service.logs import logs_to

    if open_:
        refuse_public(host, url=url, allowed_hosts=allowed_host or ())
    oidc = read_console_config(config).oidc if config is not None else None
    access = AccessSettings(
        oidc=oidc,
        open_to_all=open_,
        url=checked_origin(url, option="--url") if url else "",
        sessions=SessionLimits(idle_s=3600 * idle_hours, absolute_s=86_400 * session_days),
        open_metrics=open_metrics,
    )
    origin = checked_origin(label_tool) if label_tool else ""
    # Before the store is opened and checked, which takes seconds: a port in use is reported at once.
    listener = listen(host, port)
    with (
        logs_to(sys.stderr, form="json" if json_logs else "plain"),
        place.open(checked=True) as store,
        listener,
    ):
        address = access.url or f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        typer.echo(f"console at {address}/")
        app = create_app(store, allowed_hosts=[host, *(allowed_host or [])], label_tool=origin, access=access)
        if not open_:
            offer_first_admin(store, address)
        serving = uvicorn.Config(
            app,
            log_level="warning",
            server_header=False,
            proxy_headers=bool(trusted_proxy),
            forwarded_allow_ips=trusted_proxy or [],
            # Open pages hold a stream of events, which only ends with the server.
            timeout_graceful_shutdown=_END_S,
        )
        uvicorn.Server(serving).run(sockets=[listener])


def refuse_public(host: str, *, url: str, allowed_hosts: Sequence[str]) -> None:
    """Raises ConfigError if a console without accounts could be reached from another machine."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigError(
            f"--open --host {host}: without accounts, only a loopback address such as 127.0.0.1"
        )
    if url or allowed_hosts:
        raise ConfigError(
            "--open with --url or --allowed-host: a proxy would show everybody what has no accounts"
        )


def offer_first_admin(store: Store, address: str) -> None:
    """Prints a one-time link if no admin can sign in; links that were printed before end."""
    from misfire_fleet.accounts.accounts import Accounts
    from misfire_fleet.accounts.links import OneTimeLinks

    accounts = Accounts(store)
    if accounts.needs_admin():
        secret = OneTimeLinks(store, accounts).for_first_admin()
        typer.echo(
            f"no admin can sign in yet; open this once, within a day, to be the first:\n"
            f"{address}/welcome#{secret}"
        )
    # A supervisor's log is a pipe: without this, the link would come when the console ends.
    sys.stdout.flush()


def checked_origin(url: str, *, option: str = "--label-tool") -> str:
    """Returns an origin as browsers send it. Raises ConfigError if it is none."""
    parts = urlsplit(url.rstrip("/"))
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc or parts.path:
        raise ConfigError(f"{option} {url!r}: expected http://HOST[:PORT] or https://HOST[:PORT]")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def listen(host: str, port: int) -> socket.socket:
    """Returns a bound socket, so that the port chosen for port 0 is known before the server runs.

    Raises:
        ConfigError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP: asyncio switches Nagle's algorithm off only then, which costs 40 ms on each answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Otherwise a restart fails while connections of the previous server are in TIME_WAIT.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"--host {host} --port {port}: {error.strerror}") from error
    return listener
