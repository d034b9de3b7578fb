"""Gives every answer of the API to GET an ETag, answers 304 to who has it already, and checks If-Match.

The tag is a hash of the body, so it costs the work of making the body, and saves sending it. A route that can
do better sets its own ETag.
"""

from __future__ import annotations

import hashlib

from fastapi import HTTPException, Request
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_BYTES = 8 * 1024 * 1024
"""A longer answer is sent as it comes, without a tag."""


class Etags:
    """Wraps the console as ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        tagged = scope["type"] == "http" and scope["method"] == "GET"
        if not tagged or not str(scope["path"]).startswith("/api/"):
            await self._app(scope, receive, send)
            return
        wanted = Headers(scope=scope).get("if-none-match", "")
        await self._app(scope, receive, _Answer(send, wanted).take)


class _Answer:
    """Holds an answer back until its body is complete."""

    def __init__(self, send: Send, wanted: str) -> None:
        self._send, self._wanted = send, wanted
        self._start: Message | None = None
        self._body = bytearray()

    async def take(self, message: Message) -> None:
        """Takes a message of the answer."""
        if message["type"] == "http.response.start":
            kind = Headers(raw=message["headers"]).get("content-type", "")
            if message["status"] == 200 and not kind.startswith("text/event-stream"):
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            more = message.get("more_body", False)
            if more and len(self._body) <= _MAX_BYTES:
                return
            await self._finish(more=more)
            return
        await self._send(message)

    async def _finish(self, *, more: bool) -> None:
        start, self._start = self._start, None
        assert start is not None
        body = bytes(self._body)
        if not more:
            headers = MutableHeaders(raw=start["headers"])
            tag = headers.setdefault("etag", tag_of(body))
            if matches(self._wanted, tag):
                start["status"], body = 304, b""
                for name in ("content-length", "content-type"):
                    del headers[name]
            start["headers"] = headers.raw
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def tag_of(content: bytes | BaseModel) -> str:
    """Returns the ETag of a body, or of a resource."""
    data = content.model_dump_json().encode() if isinstance(content, BaseModel) else content
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def matches(wanted: str, tag: str) -> bool:
    """Returns True if a header If-None-Match names the tag, by the weak comparison of RFC 9110."""
    named = [part.strip().removeprefix("W/") for part in wanted.split(",")]
    return wanted.strip() == "*" or tag.removeprefix("W/") in named


def refuse_if_changed(request: Request, tag: str) -> None:
    """Raises HTTPException 412 if the request has If-Match, and it does not name the resource's tag.

    A client that sends the ETag that it read changes nothing that somebody else changed meanwhile.
    """
    wanted = request.headers.get("if-match")
    if wanted is None or wanted.strip() == "*":
        return
    if tag not in [part.strip() for part in wanted.split(",")]:
        raise HTTPException(412, "it was changed meanwhile; read it again", headers={"ETag": tag})
