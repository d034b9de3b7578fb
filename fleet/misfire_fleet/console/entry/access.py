"""Finds the caller of each request, and turns away who may not ask; only what is listed here is public.

    request --Authorization: Bearer--> token     --cookie--> session     --?link= of /blobs/--> signed link
            --none of them--> 401 for programs, the sign-in page for people

It runs before all routes, so a page that is added is never open by mistake.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import parse_qs, quote

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from misfire_fleet.accounts.links import SignedLinks
from misfire_fleet.accounts.sessions import Sessions
from misfire_fleet.accounts.tokens import Tokens
from misfire_fleet.actor import current_actor
from misfire_fleet.console.access.callers import Caller, set_caller
from misfire_fleet.console.access.cookies import drop_session, session_in
from misfire_fleet.console.access.routes import PUBLIC_WRITES, READS
from misfire_fleet.console.access.settings import AccessSettings
from misfire_fleet.console.rendering import Renderer, for_programs
from misfire_fleet.store import Store
from misfire_runtime.errors import MisfireError

_PUBLIC = frozenset({"/healthz", "/sign-in", "/welcome", "/favicon.ico"})
_PUBLIC_FOLDERS = ("/static/", "/oidc/")


_AREAS = {
    part: area
    for area, parts in {
        "samples": "uploads blobs thumbs crops boxes map pins selections views mcap fragments",
        "vehicles": "vehicle tags fleet drift",
        "datasets": "snapshots",
        "campaigns": "budget",
        "accounts": "users tokens settings session",
    }.items()
    for part in parts.split()
}
"""First parts of paths that belong to the area of another name."""
_EVERYBODYS = frozenset({"openapi.json", "me"})
"""First parts of paths that a token of any area may read."""


class Access:
    """Wraps the console as ASGI middleware; a request that reaches the routes has `request.state.caller`."""

    def __init__(self, app: ASGIApp, *, store: Store, settings: AccessSettings, render: Renderer) -> None:
        self._app, self._settings, self._render = app, settings, render
        self._sessions = Sessions(store, limits=settings.sessions)
        self._tokens = Tokens(store)
        self._links = SignedLinks(store)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        set_caller(None)
        if self._settings.is_https:
            scope = {**scope, "scheme": "https"}
        request = Request(scope)
        answer = None if _is_public(request) else await self._checked(request)
        await (answer or self._app)(scope, receive, send)

    async def _checked(self, request: Request) -> Response | None:
        """Sets the caller of the request; returns an answer if there is none, or if it may not ask this."""
        if self._settings.open_to_all:
            caller: Caller | None = Caller(current_actor(), "admin")
        else:
            try:
                caller = await run_in_threadpool(self._identified, request)
            except MisfireError as error:
                return self._render.problem(request, 503, "The store does not answer", str(error))
        if caller is None:
            return self._turned_away(request)
        refused = self._refused(request, caller)
        if refused:
            return self._render.problem(request, 403, "Not allowed", refused)
        request.state.caller = caller
        set_caller(caller)
        return None

    def _identified(self, request: Request) -> Caller | None:
        headers, path = request.headers, request.url.path
        if "authorization" in headers:
            # Whoever sends a token means the token: a wrong one is not replaced by the browser's session.
            return self._by_token(headers["authorization"])
        secret = session_in(headers.get("cookie", ""), request.url.scheme)
        session = self._sessions.find(secret)
        if session is not None:
            return Caller(session.account, session.role, "session", session.id)
        if path.startswith("/blobs/") and request.method in READS:
            (link, *_) = parse_qs(request.url.query).get("link", [""])
            if self._links.holds(path.removeprefix("/blobs/"), link):
                return Caller("signed-link", "viewer", "link")
        if path == "/metrics" and self._settings.open_metrics and _is_local(request):
            return Caller("metrics", "viewer", "link")
        return None

    def _by_token(self, header: str) -> Caller | None:
        kind, _, secret = header.partition(" ")
        found = self._tokens.find(secret.strip()) if kind.lower() == "bearer" else None
        if found is None:
            return None
        token, account = found
        return Caller(account.name, token.role, "token", token.id, token.areas)

    def _refused(self, request: Request, caller: Caller) -> str:
        """Returns why this caller may not ask this; "" if it may."""
        area = area_of(request.url.path)
        if caller.areas and area not in caller.areas and area not in _EVERYBODYS:
            return f"this token is only for {', '.join(caller.areas)}"
        if caller.how == "session" and request.method not in READS and not _is_own_page(request.headers):
            return "a browser names the page that a write comes from, and this request names none"
        return ""

    def _turned_away(self, request: Request) -> Response:
        path = request.url.path
        if (
            for_programs(request)
            or path in ("/openapi.json", "/metrics")
            or "authorization" in request.headers
        ):
            answer = self._render.problem(
                request, 401, "Sign in first", "sign in, or send a token that is valid"
            )
            answer.headers["WWW-Authenticate"] = 'Bearer realm="misfire"'
            return answer
        wanted = path + (f"?{request.url.query}" if request.url.query else "")
        target = "/sign-in" + ("" if wanted == "/" else f"?next={quote(wanted, safe='')}")
        if request.headers.get("hx-request"):
            # A redirect would be followed inside the part of the page that htmx replaces.
            answer = Response(status_code=401, headers={"HX-Redirect": "/sign-in"})
        elif request.method not in READS or path.startswith(("/blobs/", "/thumbs/")):
            answer = self._render.problem(request, 401, "Sign in first", "sign in to see this")
        else:
            answer = RedirectResponse(target, 303)
        if session_in(request.headers.get("cookie", ""), request.url.scheme):
            drop_session(answer, scheme=request.url.scheme)
        return answer


def area_of(path: str) -> str:
    """Returns the part of the console that a path belongs to: `/api/samples/ID` and `/uploads` to samples."""
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["api"]:
        parts = parts[1:]
    first = parts[0] if parts else "uploads"
    return _AREAS.get(first, first)


def _is_public(request: Request) -> bool:
    path = request.url.path
    if request.method in READS:
        return path in _PUBLIC or path.startswith(_PUBLIC_FOLDERS)
    return (request.method, path) in PUBLIC_WRITES


def _is_own_page(headers: Headers) -> bool:
    """Returns True if the browser says that the console's own page writes; Guard checked what it says."""
    return "origin" in headers or headers.get("sec-fetch-site") == "same-origin"


def _is_local(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
