"""Checks at the start that every route that writes names the role it needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fastapi import APIRouter
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from misfire_fleet.console.access.callers import Requires

READS = frozenset({"GET", "HEAD", "OPTIONS"})
PUBLIC_WRITES = frozenset({("POST", "/api/session"), ("POST", "/api/welcome")})
"""Signing in, and using a one-time link: who does it has no role yet."""


def refuse_open_writes(router: APIRouter) -> None:
    """Raises ValueError if a route that writes does not depend on `requires`."""
    for path, route in routes_in(router.routes):
        writes = {(method, path) for method in (route.methods or set()) - READS} - PUBLIC_WRITES
        if writes and required(route) is None:
            raise ValueError(f"{sorted(writes)[0]}: a route that writes depends on requires(ROLE)")


def routes_in(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[tuple[str, APIRoute]]:
    """Yields path and route of all routes, those of included routers too."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield prefix + route.path, route
        # FastAPI keeps an included router as it is, with what was said at its inclusion beside it.
        included = getattr(route, "original_router", None)
        if included is not None:
            inside = getattr(getattr(route, "include_context", None), "prefix", "")
            yield from routes_in(included.routes, prefix + inside)


def required(route: APIRoute) -> Requires | None:
    """Returns what a route requires of its caller; None if it names no role."""
    return next((each.call for each in _walk(route.dependant) if isinstance(each.call, Requires)), None)


def _walk(dependant: Dependant) -> Iterator[Dependant]:
    for each in dependant.dependencies:
        yield each
        yield from _walk(each)
