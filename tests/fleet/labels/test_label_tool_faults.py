"""A label tool that is not there, slow, broken, or another site: one sentence, and no token in it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.fleet.labels.label_tools import Cli, fill

from misfire_fleet.errors import LabelToolError, LabelToolUnavailableError
from misfire_fleet.labels.tools import connect
from misfire_fleet.labels.tools.http import Endpoint, FilePart, Limits, checked_url, multipart
from misfire_fleet.labels.tools.label_studio.api import LabelStudioApi, Project
from misfire_fleet.labels.tools.label_studio.credentials import LegacyToken, PersonalToken
from misfire_fleet.labels.tools.tokens import read_token
from misfire_runtime.errors import ConfigError
from proving_ground.services import free_port

SECRET = "0123456789abcdef-the-token"
QUICK = Limits(silence_s=1.0, answer_s=1.0, max_bytes=100_000, attempts=3, pause_s=0.01, max_pause_s=0.05)


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer

    def _any(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization", "")))
        self.server.answer(self)

    do_GET = do_POST = do_PATCH = do_DELETE = _any  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


class FaultyServer(ThreadingHTTPServer):
    """Answers every request by a function, and keeps a list of them."""

    daemon_threads = True

    def __init__(self, answer: Callable[[_Handler], None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.seen: list[tuple[str, str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


Serve = Callable[[Callable[[_Handler], None]], FaultyServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    running: list[tuple[FaultyServer, threading.Thread]] = []

    def start(answer: Callable[[_Handler], None]) -> FaultyServer:
        server = FaultyServer(answer)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def says(
    status: int, body: bytes, *, kind: str = "application/json", **headers: str
) -> Callable[[_Handler], None]:
    def answer(handler: _Handler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def sleeps(handler: _Handler) -> None:
    time.sleep(2.0)


def hangs_up(handler: _Handler) -> None:
    handler.close_connection = True


def cuts_off(handler: _Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"id": 1')


def drips(handler: _Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    for _ in range(60):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def endpoint(url: str) -> Endpoint:
    return Endpoint(url, name="Label Studio", credentials=LegacyToken(SECRET), limits=QUICK)


UNAVAILABLE = {
    "slow": (sleeps, "did not answer in time"),
    "dripping": (drips, "did not finish its answer within 1 s"),
    "hangs up": (hangs_up, "ended the connection before its answer was complete"),
    "cut off": (cuts_off, "ended the connection before its answer was complete"),
    "500": (says(500, b'{"detail": "database is locked"}'), "answered 500: database is locked"),
    "502 page": (says(502, b"<html>nginx</html>", kind="text/html"), "answered 502"),
    "429": (says(429, b"", Retry_After="1"), "answered 429"),
    "nonsense": (says(200, b"{'id': 1}"), "answered with something that is not JSON"),
    "deep": (says(200, b"[" * 50_000), "answered with something that is not JSON"),
    "endless": (says(200, b" " * 200_000), "answered with more than 100,000 bytes"),
}


@pytest.mark.parametrize("fault", UNAVAILABLE)
def test_a_fault_that_may_pass_is_tried_again_and_told_in_one_sentence(fault: str, serve: Serve) -> None:
    answer, sentence = UNAVAILABLE[fault]
    server = serve(answer)
    with pytest.raises(LabelToolUnavailableError) as told:
        endpoint(server.url).get("/api/projects/")
    assert str(told.value) == f"Label Studio at {server.url}: /api/projects/: {sentence}"
    assert len(server.seen) == 3
    # What may have been carried out is not sent a second time.
    server.seen.clear()
    with pytest.raises(LabelToolUnavailableError):
        endpoint(server.url).send("POST", "/api/projects/1/import", [{}])
    assert len(server.seen) == 1


REFUSED = {
    "401": (says(401, b'{"detail": "Invalid token."}'), "answered 401: Invalid token.; the token is wrong"),
    "403": (
        says(403, b"<html>", kind="text/html"),
        "answered 403; the token is wrong, has expired, or lacks",
    ),
    "400": (
        says(400, b'{"validation_errors": {"title": ["Too short."]}}'),
        'answered 400: {"title": ["Too short."]}',
    ),
    "login page": (says(200, b"<!doctype html>", kind="text/html"), "answered with a web page"),
    "moved": (
        says(302, b"", Location="https://login.example.org/"),
        "redirects to https://login.example.org/",
    ),
    "echo": (says(400, json.dumps(SECRET).encode()), "answered 400: [token]"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_refusal_is_told_at_once_without_the_token(fault: str, serve: Serve) -> None:
    answer, sentence = REFUSED[fault]
    server = serve(answer)
    with pytest.raises(LabelToolError) as told:
        endpoint(server.url).get("/api/projects/")
    assert sentence in str(told.value) and SECRET not in str(told.value)
    assert len(server.seen) == 1


def test_a_fault_that_passes_is_not_told(serve: Serve) -> None:
    answers = iter([hangs_up, says(503, b""), says(200, b'{"email": "a@example.org", "id": 1}')])

    def answer(handler: _Handler) -> None:
        next(answers)(handler)

    server = serve(answer)
    assert LabelStudioApi(endpoint(server.url)).user() == "a@example.org"


def test_a_server_that_is_not_there_is_asked_again_also_for_what_changes_something() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(LabelToolUnavailableError, match="refused the connection; is it running"):
        endpoint(url).send("POST", "/api/projects/", {})


def test_no_redirect_carries_the_token_away(serve: Serve) -> None:
    other = serve(says(200, b"{}"))
    server = serve(says(307, b"", Location=f"{other.url}/api/"))
    with pytest.raises(LabelToolError, match="redirects to"):
        endpoint(server.url).get("/api/")
    assert other.seen == []


def test_an_answer_of_another_shape_is_told(serve: Serve) -> None:
    server = serve(says(200, b'{"tasks": 3}'))
    with pytest.raises(LabelToolError, match=r"its answer for projects is not Label Studio's \(count: Field"):
        LabelStudioApi(endpoint(server.url)).projects("lights")


def test_a_personal_token_is_exchanged_once_and_again_after_a_401(serve: Serve) -> None:
    access = iter(["first", "second"])

    def answer(handler: _Handler) -> None:
        if handler.path == "/api/token/refresh/":
            says(200, json.dumps({"access": next(access)}).encode())(handler)
        elif handler.headers["Authorization"] == "Bearer first" and len(handler.server.seen) > 3:
            says(401, b"{}")(handler)
        else:
            says(200, b'{"id": 1, "email": "a@example.org"}')(handler)

    server = serve(answer)
    plain = Endpoint(server.url, name="Label Studio", limits=QUICK)
    credentials = PersonalToken(f"{SECRET}.b.c", exchange=plain)
    api = LabelStudioApi(Endpoint(server.url, name="Label Studio", credentials=credentials, limits=QUICK))
    for _ in range(3):
        assert api.user() == "a@example.org"
    exchanged = [seen for seen in server.seen if seen[1] == "/api/token/refresh/"]
    # The token itself is sent to the exchange alone, and the exchange without another header.
    assert [seen[2] for seen in exchanged] == ["", ""]
    assert {seen[2] for seen in server.seen} == {"", "Bearer first", "Bearer second"}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("labels.example.org", "expected http://HOST"),
        ("ftp://labels.example.org", "expected http://HOST"),
        ("https://user:word@labels.example.org", "has a user or password"),
        ("https://labels.example.org/?next=1", "has a query or a fragment"),
        ("http://labels.example.org", "plain http would send the token"),
        ("http://[::1", "Invalid IPv6"),
    ],
)
def test_addresses_that_are_wrong_or_unsafe_are_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as told:
        checked_url(url, insecure=False)
    assert "word" not in str(told.value).replace("password", "")


def test_plain_http_to_another_machine_is_allowed_on_demand_and_to_this_one_always() -> None:
    assert checked_url("http://labels:8080/", insecure=True) == "http://labels:8080"
    assert checked_url("http://127.0.0.1:8080/", insecure=False) == "http://127.0.0.1:8080"
    assert checked_url("http://[::1]:8080", insecure=False) == "http://[::1]:8080"


def test_a_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("\ufeffabc.def\r\n", encoding="utf-8")
    assert read_token(file, variable="X") == "abc.def"
    monkeypatch.setenv("X", " abc ")
    assert read_token(None, variable="X") == "abc"
    monkeypatch.delenv("X")
    with pytest.raises(ConfigError, match="set X, or name a file with --token-file"):
        read_token(None, variable="X")
    for text in ("", "Token abc", "a\nb", "päss", "a" * 9000):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as told:
            read_token(file, variable="X")
        assert not text or text not in str(told.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none", variable="X")


def test_every_file_of_an_upload_has_a_name_of_its_own() -> None:
    body, kind = multipart([FilePart("a.png", "image/png", b"1"), FilePart("b.jpg", "image/jpeg", b"2")])
    boundary = kind.partition("boundary=")[2].encode()
    assert body.count(b"--" + boundary) == 3
    assert b'name="file0"; filename="a.png"' in body and b'name="file1"; filename="b.jpg"' in body


def test_a_command_fails_with_one_line_and_nothing_is_recorded(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "fleet", 2)
    monkeypatch.setattr(connect, "LIMITS", QUICK)
    # The slow ones cost seconds each, and end in the same place.
    faults: dict[str, tuple[Any, str]] = {**UNAVAILABLE, **REFUSED}
    for answer, sentence in (faults[name] for name in faults if name not in ("slow", "dripping")):
        cli = Cli(tmp_path / "fleet", serve(answer).url, SECRET)
        for verb in ("push", "pull", "status"):
            said = cli.refused(verb)
            assert sentence in said and SECRET not in said and "\n" not in said


class Listing:
    """Lists tasks by the time of their last change, as Label Studio does, at most `cap` a page."""

    def __init__(self, times: list[datetime], *, cap: int) -> None:
        self.times, self.cap = dict(enumerate(times, start=1)), cap
        self.after_page: Callable[[], None] = lambda: None

    def __call__(self, handler: _Handler) -> None:
        asked = parse_qs(urlsplit(handler.path).query)
        items = json.loads(asked["query"][0])["filters"]["items"]
        since = next(
            (each["value"] for each in items if each["type"] == "Datetime"), "0001-01-01T00:00:00.0Z"
        )
        moment = datetime.fromisoformat(since.replace("Z", "+00:00"))
        found = sorted((at, number) for number, at in self.times.items() if at >= moment)
        size = min(self.cap, int(asked["page_size"][0]))
        start = (int(asked["page"][0]) - 1) * size
        page = [{"id": n, "data": {}, "updated_at": at.isoformat()} for at, n in found[start : start + size]]
        says(200, json.dumps({"total": len(found), "tasks": page}).encode())(handler)
        self.after_page()


def numbers(server: FaultyServer) -> list[int]:
    api = LabelStudioApi(endpoint(server.url))
    return [task.id for page in api.changed(Project(id=1), None) for task in page.tasks]


@pytest.mark.parametrize("cap", [50, 17])
def test_changed_tasks_are_all_read_whatever_their_times(cap: int, serve: Serve) -> None:
    noon = datetime(2026, 7, 1, 12, tzinfo=timezone.utc)
    distinct = [noon + timedelta(seconds=number) for number in range(130)]
    assert numbers(serve(Listing(distinct, cap=cap))) == list(range(1, 131))
    # An import can give all tasks one time.
    same = [noon] * 120 + distinct[1:11]
    assert sorted(numbers(serve(Listing(same, cap=50)))) == list(range(1, 131))


def test_a_task_that_changes_while_others_are_read_hides_none(serve: Serve) -> None:
    noon = datetime(2026, 7, 1, 12, tzinfo=timezone.utc)
    listing = Listing([noon + timedelta(seconds=number) for number in range(120)], cap=50)
    changes = iter([5, 60])

    def change() -> None:
        number = next(changes, None)
        if number is not None:
            listing.times[number] = noon + timedelta(hours=1, seconds=number)

    listing.after_page = change
    read = numbers(serve(listing))
    assert set(read) == set(range(1, 121))
    # What changed after it was read comes again, with what changed.
    assert (read.count(5), read.count(6)) == (2, 1)
