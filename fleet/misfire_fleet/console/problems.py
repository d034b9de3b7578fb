"""Answers each kind of error with its status, as a page or as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from misfire_fleet.console.rendering import Renderer, for_programs, problem_json
from misfire_fleet.errors import (
    AccountConflictError,
    AccountError,
    CampaignConflictError,
    CampaignGoneError,
    CheckFailedError,
    NoSuchAccountError,
    SampleGoneError,
    StoreError,
    StoreUnavailableError,
    TooManyRequestsError,
    VerdictConflictError,
    VerdictRefusedError,
)

_SHOWN, _LISTED = 5, 50
"""Fields in the sentence, and in the list: a body of half a megabyte may have tens of thousands of errors."""


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
            NoSuchAccountError: self.gone,
            AccountConflictError: self.account,
            AccountError: self.account,
            TooManyRequestsError: self.too_many,
            StoreUnavailableError: self.unavailable,
            StoreError: self.unavailable,
            CheckFailedError: self.unavailable,
            RequestValidationError: self.unreadable,
            StarletteHTTPException: self.refused,
        }

    async def gone(self, request: Request, error: Exception) -> Response:
        """Answers 404 for a sample, a campaign or an account that is not in the store."""
        return self._render.problem(request, 404, "Not here", str(error))

    async def not_recorded(self, request: Request, error: Exception) -> Response:
        """Answers 409 or 422 for a verdict that was not recorded."""
        status = 409 if isinstance(error, VerdictConflictError) else 422
        return self._render.problem(request, status, "Not recorded", str(error))

    async def conflict(self, request: Request, error: Exception) -> Response:
        """Answers 409 for a change that a campaign's state or name does not allow."""
        return self._render.problem(request, 409, "Not possible now", str(error))

    async def account(self, request: Request, error: Exception) -> Response:
        """Answers 409 or 422 for a change of an account that was not made."""
        status = 409 if isinstance(error, AccountConflictError) else 422
        return self._render.problem(request, status, "Not changed", str(error))

    async def too_many(self, request: Request, error: TooManyRequestsError) -> Response:
        """Answers 429 and says how long to wait."""
        answer = self._render.problem(request, 429, "Too many requests", str(error))
        answer.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        return answer

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
            errors = [{key: each[key] for key in ("type", "loc", "msg")} for each in error.errors()]
            text = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in errors[:_SHOWN])
            return problem_json(422, "The request cannot be read", text, errors=errors[:_LISTED])
        text = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
        return self._render.problem(request, 422, "The address cannot be read", text)
