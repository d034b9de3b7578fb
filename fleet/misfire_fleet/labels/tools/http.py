"""Speaks JSON with one server over HTTP: bounded in time and bytes, retried where that is safe.

request -> answer is JSON: returned
        -> no answer, 429, 5xx, not JSON: once more after a pause, then LabelToolUnavailableError
        -> 401: once more with renewed credentials; 3xx, other 4xx, a web page: LabelToolError

A request that changes something is repeated only if the server cannot have seen it (`repeatable=False`). The
caller then looks at what the server has. Credentials never leave for another host, and never get into an
error.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import random
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol
from urllib.parse import urlencode, urlsplit

from misfire_fleet.errors import LabelToolError, LabelToolUnavailableError
from misfire_runtime.errors import ConfigError

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_CHUNK = 64 * 1024
_MAX_DETAIL = 300


class Credentials(Protocol):
    """Authorises requests."""

    def headers(self) -> Mapping[str, str]:
        """Returns the headers that authorise a request."""

    def renew(self) -> bool:
        """Gets new credentials after a 401; returns False if there are no others."""

    def hidden(self) -> Sequence[str]:
        """Returns the secrets that no message may contain."""


class Anonymous:
    """Authorises nothing."""

    def headers(self) -> Mapping[str, str]:
        """Returns no headers."""
        return {}

    def renew(self) -> bool:
        """Returns False."""
        return False

    def hidden(self) -> Sequence[str]:
        """Returns nothing."""
        return ()


@dataclass(frozen=True)
class Limits:
    """Bounds what a server may cost.

    Attributes:
        silence_s: without a byte.
        answer_s: for a whole answer.
        max_bytes: of an answer.
        attempts: of a request that may be repeated.
        pause_s: before the second attempt; doubled before each further one.
        max_pause_s: also if the server asks for a longer one (Retry-After).
    """

    silence_s: float = 30.0
    answer_s: float = 300.0
    max_bytes: int = 256 * 1024 * 1024
    attempts: int = 5
    pause_s: float = 0.5
    max_pause_s: float = 20.0


@dataclass(frozen=True)
class FilePart:
    """Holds a file of an upload."""

    name: str
    media_type: str
    data: bytes


class _Stays(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would carry the token to another host, or turn a POST into a GET."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """Sends requests to one server.

    Args:
        url: of the server, such as https://labels.example.org.
        name: of the tool, for messages.
        credentials: for every request.
        limits: of time, bytes and attempts.
        insecure: allows plain http to another machine.
        stop: ends a pause early.

    Raises:
        ConfigError: the URL is none, has a password or a query, or is plain http to another machine.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        credentials: Credentials | None = None,
        limits: Limits | None = None,
        insecure: bool = False,
        stop: threading.Event | None = None,
    ) -> None:
        self.url = checked_url(url, insecure=insecure)
        self.name = name
        self.credentials: Credentials = credentials or Anonymous()
        self.limits = limits or Limits()
        self._stop = stop or threading.Event()
        handlers: list[urllib.request.BaseHandler] = [_Stays()]
        if is_loopback(urlsplit(self.url).hostname or ""):
            # A proxy of the environment does not know this machine's own servers.
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, path: str, **query: object) -> Any:
        """Returns the JSON that a GET answers; see `request` for errors."""
        return self.request("GET", path, query=query, repeatable=True)

    def send(self, method: str, path: str, body: object, *, repeatable: bool = False, **query: object) -> Any:
        """Sends a JSON body and returns the answer's JSON; see `request` for errors."""
        data = json.dumps(body, allow_nan=False).encode()
        return self.request(
            method, path, query=query, data=data, media_type="application/json", repeatable=repeatable
        )

    def upload(self, path: str, files: Sequence[FilePart], **query: object) -> Any:
        """Sends files in one multipart request and returns the answer's JSON; see `request` for errors."""
        data, media_type = multipart(files)
        return self.request("POST", path, query=query, data=data, media_type=media_type, repeatable=False)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        data: bytes | None = None,
        media_type: str = "",
        repeatable: bool,
    ) -> Any:
        """Sends a request and returns the answer's JSON; None if it is empty.

        Args:
            method: of HTTP.
            path: below the server's URL, with a leading slash.
            query: appended to the path.
            data: the body.
            media_type: of the body.
            repeatable: True if sending it twice is the same as sending it once.

        Raises:
            LabelToolError: the server refuses it, or is not the tool's. LabelToolUnavailableError: the server
            does not work now. If `repeatable` is False, it may have done
                what was asked.
        """
        url = self.url + path + (f"?{urlencode(query)}" if query else "")
        renewed = False
        attempt = 0
        while True:
            attempt += 1
            request = urllib.request.Request(url, data=data, method=method)
            request.add_header("Accept", "application/json")
            if media_type:
                request.add_header("Content-Type", media_type)
            for header, value in self.credentials.headers().items():
                request.add_unredirected_header(header, value)
            try:
                return self._answer(request, path)
            except _RefusedError as refused:
                if refused.status == 401 and not renewed and self.credentials.renew():
                    renewed = True
                    continue
                self._refuse(refused, path)
            except _FailedError as failed:
                if (
                    attempt >= self.limits.attempts
                    or not (repeatable or failed.unseen)
                    or self._stop.is_set()
                ):
                    raise LabelToolUnavailableError(self._said(path, failed.sentence)) from failed
                self._stop.wait(self._pause(attempt, failed.retry_after_s))

    def _answer(self, request: urllib.request.Request, path: str) -> Any:
        until = time.monotonic() + self.limits.answer_s
        try:
            with self._opener.open(request, timeout=self.limits.silence_s) as answer:
                body = self._body(answer, until)
                kind = answer.headers.get_content_type() if body else ""
        except urllib.error.HTTPError as error:
            with error:
                self._answered(error, until)
        except urllib.error.URLError as error:
            raise _failure(error.reason) from error
        except (OSError, http.client.HTTPException) as error:
            raise _failure(error) from error
        if not body:
            return None
        if kind == "text/html":
            raise LabelToolError(
                self._said(
                    path,
                    "answered with a web page; is this the tool's own address, and not that of a login?",
                )
            )
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _FailedError("answered with something that is not JSON") from error

    def _answered(self, error: urllib.error.HTTPError, until: float) -> NoReturn:
        status = error.code
        if 300 <= status < 400:
            place = str(error.headers.get("Location", "another address"))[:_MAX_DETAIL]
            raise _RefusedError(status, f"redirects to {place}; give that server's own address")
        try:
            body = self._body(error, until)
        except (OSError, http.client.HTTPException, _FailedError):
            body = b""
        detail = _detail(body, error.headers.get_content_type())
        if status in _AGAIN:
            raise _FailedError(f"answered {status}{detail}", retry_after_s=_retry_after(error))
        raise _RefusedError(status, f"answered {status}{detail}")

    def _body(self, answer: Any, until: float) -> bytes:
        parts, size = [], 0
        while part := answer.read1(_CHUNK):
            size += len(part)
            if size > self.limits.max_bytes:
                raise _FailedError(f"answered with more than {self.limits.max_bytes:,} bytes")
            if time.monotonic() > until:
                raise _FailedError(f"did not finish its answer within {self.limits.answer_s:g} s")
            parts.append(part)
        if answer.length:
            raise http.client.IncompleteRead(b"", answer.length)
        return b"".join(parts)

    def _refuse(self, refused: _RefusedError, path: str) -> NoReturn:
        sentence = refused.sentence
        if refused.status in (401, 403):
            sentence += "; the token is wrong, has expired, or lacks the rights"
        raise LabelToolError(self._said(path, sentence), status=refused.status) from refused

    def _pause(self, attempt: int, asked_s: float) -> float:
        # Jitter keeps clients that failed together from coming back together.
        pause = self.limits.pause_s * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
        return float(min(max(pause, asked_s), self.limits.max_pause_s))

    def _said(self, path: str, sentence: str) -> str:
        text = f"{self.name} at {self.url}: {path}: {sentence}"
        for secret in self.credentials.hidden():
            text = text.replace(secret, "[token]")
        return text


