"""Serves the audit log: pages of lines, newest first, and all of them as CSV or JSON lines.

The log says who did what and from which address, so it is for operators.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from misfire_fleet.console.access import Caller, requires
from misfire_fleet.console.filters import Text, readable
from misfire_fleet.console.format import utc
from misfire_fleet.console.rules.cursors import Cursor, after_number, cursor_of
from misfire_fleet.console.shared import Shared
from misfire_fleet.moments import parse_moment
from misfire_fleet.store.audit.search import AuditFilter, AuditLine, all_lines, lines

Operator = Annotated[Caller, Depends(requires("operator"))]
Form = Annotated[Literal["csv", "jsonl"], Query(alias="format")]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_COLUMNS = ("seq", "time", "actor", "via", "action", "subject", "before", "after", "detail")


class AuditJson(BaseModel):
    """Describes a line of the audit log. `before` and `after` are states of `subject`."""

    seq: int
    at: float
    actor: str
    via: str
    action: str
    subject: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    detail: dict[str, Any]


class AuditPage(BaseModel):
    """Holds lines of the audit log, newest first. Pass `next` as `cursor` to get the next page."""

    lines: list[AuditJson]
    next: str | None


def audit_filter(
    *, actor: Text = "", action: Text = "", subject: Text = "", since: Text = "", until: Text = ""
) -> AuditFilter:
    """Parses the fields. Raises HTTPException 422 that names the invalid field."""
    given = {"actor": actor, "action": action, "subject": subject, "since": since, "until": until}
    for field, text in given.items():
        readable(field, text)
    return AuditFilter(actor, action, subject, _time("since", since), _time("until", until))


Wanted = Annotated[AuditFilter, Depends(audit_filter)]


def audit_api(shared: Shared) -> APIRouter:
    """Returns the routes under /api/audit."""
    router, database = APIRouter(tags=["audit"]), shared.store.database

    @router.get("/api/audit")
    def read(
        _caller: Operator,
        wanted: Wanted,
        cursor: Cursor = "",
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
    ) -> AuditPage:
        """Lists who changed what, newest first."""
        found = lines(database, wanted, before_seq=after_number("audit", cursor), limit=limit + 1)
        more = cursor_of("audit", found[limit - 1].seq) if len(found) > limit else None
        return AuditPage(lines=[AuditJson(**asdict(each)) for each in found[:limit]], next=more)

    @router.get(
        "/api/audit/export",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/csv": {}, "application/jsonl": {}}}},
    )
    def export(_caller: Operator, wanted: Wanted, form: Form = "csv") -> StreamingResponse:
        """Sends all lines, oldest first, as CSV or as one JSON object a line."""
        found = all_lines(database, wanted)
        name = {"Content-Disposition": f'attachment; filename="audit.{form}"'}
        if form == "csv":
            return StreamingResponse(_csv(found), media_type="text/csv", headers=name)
        rows = (json.dumps(asdict(each), sort_keys=True) + "\n" for each in found)
        return StreamingResponse(rows, media_type="application/jsonl", headers=name)

    return router


def _csv(found: Iterator[AuditLine]) -> Iterator[str]:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for line in found:
        cells = [_cell(each) for each in (line.actor, line.via, line.action, line.subject)]
        states = [_state(each) for each in (line.before, line.after, line.detail)]
        writer.writerow([line.seq, utc(line.at), *cells, *states])
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    yield text.getvalue()


def _state(state: dict[str, Any] | None) -> str:
    return "" if state is None else json.dumps(state, sort_keys=True)


def _cell(text: str) -> str:
    """Returns text that no spreadsheet runs as a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _time(field: str, text: str) -> float | None:
    try:
        return parse_moment(text) if text else None
    except ValueError as error:
        raise HTTPException(422, f"{field} {text!r}: {error}") from error
