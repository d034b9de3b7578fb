"""Checks the Host of every request and the origin of every write, and sets the security headers."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from misfire_fleet.console.rendering import problem_json

# Scripts and styles are files of the console; nothing is inline.
_CSP = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_ALWAYS = {
    "Content-Security-Policy": _CSP,
    # Browsers must not guess another type: uploads come from vehicles.
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_BODY = 512 * 1024
"""Bytes of a write; a verdict with some hundred boxes has a tenth of it."""
PRIVATE = "private, no-cache"
"""Shared caches must not keep pages; browsers revalidate a page before they show it again."""


class Guard:
    """Wraps the console as ASGI middleware, outside `Access`: it knows requests, not callers.

    It prevents DNS rebinding: a foreign page can make its own host name resolve to this machine and read the
    console through the visitor's browser. Such a request has a foreign name as Host, so unknown names are
    refused. An IP address cannot be rebound, so any address is allowed. Starlette's TrustedHostMiddleware has
    no rule for addresses, and its error does not name the option to set.

    A write of another site's page is refused: browsers name the page's origin in every such request. A
    request that names none is a program's; with the cookie of a session, `Access` refuses it. A body is JSON
    of a stated, bounded length: another site's page may send that only after asking this console, which
    refuses.

    Args:
        app: answers the requests.
        allowed_hosts: names of the console.
        label_tool: origin whose pages may show and read uploads (`/blobs/`); "" allows none.
        url: by which browsers reach the console through a proxy; "" if they reach it directly.
    """

    def __init__(
        self, app: ASGIApp, *, allowed_hosts: Iterable[str], label_tool: str = "", url: str = ""
    ) -> None:
        self._app = app
        self._url = url.lower()
        self._named = {host.lower() for host in allowed_hosts}
        self._hosts = {"localhost", *self._named}
        if url:
            self._hosts.add(urlsplit(self._url).hostname or "")
        https = {"Strict-Transport-Security": "max-age=31536000"} if url.startswith("https:") else {}
        self._always = _ALWAYS | https
        self._lent: dict[str, str] = {}
        if label_tool:
            # Any page can show a picture whose SHA-256 it knows; only the tool's can read its pixels.
            self._lent = {
                "Cross-Origin-Resource-Policy": "cross-origin",
                "Access-Control-Allow-Origin": label_tool,
                "Vary": "Origin",
            }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host = _host_of(Headers(scope=scope).get("host", ""))
        if host not in self._hosts and not _is_address(host):
            text = f"This console does not go by the name {host[:200]!r}: start it with --allowed-host.\n"
            await PlainTextResponse(text, 400)(scope, receive, send)
            return
        if scope["method"] not in _READS:
            status, text = self._refused_write(Headers(scope=scope))
            if status:
                answer = problem_json(status, "Not possible", text)
                await answer(scope, receive, _with_headers(send, self._always))
                return
        if scope["method"] == "HEAD":
            # Routes only know GET. The server (uvicorn) omits the body of the response to HEAD.
            scope = {**scope, "method": "GET"}
        lent = self._lent if str(scope["path"]).startswith("/blobs/") else {}
        await self._app(scope, receive, _with_headers(send, self._always | lent))

    def _refused_write(self, headers: Headers) -> tuple[int, str]:
        """Returns the status and the reason if a write is refused; 0 if it is not."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        if (
            origin is not None and not self._is_own(origin, headers.get("host", ""))
        ) or site != "same-origin":
            return 403, "this request comes from a page of another site; open the console itself"
        # Without either header there is no body: fetch sends DELETE like that.
        length = headers.get("content-length", "" if "transfer-encoding" in headers else "0")
        if not length.isascii() or not length.isdigit():
            return 411, "a write states the length of its body"
        if int(length[:20]) > MAX_BODY:
            return 413, f"a body has at most {MAX_BODY} bytes"
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if int(length) and kind != "application/json":
            return 415, "a body is JSON: send it as application/json"
        return 0, ""

    def _is_own(self, origin: str, host: str) -> bool:
        """Returns True if a page of this origin is the console's: the host asked for, or a proxy's name."""
        try:
            parts = urlsplit(origin.lower())
            name, port = parts.hostname or "", parts.port
        except ValueError:
            return False
        if self._url.startswith("https:") and parts.scheme != "https":
            return False
        if origin.lower() == self._url:
            return True
        return bool(name) and (parts.netloc == host.lower() or (name in self._named and port is None))


def _with_headers(send: Send, always: Mapping[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            own = headers.get("Content-Security-Policy")
            headers.update(always)
            # Files of vehicles have a stricter rule of their own.
            if own is not None:
                headers["Content-Security-Policy"] = own
            # setdefault: pictures have their own rule, which lets browsers keep them for minutes.
            headers.setdefault("Cache-Control", PRIVATE)
        await send(message)

    return sending


def _host_of(header: str) -> str:
    """Returns the host of a Host header without its port; empty if the header is invalid."""
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
