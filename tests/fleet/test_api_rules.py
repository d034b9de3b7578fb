"""What holds for the whole API: cursors, ETags, repeated requests, one format of errors, its description."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from tests.fleet.consoles import add, serving
from tests.fleet.people import ask, browser, person, program

from misfire_fleet.accounts.accounts import Accounts
from misfire_fleet.console.access.settings import AccessSettings
from misfire_fleet.console.entry.guard import MAX_BODY
from misfire_fleet.console.rules.cursors import cursor_of
from misfire_fleet.console.rules.repeated import Answers, Kept
from misfire_fleet.store import Store
from misfire_fleet.store.schema import answered_requests

Numbered = Callable[[int], bytes]
HOSTILE = (
    "'; DROP TABLE samples; --",
    "<script>alert(1)</script>",
    "{{ 7*7 }}",
    "../../etc/passwd",
    "%2e%2e%2f",
    "\u202e\u0000",
    "9" * 401,
    "-1",
    "1e400",
    "NaN",
    "é" * 100,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open_folder(tmp_path_factory.mktemp("rules") / "fleet") as opened:
        yield opened


@pytest.fixture(scope="module")
def console(store: Store) -> Iterator[str]:
    with serving(store, access=AccessSettings()) as address:
        yield address


@pytest.fixture(scope="module")
def admin(console: str, store: Store) -> Iterator[httpx.Client]:
    with browser(console, store, "admin") as client:
        yield client


def test_a_cursor_leads_through_all_pages_once(admin: httpx.Client, store: Store, jpeg: Numbered) -> None:
    ids = {add(store, jpeg(n)) for n in range(5)}
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = admin.get("/api/samples", params={"limit": 2, "cursor": cursor}).json()
        seen += [each["id"] for each in page["samples"]]
        cursor = page["next"]
    assert sorted(seen) == sorted(ids)
    for wrong in (
        "x",
        "9" * 401,
        cursor_of("vehicles", "car-1"),
        cursor_of("samples", "car-1"),
        cursor_of("samples", 2**63),
        cursor_of("samples", int("9" * 200)),
        cursor_of("samples", -1),
        cursor_of("samples", 1, 2),
        *HOSTILE,
    ):
        answer = admin.get("/api/samples", params={"cursor": wrong})
        assert answer.status_code == 422 and "cursor" in answer.json()["detail"], wrong
    assert admin.get("/api/vehicles", params={"cursor": cursor_of("vehicles", "a\0")}).status_code == 422


def test_what_a_client_has_already_is_not_sent_again(
    console: str, admin: httpx.Client, store: Store, jpeg: Numbered
) -> None:
    first = admin.get("/api/samples")
    tag = first.headers["etag"]
    for wanted in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = admin.get("/api/samples", headers={"If-None-Match": wanted})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag), wanted
        assert again.headers["x-content-type-options"] == "nosniff"
    assert admin.get("/api/samples", headers={"If-None-Match": '"other"'}).status_code == 200
    add(store, jpeg(20))
    changed = admin.get("/api/samples", headers={"If-None-Match": tag})
    assert changed.status_code == 200 and changed.headers["etag"] != tag
    assert "etag" not in admin.get("/api/samples/nothing").headers
    # Nobody learns by an ETag what they may not read.
    assert ask.get(f"{console}/api/samples", headers={"If-None-Match": "*"}).status_code == 401


def test_a_change_on_top_of_another_is_refused(admin: httpx.Client, store: Store) -> None:
    person(store, "viewer", name="wanda")
    read = admin.get("/api/users/wanda")
    seen = {"If-Match": read.headers["etag"]}
    changed = admin.patch("/api/users/wanda", json={"role": "labeller"}, headers=seen)
    assert changed.status_code == 200
    late = admin.patch("/api/users/wanda", json={"role": "operator"}, headers=seen)
    assert late.status_code == 412 and late.headers["etag"] == changed.headers["etag"]
    assert Accounts(store).get("wanda").role == "labeller"
    again = {"If-Match": changed.headers["etag"]}
    assert admin.patch("/api/users/wanda", json={"role": "operator"}, headers=again).status_code == 200


def test_a_repeated_post_is_done_once(console: str, store: Store, jpeg: Numbered) -> None:
    body = {"act": "act-90000001", "samples": [add(store, jpeg(30))], "verdict": "right"}
    key = {"Idempotency-Key": "one"}
    with browser(console, store, "labeller", name="rita") as rita:
        first = rita.post("/api/verdicts", json=body, headers=key)
        again = rita.post("/api/verdicts", json=body, headers=key)
        assert first.status_code == 201 and again.json() == first.json() and not again.json()["repeated"]
        assert again.headers["idempotency-replayed"] == "true"
        other = rita.post("/api/verdicts", json=body | {"verdict": "wrong"}, headers=key)
        assert other.status_code == 422 and "another request" in other.json()["detail"]
        for bad in ("", "x" * 201, "a\tb"):
            assert rita.post("/api/verdicts", json=body, headers={"Idempotency-Key": bad}).status_code == 422
        # A request that failed may be sent again, corrected.
        wrong = {"act": "short", "samples": [], "verdict": "right"}
        retry = {"Idempotency-Key": "two"}
        assert rita.post("/api/verdicts", json=wrong, headers=retry).status_code == 422
        right = body | {"act": "act-90000002"}
        assert rita.post("/api/verdicts", json=right, headers=retry).status_code == 201
    with browser(console, store, "labeller", name="robert") as robert:
        mine = body | {"act": "act-90000003", "verdict": "wrong"}
        assert robert.post("/api/verdicts", json=mine, headers=key).status_code == 201


def test_a_secret_is_not_kept_for_a_repeated_request(admin: httpx.Client, store: Store) -> None:
    key = {"Idempotency-Key": "token"}
    body = {"title": "once", "role": "viewer"}
    secret = admin.post("/api/me/tokens", json=body, headers=key).json()["secret"]
    again = admin.post("/api/me/tokens", json=body, headers=key)
    assert again.status_code == 409 and "not kept" in again.json()["detail"]
    with store.database.read() as connection:
        assert secret not in str(connection.execute(answered_requests.select()).all())
    assert len([each for each in admin.get("/api/me/tokens").json() if each["title"] == "once"]) == 1


def test_keys_are_bounded_and_claimed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(store)
    found: list[object] = []
    together = threading.Barrier(4)

    def claim() -> None:
        together.wait()
        found.append(answers.claim("k" * 64, "someone", "r" * 64))

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, found)) == ["new", "running", "running", "running"]
    answers.keep("k" * 64, Kept(201, {}, b"{}"))
    assert answers.claim("k" * 64, "someone", "r" * 64) == Kept(201, {}, b"{}")
    assert answers.claim("k" * 64, "someone", "x" * 64) == "other"
    monkeypatch.setattr("misfire_fleet.console.rules.repeated._PER_CALLER", 3)
    for number in range(9):
        answers.claim(f"{number:064d}", "someone", "r" * 64)
    with store.database.read() as connection:
        kept = connection.execute(answered_requests.select().where(answered_requests.c.caller == "someone"))
        assert len(kept.all()) == 3


def test_every_error_of_the_api_has_one_format(console: str, admin: httpx.Client, store: Store) -> None:
    with browser(console, store, "viewer") as viewer:
        answers = [
            ask.get(f"{console}/api/samples"),
            ask.get(f"{console}/api/samples", headers={"Authorization": "Bearer x"}),
            viewer.get("/api/users"),
            viewer.post("/api/verdicts", json={}),
            admin.get("/api/nothing"),
            admin.get("/api/samples/nothing"),
            admin.get("/api/samples?limit=0"),
            admin.put("/api/samples", json={}),
            admin.post("/api/verdicts", json={"act": "x"}),
            admin.post("/api/verdicts", content="{", headers={"Content-Type": "application/json"}),
            admin.post("/api/verdicts", content="<a/>", headers={"Content-Type": "text/xml"}),
            admin.post("/api/verdicts", content="x" * (MAX_BODY + 1)),
            admin.post("/api/users", json={"name": "a b", "role": "viewer"}),
            admin.post("/api/users", json={"name": "admin-1", "role": "viewer"}),
        ]
    statuses = [401, 401, 403, 403, 404, 404, 422, 405, 422, 422, 415, 413, 422, 409]
    assert [each.status_code for each in answers] == statuses
    for answer in answers:
        assert answer.headers["content-type"] == "application/problem+json", answer.url
        found = answer.json()
        assert found["status"] == answer.status_code and found["title"] and isinstance(found["detail"], str)
        assert set(found) <= {"title", "status", "detail", "errors"}


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_breaks_a_route(admin: httpx.Client, text: str) -> None:
    found = admin.get("/openapi.json").json()
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            query = {each["name"]: text for each in operation.get("parameters", ()) if each["in"] == "query"}
            body = _body(found, operation, text)
            if (body is None and method != "get") or _is_endless(operation):
                continue
            filled = path
            for each in operation.get("parameters", ()):
                if each["in"] == "path":
                    filled = filled.replace(f"{{{each['name']}}}", quote(text, safe=""))
            answer = admin.request(method.upper(), filled, params=query, json=body)
            assert answer.status_code < 500, (method, filled, answer.text)
            kind = answer.headers["content-type"]
            assert answer.status_code < 400 or kind == "application/problem+json", (method, filled)


def _is_endless(operation: dict[str, Any]) -> bool:
    """True for a stream of events."""
    return "text/event-stream" in operation["responses"].get("200", {}).get("content", {})


def _body(document: dict[str, Any], operation: dict[str, Any], text: str) -> dict[str, object] | None:
    """A body with the text in every field."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return None
    schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    return dict.fromkeys(schema["properties"], text)


