"""What stands before every page: the Host that was asked for, HEAD, and the headers of every answer."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CSP = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
_ALWAYS = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PRIVATE = "private, no-cache"
"""No shared cache keeps a page; a browser asks before it shows one again."""


class Guard:
    """ASGI middleware around the console.

    A page of somebody else can have its name point to this machine, and read the console in the name of
    whoever looks at it. Its Host is a name that this console does not go by. An address needs no name, so
    any address may be asked for. Starlette's middleware knows no addresses, and does not say what to do.
    """

    def __init__(self, app: ASGIApp, *, allowed_hosts: Iterable[str]) -> None:
        self._app = app
        self._hosts = {"localhost", *(host.lower() for host in allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host = _host_of(Headers(scope=scope).get("host", ""))
        if host not in self._hosts and not _is_address(host):
            text = f"This console does not go by the name {host[:200]!r}: start it with --allowed-host.\n"
            await PlainTextResponse(text, 400)(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            # As GET; the server leaves the body out.
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, _with_headers(send))


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(_ALWAYS)
            headers.setdefault("Cache-Control", PRIVATE)
        await send(message)

    return sending


def _host_of(header: str) -> str:
    """The host without its port; empty if it cannot be read."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
