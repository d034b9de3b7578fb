"""Answers each kind of error with its status, as a page or as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from misfire_fleet.console.rendering import Renderer, for_programs
from misfire_fleet.errors import (
    CampaignConflictError,
    CampaignGoneError,
    CheckFailedError,
    SampleGoneError,
    StoreError,
    StoreUnavailableError,
    VerdictConflictError,
    VerdictRefusedError,
)


class Problems:
    """Answers errors; `answers` has the handler of each exception type."""

    def __init__(self, render: Renderer) -> None:
        self._render = render

    @property
    def answers(self) -> dict[type[Exception], Callable[..., Any]]:
        """Returns the handler of each exception type."""
        return {
            SampleGoneError: self.gone,
            CampaignGoneError: self.gone,
            CampaignConflictError: self.conflict,
            VerdictRefusedError: self.not_recorded,
            VerdictConflictError: self.not_recorded,
            StoreUnavailableError: self.unavailable,
            StoreError: self.unavailable,
            CheckFailedError: self.unavailable,
            RequestValidationError: self.unreadable,
            StarletteHTTPException: self.refused,
        }

    async def gone(self, request: Request, error: Exception) -> Response:
        """Answers 404 for a sample or campaign that is not in the store."""
        return self._render.problem(request, 404, "Not here", str(error))

    async def not_recorded(self, request: Request, error: Exception) -> Response:
        """Answers 409 or 422 for a verdict that was not recorded."""
        status = 409 if isinstance(error, VerdictConflictError) else 422
        return self._render.problem(request, status, "Not recorded", str(error))

    async def conflict(self, request: Request, error: Exception) -> Response:
        """Answers 409 for a change that a campaign's state or name does not allow."""
        return self._render.problem(request, 409, "Not possible now", str(error))

    async def unavailable(self, request: Request, error: Exception) -> Response:
        """Answers 503 if the store or the decoder cannot work now."""
        decoding = isinstance(error, CheckFailedError)
        title = "The picture cannot be decoded now" if decoding else "The store does not answer"
        return self._render.problem(request, 503, title, str(error))

    async def refused(self, request: Request, error: HTTPException) -> Response:
        """Answers the HTTP errors that routes raise (403, 404, 405, 422) as a page or as JSON."""
        titles = {403: "Not allowed", 404: "Not here", 422: "The address cannot be read"}
        title = titles.get(error.status_code, "Not possible")
        answer = self._render.problem(request, error.status_code, title, str(error.detail))
        # A 405 has to name the allowed methods, which Starlette passes in the error's headers.
        answer.headers.update(error.headers or {})
        return answer

    async def unreadable(self, request: Request, error: RequestValidationError) -> Response:
        """Answers 422 and names the field; under /api/ in the form that /openapi.json describes."""
        if for_programs(request):
            # Without what was sent: it may be NaN, which JSON does not have, or large.
            problems = [{key: each[key] for key in ("type", "loc", "msg")} for each in error.errors()]
            return JSONResponse({"detail": problems}, 422)
        text = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
        return self._render.problem(request, 422, "The address cannot be read", text)
