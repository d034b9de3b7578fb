"""Answers a repeated POST as the first one, if both carry the same Idempotency-Key.

    POST, Idempotency-Key --first--> route --answer kept for a day--> client
                          --again--> the kept answer, with Idempotency-Replayed: true

The answers are rows, so it does not matter which console of a fleet gets the second request. An answer that
has a secret (Cache-Control: no-store) or is long is not kept, only that it was given.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from fastapi import Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import delete, select
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from misfire_fleet.console.access.callers import Caller
from misfire_fleet.console.rendering import problem_json
from misfire_fleet.errors import StoreUnavailableError
from misfire_fleet.store import Store
from misfire_fleet.store.schema import answered_requests as rows
from misfire_runtime.clock import wall_time

_KEPT_S = 86_400.0
_RUNNING_S = 300.0
"""A request that has not answered after this time was lost with its console; its key is free again."""
_PER_CALLER = 1_000
_MAX_KEY, _MAX_BYTES = 200, 64 * 1024


@dataclass(frozen=True)
class Kept:
    """Holds an answer; `body` is None if it was not kept."""

    status: int
    headers: dict[str, str]
    body: bytes | None


class Answers:
    """Keeps answers in the database, for a day and at most 1,000 of each caller."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def claim(self, key: str, caller: str, request: str) -> Kept | Literal["new", "running", "other"]:
        """Takes a key for this request.

        Returns:
            "new": the request is to be answered; "running": its first one is; "other": the key belongs to
            another request; or the answer.
        """
        now = wall_time()
        with self._store.database.write() as connection:
            lost = rows.c.status.is_(None) & (rows.c.at < now - _RUNNING_S)
            connection.execute(delete(rows).where((rows.c.at < now - _KEPT_S) | lost))
            values = {"key": key, "caller": caller[:64], "request": request, "at": now}
            insert = self._store.database.insert_statement(rows).values(values).on_conflict_do_nothing()
            # Not by rowcount, which psycopg leaves at -1.
            if connection.scalar(insert.returning(rows.c.key)) is not None:
                mine = rows.c.caller == caller[:64]
                newest = select(rows.c.key).where(mine).order_by(rows.c.at.desc()).limit(_PER_CALLER)
                connection.execute(delete(rows).where(mine, rows.c.key.not_in(newest)))
                return "new"
            row = connection.execute(select(rows).where(rows.c.key == key)).mappings().one()
        if row["request"] != request:
            return "other"
        if row["status"] is None:
            return "running"
        return Kept(row["status"], json.loads(row["headers"]), row["body"])

    def keep(self, key: str, kept: Kept) -> None:
        """Keeps the answer of a request that was claimed."""
        values = {"status": kept.status, "headers": json.dumps(kept.headers), "body": kept.body}
        with self._store.database.write() as connection:
            connection.execute(rows.update().where(rows.c.key == key).values(values))

    def release(self, key: str) -> None:
        """Frees the key of a request that failed."""
        with self._store.database.write() as connection:
            connection.execute(delete(rows).where(rows.c.key == key))


class Repeated:
    """Wraps the console as ASGI middleware, inside `Access`: a key belongs to its caller."""

    def __init__(self, app: ASGIApp, *, store: Store) -> None:
        self._app, self._answers = app, Answers(store)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        given = Headers(scope=scope).get("idempotency-key") if scope["type"] == "http" else None
        caller: Caller | None = scope.get("state", {}).get("caller")
        api = given is not None and scope["method"] == "POST" and str(scope["path"]).startswith("/api/")
        if given is None or caller is None or not api:
            await self._app(scope, receive, send)
            return
        if not 1 <= len(given) <= _MAX_KEY or not given.isascii() or not given.isprintable():
            text = f"Idempotency-Key: expected 1 to {_MAX_KEY} printable characters of ASCII"
            await problem_json(422, "The request cannot be read", text)(scope, receive, send)
            return
        body = await _body(receive)
        place = f"{scope['path']}?{scope['query_string'].decode('latin-1')}"
        key = _hash(caller.name, str(scope["path"]), given)
        try:
            found = await run_in_threadpool(self._answers.claim, key, caller.name, _hash(place, body))
        except StoreUnavailableError as error:
            await problem_json(503, "The store does not answer", str(error))(scope, receive, send)
            return
        if found == "new":
            await self._first(key, body, scope, receive, send)
        else:
            await _again(found)(scope, receive, send)

    async def _first(self, key: str, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Recorder(send)
        try:
            await self._app(scope, _with_body(body, receive), answer.take)
        except BaseException:
            await run_in_threadpool(self._answers.release, key)
            raise
        kept = answer.kept()
        if kept is None:
            await run_in_threadpool(self._answers.release, key)
        else:
            await run_in_threadpool(self._answers.keep, key, kept)


class _Recorder:
    """Passes an answer on, and records it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status, self._headers = 500, Headers()
        self._body = bytearray()

    async def take(self, message: Message) -> None:
        """Takes a message of the answer."""
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], Headers(raw=message["headers"])
        elif len(self._body) <= _MAX_BYTES:
            self._body += message.get("body", b"")
        await self._send(message)

    def kept(self) -> Kept | None:
        """Returns what is kept; None if the request may be tried again."""
        if self._status >= 400:
            return None
        shown = {
            name: self._headers[name]
            for name in ("content-type", "location", "etag")
            if name in self._headers
        }
        secret = "no-store" in self._headers.get("cache-control", "")
        too_long = len(self._body) > _MAX_BYTES
        return Kept(self._status, shown, None if secret or too_long else bytes(self._body))


def _again(found: Kept | Literal["running", "other", "new"]) -> Response:
    if isinstance(found, Kept) and found.body is not None:
        headers = found.headers | {"Idempotency-Replayed": "true"}
        return Response(found.body, found.status, headers=headers)
    if isinstance(found, Kept):
        text = f"this request was answered with {found.status} before, and the answer was not kept"
        return problem_json(409, "Done already", text)
    if found == "running":
        answer = problem_json(409, "Not yet", "the first request with this Idempotency-Key is being answered")
        answer.headers["Retry-After"] = "1"
        return answer
    return problem_json(422, "Not repeated", "this Idempotency-Key belongs to another request")


async def _body(receive: Receive) -> bytes:
    """Returns the body, whose length `Guard` has bounded."""
    data = bytearray()
    while True:
        message = await receive()
        data += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(data)


def _with_body(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
