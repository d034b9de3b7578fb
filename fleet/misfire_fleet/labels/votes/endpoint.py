"""Lets a vision model vote that an OpenAI-compatible server offers, once per temperature.

picture, classes --POST {url}/chat/completions--> text --one of the classes, or none--> answer

The picture leaves this machine. So an endpoint is asked only if somebody said so (`consent`), redirects are
not followed, and a plain http:// address of another machine is refused.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from misfire_fleet.labels.votes.ballots import Picture, VoteError
from misfire_runtime.errors import ConfigError

_MAX_ANSWER = 1024 * 1024
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_NONSENSE = 5
"""Answers in a row that name no class: then the model does not understand the question."""
_PART = 64 * 1024
_PAUSE_S = 1.0
_MAX_PAUSE_S = 30.0


@dataclass(frozen=True)
class Endpoint:
    """Names a server and how it may be used.

    Attributes:
        url: such as http://127.0.0.1:8000/v1.
        model: as the server names it.
        key: sent as a bearer token; empty sends none. It is in no error.
        consent: somebody said that pictures may be sent there.
        insecure: plain http:// to another machine is allowed.
        timeout_s: for an answer.
        attempts: for one that does not come.
    """

    url: str
    model: str
    key: str = ""
    consent: bool = False
    insecure: bool = False
    timeout_s: float = 60.0
    attempts: int = 3

    def check(self) -> None:
        """Raises ConfigError if the address is unusable, or nobody allowed to send pictures there."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--endpoint {_shown(self.url)}: expected http[s]://HOST[:PORT]/v1")
        if parts.username or parts.password:
            raise ConfigError("--endpoint: put the key into --api-key-file, not into the address")
        if not self.consent:
            raise ConfigError(
                f"--endpoint {_shown(self.url)}: this sends pictures to {parts.hostname}; "
                "say that they may leave with --send-images"
            )
        if parts.scheme == "http" and not self.insecure and not _is_here(parts.hostname):
            raise ConfigError(
                f"--endpoint {_shown(self.url)}: pictures would travel in clear; use https://, or --insecure"
            )


class EndpointVoter:
    """Asks a model at one temperature.

    Raises:
        ConfigError: see `Endpoint.check`.
    """

    def __init__(self, endpoint: Endpoint, *, temperature: float) -> None:
        endpoint.check()
        self.name = f"{endpoint.model} at {temperature:g}"
        self.kind: Literal["class", "boxes"] = "class"
        self._endpoint = endpoint
        self._temperature = temperature
        self._nonsense = 0
        self._opener = urllib.request.build_opener(_NoRedirects)

    def vote(self, picture: Picture, classes: Sequence[str]) -> tuple[str | None, int, int]:
        """See Voter."""
        document = self._ask(json.dumps(self._question(picture, classes)).encode())
        try:
            text = document["choices"][0]["message"]["content"]
            usage = document.get("usage") or {}
            tokens = [max(0, int(usage.get(name) or 0)) for name in ("prompt_tokens", "completion_tokens")]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise self._error("answers JSON that is no chat completion") from error
        answer = class_in(text, classes) if isinstance(text, str) else None
        self._nonsense = 0 if answer is not None else self._nonsense + 1
        if self._nonsense >= _NONSENSE:
            raise self._error(
                f"named none of the classes {_NONSENSE} times in a row; last: {str(text)[:80]!r}"
            )
        return answer, tokens[0], tokens[1]

    def close(self) -> None:
        """Does nothing: each question has a connection of its own."""

    def _question(self, picture: Picture, classes: Sequence[str]) -> dict[str, Any]:
        encoded = base64.b64encode(picture.data).decode("ascii")
        text = (
            "Which one of these classes does the picture show? Answer with the name of one class, exactly as "
            f"it is written here, and nothing else: {json.dumps(list(classes), ensure_ascii=False)}"
        )
        return {
            "model": self._endpoint.model,
            "temperature": self._temperature,
            "max_tokens": 64,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": text},
                        {
                            "type": "image_url",
                            "image_url": {"url": f"data:{picture.media_type};base64,{encoded}"},
                        },
                    ],
                }
            ],
        }

    def _ask(self, body: bytes) -> dict[str, Any]:
        pause = _PAUSE_S
        for attempt in range(1, self._endpoint.attempts + 1):
            try:
                return self._post(body)
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"answers {error.code} {error.reason}"
                if error.code not in _AGAIN:
                    raise self._error(reason) from error
            except TimeoutError:
                reason = f"did not answer within {self._endpoint.timeout_s:g} s"
            except (OSError, http.client.HTTPException) as error:
                # URLError wraps the reason, which may be a timeout as well.
                inner = getattr(error, "reason", error)
                timed_out = isinstance(inner, TimeoutError)
                reason = f"did not answer within {self._endpoint.timeout_s:g} s" if timed_out else f"{inner}"
            if attempt < self._endpoint.attempts:
                time.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE_S)
        raise self._error(f"{reason} ({self._endpoint.attempts} attempts)")

    def _post(self, body: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._endpoint.key:
            headers["Authorization"] = f"Bearer {self._endpoint.key}"
        address = f"{self._endpoint.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, data=body, headers=headers, method="POST")
        deadline = time.monotonic() + self._endpoint.timeout_s
        data = b""
        with self._opener.open(request, timeout=self._endpoint.timeout_s) as response:
            # In parts: the timeout of a socket begins anew with every byte.
            while len(data) <= _MAX_ANSWER and (part := response.read1(_PART)):
                data += part
                if time.monotonic() > deadline:
                    raise TimeoutError
        if len(data) > _MAX_ANSWER:
            raise self._error(f"answers more than {_MAX_ANSWER} bytes")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._error("answers something that is not JSON") from error
        if not isinstance(document, dict):
            raise self._error("answers JSON that is no chat completion")
        return document

    def _error(self, reason: str) -> VoteError:
        return VoteError(f"endpoint {_shown(self._endpoint.url)}, {self.name}: {reason}")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as an error: it would carry the picture to a server that nobody named."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Follows nothing."""
        return


def class_in(text: str, classes: Sequence[str]) -> str | None:
    """Returns the class that an answer names; None if it names none, or several.

    Accepted are the name, whatever its case, in quotes or with a full stop, and {"class": name}.
    """
    said = text.strip()[:1000]
    try:
        document = json.loads(said)
        said = str(document.get("class", "")) if isinstance(document, dict) else str(document)
    except (ValueError, RecursionError):
        pass
    if said in classes:
        return said
    plain = said.strip().strip("\"'`*.").strip().casefold()
    named = [name for name in classes if name.casefold() == plain]
    return named[0] if len(named) == 1 else None


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(url: str) -> str:
    # Without what may be a secret.
    parts = urlsplit(url)
    host = parts.hostname or "?"
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
