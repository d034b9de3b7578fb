"""Renders templates, and answers errors as a page or, under /api/, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from misfire_fleet.console.access.callers import current_caller
from misfire_fleet.console.format import (
    age,
    brief,
    byte_count,
    number,
    percent,
    share,
    utc,
    vehicle_link,
    visible,
)
from misfire_fleet.console.navigation import PLACES
from misfire_runtime import __version__
from misfire_runtime.clock import wall_time

_TEMPLATES = Path(__file__).parent / "templates"


class Renderer:
    """Renders the templates of the package with the console's filters."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=True,  # vehicle names, reasons and predictions come from outside
            undefined=StrictUndefined,  # a misspelt name fails in a test instead of leaving a gap on the page
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=visible,
        )
        self._templates.filters.update(
            age=age,
            brief=brief,
            bytes=byte_count,
            number=number,
            percent=percent,
            share=share,
            utc=utc,
            vehicle_link=vehicle_link,
        )

    def page(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Returns a page. `values` are variables of the template, besides those that every page has."""
        caller = current_caller()
        places = [each for each in PLACES if caller is not None and caller.may(each.role)]
        text = self._templates.get_template(template).render(
            now=wall_time(), version=__version__, places=places, caller=caller, **values
        )
        return HTMLResponse(text, status_code=status)

    def problem(self, request: Request, status: int, title: str, text: str) -> Response:
        """Returns an error as a page, or as JSON for a path under /api/."""
        if for_programs(request):
            return problem_json(status, title, text)
        return self.page("problem.html", status=status, title=title, text=text)


def problem_json(
    status: int, title: str, detail: str, *, errors: Sequence[Mapping[str, Any]] = ()
) -> JSONResponse:
    """Returns an error in the API's one format, problem details of RFC 9457.

    Args:
        status: of the answer.
        title: kind of the error.
        detail: a sentence that says what is wrong.
        errors: the fields that are wrong: `loc`, `msg`, `type`.
    """
    body: dict[str, Any] = {"title": title, "status": status, "detail": detail}
    if errors:
        body["errors"] = [dict(each) for each in errors]
    return JSONResponse(body, status, media_type="application/problem+json")


def for_programs(request: Request) -> bool:
    """Returns True if the answer is read by a program: the path is under /api/."""
    return request.url.path.startswith("/api/")
