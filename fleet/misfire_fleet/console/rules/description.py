"""Completes what /openapi.json says: how programs sign in, the one format of errors, headers of the rules."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from misfire_fleet.console.access.routes import PUBLIC_WRITES

_ABOUT = """The fleet's samples, verdicts, vehicles and accounts, as the console's pages show them.

Every error is problem details of RFC 9457. Lists come in pages: pass `next` as `cursor`. An answer to GET has
an ETag; `If-None-Match` with it is answered 304. A POST with an `Idempotency-Key` can be sent again: the
second one gets the first one's answer."""
_PROBLEM = {
    "type": "object",
    "description": "Says what is wrong; `errors` names the fields.",
    "required": ["title", "status", "detail"],
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "loc", "msg"],
                "properties": {
                    "type": {"type": "string"},
                    "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                    "msg": {"type": "string"},
                },
            },
        },
    },
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Any text of the client's own; the same one for a repeated request.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
}
_REFUSALS = {
    "400": "The Host is none of the console's.",
    "401": "Sign in, or send a valid token.",
    "403": "The role, or the token's areas, do not suffice; or the request is another site's.",
    "404": "There is no such thing.",
    "422": "A value cannot be read, or will not do.",
    "429": "Too many requests; Retry-After says how long to wait.",
    "503": "The store does not answer.",
}
_WRITES = {
    "409": "It does not go with what there is.",
    "411": "The length of the body is not stated.",
    "412": "It was changed meanwhile.",
    "413": "The body is too long.",
    "415": "The body is not JSON.",
}


def describe(app: FastAPI) -> None:
    """Makes /openapi.json complete."""
    made: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not made:
            made.update(
                _completed(
                    get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=app.routes)
                )
            )
        return made

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = _PROBLEM
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "`misfire fleet tokens create`"},
        "session": {"type": "apiKey", "in": "cookie", "name": "misfire-session"},
    }
    document["security"] = [{"token": []}, {"session": []}]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _complete(operation, path, method.upper())
    return document


def _complete(operation: dict[str, Any], path: str, method: str) -> None:
    answers = operation.setdefault("responses", {})
    refusals = _REFUSALS if method == "GET" else _REFUSALS | _WRITES
    for status, text in refusals.items():
        schema = {"$ref": "#/components/schemas/Problem"}
        answers[status] = {"description": text, "content": {"application/problem+json": {"schema": schema}}}
    if method == "GET":
        answers["304"] = {"description": "It is what If-None-Match names."}
    if method == "POST":
        operation.setdefault("parameters", []).append(_KEY)
    if (method, path) in PUBLIC_WRITES:
        operation["security"] = []