def test_the_description_is_complete(admin: httpx.Client) -> None:
    found = admin.get("/openapi.json").json()
    assert found["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            place = f"{method} {path}"
            assert {"401", "403", "422", "503"} <= set(operation["responses"]), place
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    (content,) = answer["content"].items()
                    assert content[0] == "application/problem+json", place
            if method == "post":
                assert "Idempotency-Key" in [each["name"] for each in operation["parameters"]], place
    assert "HTTPValidationError" not in found["components"]["schemas"]


@pytest.mark.slow
def test_the_api_does_what_its_description_says(console: str, store: Store) -> None:
    """Schemathesis sends what the description allows, and what it does not."""
    if sys.version_info < (3, 11):
        pytest.skip("schemathesis needs Python 3.11")
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks as described

    checks = (
        not_a_server_error,
        described.status_code_conformance,
        described.content_type_conformance,
        described.response_schema_conformance,
    )

    with program(console, store, "labeller") as client:
        document = client.get("/openapi.json").json()
        schema = schemathesis.openapi.from_dict(document)
        schema.config.update(base_url=console)
        token = {"Authorization": client.headers["authorization"]}
        for result in schema.get_all_operations():
            operation = result.ok()
            if _is_endless(operation.definition.raw):
                continue

            @settings(
                max_examples=3,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def conform(case: Any) -> None:
                case.call_and_validate(headers=token, checks=checks)

            conform()