class _RefusedError(Exception):
    """Carries an answer that will be the same next time."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class _FailedError(Exception):
    """Carries a failure that may be gone next time. `unseen`: the server cannot have seen the request."""

    def __init__(self, sentence: str, *, unseen: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(sentence)
        self.sentence, self.unseen, self.retry_after_s = sentence, unseen, retry_after_s


def _failure(error: object) -> _FailedError:
    if isinstance(error, TimeoutError):
        return _FailedError("did not answer in time")
    if isinstance(error, ConnectionRefusedError):
        return _FailedError("refused the connection; is it running?", unseen=True)
    if isinstance(error, socket.gaierror):
        return _FailedError("its name was not found", unseen=True)
    if isinstance(error, http.client.HTTPException | ConnectionError):
        return _FailedError("ended the connection before its answer was complete")
    reason = getattr(error, "strerror", None) or str(error)
    return _FailedError(f"could not be reached ({reason})")


def _detail(body: bytes, media_type: str) -> str:
    """Returns what an error's body says, in one short line that begins with a colon; "" for a web page."""
    if media_type != "application/json":
        return ""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if isinstance(document, dict):
        told = document.get("validation_errors") or document.get("detail") or document
        document = told if told else document
    text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
    line = re.sub(r"\s+", " ", text).strip()
    return f": {line[:_MAX_DETAIL]}" if line else ""


def _retry_after(error: urllib.error.HTTPError) -> float:
    text = str(error.headers.get("Retry-After", ""))
    return float(text) if text.isdigit() and len(text) < 6 else 0.0


def multipart(files: Sequence[FilePart]) -> tuple[bytes, str]:
    """Returns the body and the media type of a form with files.

    Args:
        files: their names have no quotes, backslashes or line ends.
    """
    boundary = f"misfire-{random.getrandbits(128):032x}"
    parts = []
    for number, each in enumerate(files):
        # A name of its own for each: Label Studio takes only the last file of a name.
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file{number}"; filename="{each.name}"\r\n'
            f"Content-Type: {each.media_type}\r\n\r\n"
        )
        parts += [head.encode(), each.data, b"\r\n"]
    return b"".join((*parts, f"--{boundary}--\r\n".encode())), f"multipart/form-data; boundary={boundary}"


def is_loopback(host: str) -> bool:
    """Returns True if a host name or address is this machine's."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def checked_url(url: str, *, insecure: bool) -> str:
    """Returns a server's URL without a trailing slash.

    Raises:
        ConfigError: it is no http(s) URL, has a password or a query, or is plain http to another machine and
            `insecure` is False.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"--url: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(
            f"--url {url.rsplit('@', maxsplit=1)[-1]!r}: expected http://HOST[:PORT] or https://HOST[:PORT]"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigError("--url: has a user or password; give a token by --token-file or the environment")
    if parts.query or parts.fragment:
        raise ConfigError(f"--url {url!r}: has a query or a fragment; expected the server's address alone")
    if parts.scheme == "http" and not insecure and not is_loopback(host):
        raise ConfigError(
            f"--url {url!r}: plain http would send the token and pictures to another machine unencrypted; "
            "use https, or allow it with --insecure"
        )
    return url.rstrip("/")
