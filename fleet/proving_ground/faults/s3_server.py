"""Gives moto's S3 a memory: what it answered with success survives a kill -9, as in an object store.

    python -m proving_ground.faults.s3_server PORT FILE

Every successful PUT, POST and DELETE is appended to FILE before its answer leaves; a start repeats the file
before it listens. moto itself keeps everything in memory, so that a kill would lose what it had acknowledged.
"""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple
from werkzeug.test import Client

_LASTING = {"PUT", "POST", "DELETE"}
_HEADERS = ("HTTP_AUTHORIZATION", "HTTP_HOST", "CONTENT_TYPE", "HTTP_X_AMZ_CONTENT_SHA256")


class Remembering:
    """Wraps moto's WSGI application."""

    def __init__(self, app: Any, file: Path) -> None:
        self._app = app
        self._lock = threading.Lock()
        if file.exists():
            self._repeat(file)
        # After the repetition, which may cut off half a line. Unbuffered, so that a kill loses no answer.
        self._file = file.open("ab", buffering=0)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in _LASTING:
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        status: list[str] = []

        def start(line: str, headers: Any, *rest: Any) -> Any:
            status.append(line)
            return start_response(line, headers, *rest)

        # The whole answer first: it must be known to be a success before it is written down.
        answer = list(self._app(environ, start))
        if status[0].startswith("2"):
            self._remember(environ, body, b"".join(answer))
        return answer

    def _remember(self, environ: dict[str, Any], body: bytes, answer: bytes) -> None:
        entry = {
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "query": environ.get("QUERY_STRING", ""),
            "headers": {name: environ[name] for name in _HEADERS if name in environ},
            "body": base64.b64encode(body).decode(),
            "upload": _upload_id(answer),
        }
        line = json.dumps(entry).encode() + b"\n"
        with self._lock:
            self._file.write(line)

    def _repeat(self, file: Path) -> None:
        client = Client(self._app)
        lines = file.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # half of one: its answer never left
            file.write_bytes(b"".join(lines := lines[:-1]))
        uploads: dict[str, str] = {}
        for line in lines:
            entry = json.loads(line)
            query = entry["query"]
            for before, now in uploads.items():
                query = query.replace(before, now)
            response = client.open(
                path=entry["path"],
                query_string=query,
                method=entry["method"],
                data=base64.b64decode(entry["body"]),
                environ_overrides=entry["headers"],
            )
            if response.status_code >= 300:
                raise RuntimeError(f"{entry['method']} {entry['path']} repeated: {response.status}")
            if entry["upload"] and (now := _upload_id(response.data)):
                uploads[entry["upload"]] = now  # moto deals the ids of multipart uploads at random


def _upload_id(answer: bytes) -> str:
    """Returns the id in an answer that begins a multipart upload, "" for any other answer."""
    found = re.search(rb"<InitiateMultipartUploadResult.*<UploadId>([^<]+)</UploadId>", answer, re.DOTALL)
    return found.group(1).decode() if found else ""


def main(port: int, file: Path) -> None:
    """Serves until it is killed."""
    app = Remembering(DomainDispatcherApplication(create_backend_app), file)
    run_simple("127.0.0.1", port, app, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
