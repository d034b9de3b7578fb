"""Shows the own account: password, sessions, tokens; and all accounts to admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.responses import HTMLResponse

from misfire_fleet.accounts.passwords import MAX_CHARS, MIN_CHARS
from misfire_fleet.accounts.records import AREAS
from misfire_fleet.accounts.roles import ROLES, suffices
from misfire_fleet.accounts.sessions import Sessions
from misfire_fleet.accounts.tokens import MAX_DAYS, Tokens
from misfire_fleet.console.access import Caller, requires
from misfire_fleet.console.shared import Shared

Viewer = Annotated[Caller, Depends(requires("viewer"))]


def router(shared: Shared) -> APIRouter:
    """Returns /settings."""
    routes = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)
    sessions, tokens = Sessions(shared.store, limits=shared.access.sessions), Tokens(shared.store)

    @routes.get("/settings")
    def settings(caller: Viewer) -> Response:
        if shared.access.open_to_all:
            return shared.render.page("settings_open.html")
        admin = caller.may("admin")
        return shared.render.page(
            "settings.html",
            account=shared.accounts.get(caller.name),
            sessions=sessions.of(caller.name),
            tokens=tokens.of(None if admin else caller.name),
            users=shared.accounts.all() if admin else [],
            roles=ROLES,
            own_roles=[role for role in ROLES if suffices(caller.role, role)],
            areas=AREAS,
            most_days=MAX_DAYS,
            least=MIN_CHARS,
            most=MAX_CHARS,
        )

    return routes
