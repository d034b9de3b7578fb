"""Shows the audit log: who changed what, and how it was before and after."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse

from misfire_fleet.console.access import Caller, requires
from misfire_fleet.console.api.audit import Wanted
from misfire_fleet.console.recent import Recent
from misfire_fleet.console.rules.cursors import Cursor, after_number, cursor_of
from misfire_fleet.console.shared import Shared
from misfire_fleet.store.audit.search import actions, lines

Operator = Annotated[Caller, Depends(requires("operator"))]
_LINES = 100
_CHOICES_S = 10.0
_FIELDS = ("actor", "action", "subject", "since", "until")


def router(shared: Shared) -> APIRouter:
    """Returns /audit."""
    routes = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)
    database = shared.store.database
    choices = Recent(lambda: actions(database), max_age_s=_CHOICES_S)

    @routes.get("/audit")
    def audit(request: Request, _caller: Operator, wanted: Wanted, cursor: Cursor = "") -> Response:
        found = lines(database, wanted, before_seq=after_number("audit", cursor), limit=_LINES + 1)
        given = {name: text for name in _FIELDS if (text := request.query_params.get(name, ""))}
        more = None
        if len(found) > _LINES:
            found = found[:_LINES]
            more = "/audit?" + urlencode(given | {"cursor": cursor_of("audit", found[-1].seq)})
        shown: dict[str, Any] = {"lines": found, "more": more, "changes": changes}
        if request.headers.get("HX-Request"):
            return shared.render.page("audit_rows.html", **shown)
        return shared.render.page(
            "audit.html", given=given, choices=choices(), export=urlencode(given), **shown
        )

    return routes


def changes(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    """Returns the fields that differ: name, before, after."""
    old, new = before or {}, after or {}
    return [
        (name, _short(old.get(name)), _short(new.get(name)))
        for name in sorted(set(old) | set(new))
        if old.get(name) != new.get(name)
    ]


def _short(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 120 else text[:119] + "…"
