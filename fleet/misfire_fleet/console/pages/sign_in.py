"""Shows the two pages that need no account: signing in, and setting a password by a one-time link."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from misfire_fleet.accounts.passwords import MAX_CHARS, MIN_CHARS
from misfire_fleet.console.shared import Shared


def router(shared: Shared) -> APIRouter:
    """Returns /sign-in and /welcome."""
    routes = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)

    @routes.get("/sign-in")
    def sign_in() -> Response:
        if shared.access.open_to_all:
            return RedirectResponse("/", 303)
        return shared.render.page(
            "sign_in.html", provider=shared.access.oidc.title if shared.access.oidc is not None else ""
        )

    @routes.get("/welcome")
    def welcome() -> Response:
        return shared.render.page("welcome.html", least=MIN_CHARS, most=MAX_CHARS)

    return routes
