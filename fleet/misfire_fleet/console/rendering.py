"""Renders templates, and answers errors as a page or, under /api/, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

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
        """Returns a page. `values` are the template's variables, besides `now`, `version` and `places`."""
        text = self._templates.get_template(template).render(
            now=wall_time(), version=__version__, places=PLACES, **values
        )
        return HTMLResponse(text, status_code=status)

    def problem(self, request: Request, status: int, title: str, text: str) -> Response:
        """Returns an error as a page, or as JSON for a path under /api/."""
        if for_programs(request):
            return JSONResponse({"detail": text}, status)
        return self.page("problem.html", status=status, title=title, text=text)


def for_programs(request: Request) -> bool:
    """Returns True if the answer is read by a program: the path is under /api/."""
    return request.url.path.startswith("/api/")
