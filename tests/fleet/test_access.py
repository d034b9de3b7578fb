"""Attacks on the console: every route without a name, with too little of a role, with what was stolen."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
from tests.fleet import people
from tests.fleet.conftest import eventually
from tests.fleet.consoles import add, serving
from tests.fleet.people import PASSWORD, ask, browser, cookie, person, program

from misfire_fleet.accounts.accounts import Accounts
from misfire_fleet.accounts.limits import SignInLimits
from misfire_fleet.accounts.links import OneTimeLinks, SignedLinks
from misfire_fleet.accounts.passwords import Passwords
from misfire_fleet.accounts.sessions import SessionLimits, Sessions
from misfire_fleet.accounts.tokens import Tokens
from misfire_fleet.commands.serve import refuse_public
from misfire_fleet.console.access.cookies import cookie_name
from misfire_fleet.console.access.routes import READS, required, routes_in
from misfire_fleet.console.access.settings import AccessSettings
from misfire_fleet.console.app import create_app
from misfire_fleet.errors import TooManyRequestsError
from misfire_fleet.store import Store
from misfire_fleet.store.schema import accounts as account_rows
from misfire_fleet.store.schema import api_tokens, sessions
from misfire_runtime.errors import ConfigError

Numbered = Callable[[int], bytes]
CLOSED = AccessSettings()
PUBLIC = {"/healthz", "/sign-in", "/welcome"}
OWN = {
    ("DELETE", "/api/session"),
    ("PUT", "/api/me/password"),
    ("DELETE", "/api/me/sessions"),
    ("DELETE", "/api/me/sessions/{session}"),
    ("POST", "/api/me/tokens"),
    ("DELETE", "/api/me/tokens/{token}"),
    ("PUT", "/api/views/{name}"),
    ("DELETE", "/api/views/{name}"),
}
"""What a viewer may write: their own account."""
UNSIGNED = {("POST", "/api/session"), ("POST", "/api/welcome")}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open_folder(tmp_path_factory.mktemp("access") / "fleet") as opened:
        person(opened, "admin", name="ann", password=PASSWORD)
        yield opened


@pytest.fixture(scope="module")
def console(store: Store) -> Iterator[str]:
    with serving(store, allowed_hosts=["console.example"], access=CLOSED) as address:
        yield address


def test_without_signing_in_no_route_shows_or_does_anything(console: str, store: Store) -> None:
    asked = 0
    with httpx.Client(base_url=console, verify=False) as nobody:
        for template, route in routes_in(create_app(store).routes):
            path = _filled(template)
            for method in route.methods:
                if path in PUBLIC or (method, template) in UNSIGNED:
                    continue
                answer = nobody.request(method, path, json=None if method in READS else {})
                asked += 1
                if answer.status_code == 303:
                    assert method == "GET" and not path.startswith("/api/"), path
                    assert answer.headers["location"].startswith("/sign-in")
                else:
                    assert answer.status_code == 401, (method, path, answer.status_code)
                    assert answer.text.count("{") <= 1 or "detail" in answer.json()
        for path in (
            "/openapi.json",
            "/metrics",
            "/nothing",
            "/api/nothing",
            "//healthz",
            "/static/../uploads",
        ):
            assert nobody.get(path).status_code in (303, 401, 404), path
    assert asked > 30


def test_no_route_does_more_for_a_role_than_it_names(console: str, store: Store) -> None:
    tried = 0
    clients = {role: browser(console, store, role) for role in ("viewer", "labeller", "operator")}
    for template, route in routes_in(create_app(store).routes):
        for method in sorted(route.methods - READS):
            if (method, template) in UNSIGNED:
                continue
            needs = required(route)
            assert needs is not None, template
            assert needs.role != "viewer" or (method, template) in OWN, (method, template)
            for role in people.below(needs.role):
                answer = clients[role].request(method, _filled(template), json={})
                tried += 1
                assert answer.status_code == 403, (role, method, template, answer.status_code)
                assert needs.role in answer.json()["detail"]
    for path in ("/api/users", "/api/users/ann", "/api/users/ann/sessions", "/api/tokens"):
        assert clients["operator"].get(path).status_code == 403
    for client in clients.values():
        client.close()
    assert tried > 8


def test_a_route_that_writes_and_names_no_role_does_not_start(store: Store) -> None:
    from fastapi import APIRouter

    from misfire_fleet.console.access.routes import refuse_open_writes

    inner, router = APIRouter(), APIRouter()

    @inner.post("/nobody")
    def write() -> None: ...

    router.include_router(inner, prefix="/api")
    with pytest.raises(ValueError, match="/api/nobody"):
        refuse_open_writes(router)


def test_a_session_that_was_put_into_a_browser_is_worth_nothing_after_signing_in(
    console: str, store: Store
) -> None:
    name = cookie_name("http")
    mallory = person(store, "viewer", name="mallory")
    for planted in ("known-to-the-attacker", cookie(store, mallory)[name]):
        origin = {"Origin": console}
        with httpx.Client(base_url=console, verify=False, cookies={name: planted}, headers=origin) as victim:
            answer = victim.post("/api/session", json={"name": "Ann", "password": PASSWORD})
            assert answer.status_code == 201
            fresh = answer.cookies[name]
        assert fresh != planted
        assert ask.get(f"{console}/api/me", cookies={name: planted}).status_code == 401
        assert ask.get(f"{console}/api/me", cookies={name: fresh}).json()["name"] == "ann"


def test_the_cookie_is_hidden_from_scripts_and_other_sites(console: str) -> None:
    signed = ask.post(f"{console}/api/session", json={"name": "ann", "password": PASSWORD})
    header = signed.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= {part.strip() for part in header.split(";")}
    assert "Secure" not in header and signed.headers["cache-control"] == "no-store"


def test_over_https_the_cookie_is_for_this_host_alone(store: Store) -> None:
    access = AccessSettings(url="https://console.example")
    with serving(store, access=access) as console:
        headers = {"Host": "console.example", "Origin": "https://console.example"}
        body = {"name": "ann", "password": PASSWORD}
        signed = ask.post(f"{console}/api/session", json=body, headers=headers)
        assert signed.status_code == 201
        header = signed.headers["set-cookie"]
        assert header.startswith("__Host-") and "Secure" in header and "Domain" not in header
        assert "max-age" in signed.headers["strict-transport-security"]
        secret = header.split("=", 1)[1].split(";")[0]
        for name, status in ((cookie_name("https"), 200), (cookie_name("http"), 401)):
            sent = {"Host": "console.example", "Cookie": f"{name}={secret}"}
            assert ask.get(f"{console}/api/me", headers=sent).status_code == status
        plain = headers | {"Origin": "http://console.example"}
        assert ask.post(f"{console}/api/session", json=body, headers=plain).status_code == 403


def test_a_page_of_another_site_writes_nothing_with_a_visitors_cookie(console: str, store: Store) -> None:
    cookies = cookie(store, person(store, "admin", name="ann"))
    body = {"name": "planted", "role": "admin"}
    port = console.rpartition(":")[2]
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": f"http://evil.example:{port}"},
        {"Origin": console, "Sec-Fetch-Site": "cross-site"},
        {"Origin": console, "Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {},
        {"Referer": f"{console}/settings"},
    ):
        answer = ask.post(f"{console}/api/users", json=body, headers=headers, cookies=cookies)
        assert answer.status_code == 403, headers
    form = {"Origin": console, "Content-Type": "application/x-www-form-urlencoded"}
    assert (
        ask.post(f"{console}/api/users", content="name=x", headers=form, cookies=cookies).status_code == 415
    )
    for path in ("/api/session", "/api/users", "/uploads"):
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        answer = ask.options(console + path, headers=asked, cookies=cookies)
        assert "access-control-allow-origin" not in answer.headers
    assert "planted" not in {each.name for each in Accounts(store).all()}
    own = {"Origin": console}
    assert ask.post(f"{console}/api/users", json=body, headers=own, cookies=cookies).status_code == 201


def test_a_session_ends_when_it_is_idle_and_in_any_case(console: str, store: Store) -> None:
    account = person(store, "viewer")
    limits = SessionLimits()
    for column, age in (("seen_at", limits.idle_s + 1), ("expires_at", limits.absolute_s + 1)):
        cookies = cookie(store, account)
        assert ask.get(f"{console}/api/me", cookies=cookies).status_code == 200
        with store.database.write() as connection:
            mine = sessions.c.account == account.name
            moved = {column: sessions.c[column] - age}
            connection.execute(sessions.update().where(mine).values(moved))
        answer = ask.get(f"{console}/uploads", cookies=cookies)
        assert answer.status_code == 303 and answer.headers["location"] == "/sign-in?next=%2Fuploads"
        assert "Max-Age=0" in answer.headers["set-cookie"]
        assert ask.get(f"{console}/api/me", cookies=cookies).status_code == 401


def test_signing_out_ends_the_session_for_whoever_copied_the_cookie(console: str, store: Store) -> None:
    account = person(store, "viewer", name="vera")
    first, second = cookie(store, account), cookie(store, account)
    own = {"Origin": console}
    assert ask.delete(f"{console}/api/session", headers=own | _none(), cookies=first).status_code == 204
    assert ask.get(f"{console}/api/me", cookies=first).status_code == 401
    assert ask.get(f"{console}/api/me", cookies=second).status_code == 200
    third = cookie(store, account)
    ended = ask.delete(f"{console}/api/me/sessions", headers=own | _none(), cookies=third)
    assert ended.json() == {"ended": 2}
    for cookies in (second, third):
        assert ask.get(f"{console}/api/me", cookies=cookies).status_code == 401


def test_a_change_of_role_or_password_and_disabling_end_what_was_open(console: str, store: Store) -> None:
    accounts = Accounts(store)
    account = person(store, "operator", name="otto", password=PASSWORD)
    _, secret = Tokens(store).add("otto", title="ci", role="operator", days=1, actor="test")
    token = {"Authorization": f"Bearer {secret}"}
    for change in (
        lambda: accounts.set_role("otto", "viewer", actor="test"),
        lambda: accounts.set_password("otto", PASSWORD + "!", actor="test"),
        lambda: accounts.set_disabled("otto", True, actor="test"),
    ):
        cookies = cookie(store, account)
        assert ask.get(f"{console}/api/me", cookies=cookies).status_code == 200
        assert ask.get(f"{console}/api/me", headers=token).status_code == 200
        change()
        assert ask.get(f"{console}/api/me", cookies=cookies).status_code == 401
    assert ask.get(f"{console}/api/me", headers=token).status_code == 401
    right = {"name": "otto", "password": PASSWORD + "!"}
    assert ask.post(f"{console}/api/session", json=right).status_code == 401


def test_wrong_tokens_are_refused_and_none_falls_back_to_the_session(console: str, store: Store) -> None:
    _, secret = Tokens(store).add("ann", title="t", role="viewer", days=1, actor="test")
    cookies = cookie(store, person(store, "admin", name="ann"))
    for header in (
        "Bearer",
        f"Bearer {secret[:-1]}",
        f"Bearer {secret}x",
        f"Bearer {secret.upper()}",
        f"Basic {secret}",
        f"Bearer {secret},{secret}",
        "Bearer ' OR 1=1 --",
        "Bearer " + "9" * 401,
        "Bearer " + "x" * 8000,
    ):
        answer = ask.get(f"{console}/api/me", headers={"Authorization": header}, cookies=cookies)
        assert answer.status_code == 401, header[:40]
        assert "Bearer" in answer.headers["www-authenticate"] and secret not in answer.text
    assert ask.get(f"{console}/api/me", headers={"Authorization": f"bearer {secret}"}).status_code == 200


def test_a_token_does_no_more_than_its_role_its_areas_and_its_owner(console: str, store: Store) -> None:
    user = {"name": "made-by-token", "role": "admin"}
    with (
        program(console, store, "viewer") as reader,
        program(console, store, "operator", "samples") as scoped,
    ):
        assert reader.get("/api/samples").status_code == 200
        assert reader.get("/api/users").status_code == 403
        assert (scoped.get("/api/samples").status_code, scoped.get("/uploads").status_code) == (200, 200)
        for path in ("/api/vehicles", "/api/verdicts/summary", "/metrics", "/settings", "/api/users"):
            answer = scoped.get(path)
            assert answer.status_code == 403 and "samples" in answer.text, path
    with program(console, store, "admin") as admin:
        assert admin.get("/api/users").status_code == 200
        # A token that leaked makes no account, no other token, no password, and no link.
        for method, path, body in (
            ("POST", "/api/users", user),
            ("POST", "/api/me/tokens", {"title": "another"}),
            ("PUT", "/api/me/password", {"new": PASSWORD}),
            ("POST", "/api/users/ann/link", {}),
        ):
            answer = admin.request(method, path, json=body)
            assert answer.status_code == 403 and "tokens" in answer.json()["detail"], path
        owner = person(store, "admin")
        Accounts(store).set_role(owner.name, "viewer", actor="test")
        assert admin.get("/api/users").status_code == 403
        Accounts(store).set_role(owner.name, "admin", actor="test")
    assert "made-by-token" not in {each.name for each in Accounts(store).all()}


def test_an_expired_or_revoked_token_is_refused(console: str, store: Store) -> None:
    tokens = Tokens(store)
    token, secret = tokens.add("ann", title="short", role="viewer", days=1, actor="test")
    header = {"Authorization": f"Bearer {secret}"}
    assert ask.get(f"{console}/api/me", headers=header).status_code == 200
    with store.database.write() as connection:
        connection.execute(api_tokens.update().where(api_tokens.c.id == token.id).values(expires_at=1.0))
    assert ask.get(f"{console}/api/me", headers=header).status_code == 401
    token, secret = tokens.add("ann", title="revoked", role="viewer", days=1, actor="test")
    tokens.revoke(token.id, actor="test")
    assert ask.get(f"{console}/api/me", headers={"Authorization": f"Bearer {secret}"}).status_code == 401


def test_nobody_gives_themselves_a_role(console: str, store: Store) -> None:
    with browser(console, store, "viewer", name="climber") as climber:
        for method, path, body in (
            ("PATCH", "/api/users/climber", {"role": "admin"}),
            ("POST", "/api/users", {"name": "climber-2", "role": "admin"}),
            ("POST", "/api/users/ann/link", {}),
            ("DELETE", "/api/users/ann/sessions", None),
        ):
            assert climber.request(method, path, json=body).status_code == 403, path
        token = climber.post("/api/me/tokens", json={"title": "t", "role": "admin"})
        assert token.status_code == 422 and "viewer" in token.json()["detail"]
        signed = climber.post("/api/session", json={"name": "climber", "password": "x", "role": "admin"})
        assert signed.status_code == 422
        mine, *_ = Tokens(store).of("ann")
        assert climber.delete(f"/api/me/tokens/{mine.id}").status_code == 404
        theirs, *_ = Sessions(store).of("ann")
        assert climber.delete(f"/api/me/sessions/{theirs.id}").json() == {"ended": 0}
        assert climber.get("/settings").text.count("/api/users") == 0
    assert Accounts(store).get("climber").role == "viewer"


def test_a_verdict_is_given_in_the_own_name_only(console: str, store: Store, jpeg: Numbered) -> None:
    sample = add(store, jpeg(1))
    body = {"act": "act-00000001", "samples": [sample], "verdict": "right"}
    with browser(console, store, "labeller", name="lara") as lara:
        other = lara.post("/api/verdicts", json=body | {"annotator": "ann"})
        assert other.status_code == 403 and "'lara'" in other.json()["detail"]
        assert lara.post("/api/verdicts", json=body | {"annotator": "lara"}).status_code == 201
        assert lara.post("/api/verdicts", json=body | {"act": "act-00000002"}).status_code == 201
        undo = {"act": "undo-0000001", "undoes": "act-00000002", "annotator": "ann"}
        assert lara.post("/api/verdicts/undo", json=undo).status_code == 403
        records = lara.get("/api/verdicts", params={"sample": sample}).json()
        assert {each["annotator"] for each in records} == {"lara"}


def test_a_signed_link_shows_one_picture_for_a_while(
    console: str, store: Store, jpeg: Numbered, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = add(store, jpeg(11)), add(store, jpeg(12))
    query = SignedLinks(store).query(one)
    assert ask.get(f"{console}/blobs/{one}?{query}").content == jpeg(11)
    for path in (
        f"/blobs/{other}?{query}",
        f"/blobs/{one}",
        f"/blobs/{one}?link=",
        f"/blobs/{one}?{query[:-2]}",
        f"/blobs/{one}?link=a.b.c&{query}",
        f"/blobs/{one}/../{other}?{query}",
        f"/thumbs/{one}?{query}",
        f"/samples/{one}?{query}",
        f"/api/samples/{one}?{query}",
    ):
        assert ask.get(console + path, follow_redirects=False).status_code in (303, 401), path
    assert ask.post(f"{console}/blobs/{one}?{query}").status_code == 401
    monkeypatch.setattr("misfire_fleet.accounts.links.SIGNED_S", -1)
    assert ask.get(f"{console}/blobs/{one}?{query}").status_code == 401


def test_metrics_are_for_a_token_or_for_this_machine_if_it_is_wished(console: str, store: Store) -> None:
    assert ask.get(f"{console}/healthz").status_code == 200
    assert ask.get(f"{console}/metrics").status_code == 401
    with program(console, store, "viewer", "metrics") as prometheus:
        assert "misfire_samples" in prometheus.get("/metrics").text
    with serving(store, access=AccessSettings(open_metrics=True)) as wished:
        assert ask.get(f"{wished}/metrics").status_code == 200
        assert ask.get(f"{wished}/api/totals").status_code == 401


def test_the_first_admin_comes_by_a_link_that_works_once(tmp_path: object) -> None:
    with Store.open_folder(tmp_path / "fleet") as store, serving(store, access=CLOSED) as console:  # type: ignore[operator]
        links = OneTimeLinks(store, Accounts(store))
        old, secret = links.for_first_admin(), links.for_first_admin()
        body = {"link": secret, "name": "Root", "password": PASSWORD}
        url = f"{console}/api/welcome"
        for wrong, status in (
            ({"link": "x" * 43}, 422),
            ({"link": old}, 422),
            ({"password": "short"}, 422),
            ({"password": "aaaaaaaaaaaaaaa"}, 422),
            ({"name": "<b>"}, 422),
            ({"name": "'; DROP TABLE accounts; --"}, 422),
        ):
            assert ask.post(url, json=body | wrong).status_code == status, wrong
        made = ask.post(url, json=body)
        assert made.json() == {"name": "root", "role": "admin"}
        assert ask.get(f"{console}/api/me", cookies=dict(made.cookies)).json()["role"] == "admin"
        assert ask.post(url, json=body | {"name": "second"}).status_code == 422
        again = links.for_first_admin()
        late = ask.post(url, json=body | {"link": again, "name": "second"})
        assert late.status_code == 409
        assert [each.name for each in Accounts(store).all()] == ["root"]


def test_guesses_are_limited_by_account_and_address(store: Store) -> None:
    with (
        serving(store, access=CLOSED) as console,
        httpx.Client(base_url=console, verify=False, timeout=60) as guesser,
    ):
        statuses = [
            guesser.post("/api/session", json={"name": "ann", "password": f"guess {n}"}).status_code
            for n in range(7)
        ]
        assert statuses == [401] * 5 + [429] * 2
        answer = guesser.post("/api/session", json={"name": "ann", "password": PASSWORD})
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 100
        for name in (" ANN ", "ann\0", "Ann"):
            other = guesser.post("/api/session", json={"name": name, "password": PASSWORD})
            assert other.status_code in (401, 429), name
        spoofed = {"X-Forwarded-For": "203.0.113.9"}
        again = guesser.post("/api/session", json={"name": "ann", "password": PASSWORD}, headers=spoofed)
        assert again.status_code == 429


def test_no_secret_is_kept_or_shown(console: str, store: Store) -> None:
    with browser(console, store, "admin", name="ann") as ann:
        made = ann.post("/api/me/tokens", json={"title": "shown once", "role": "viewer"})
        assert made.headers["cache-control"] == "no-store"
        secret = made.json()["secret"]
        link = ann.post("/api/users/ann/link", json={}).json()["path"].partition("#")[2]
        held = ann.cookies[cookie_name("http")]
        pages = [ann.get(path).text for path in ("/settings", "/api/me/tokens", "/api/tokens", "/api/users")]
    raw = b"".join(path.read_bytes() for path in (store.blobs.root.parent).glob("fleet.sqlite*"))  # type: ignore[union-attr]
    for hidden in (secret, link, held, PASSWORD):
        assert hidden.encode() not in raw
        assert all(hidden not in page for page in pages)
    with store.database.read() as connection:
        kept = str(connection.execute(account_rows.select()).all())
    assert "$argon2id$" in kept and all("argon2" not in page for page in pages)
    logged = str(store.deletion.audit(limit=1000))
    assert "argon2" not in logged and secret not in logged and link not in logged


def test_text_of_a_browser_never_becomes_markup(console: str, store: Store) -> None:
    evil = "<script>alert(1)</script>'\"; DROP TABLE sessions; --"
    ann = person(store, "admin", name="ann")
    Sessions(store).start(ann, address=evil, agent=evil)
    with browser(console, store, "admin", name="ann") as client:
        client.post("/api/me/tokens", json={"title": evil, "role": "viewer"})
        page = client.get("/settings").text
        assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
        for name in (evil, "../ann", "ann%00", "a" * 65, "9" * 401):
            assert client.get(f"/api/users/{name}").status_code in (404, 422), name
            made = client.post("/api/users", json={"name": name, "role": "viewer"})
            assert made.status_code == 422, name
        signed = client.post("/api/session", json={"name": "ann\0", "password": evil})
        assert signed.status_code == 401


@pytest.mark.parametrize(
    ("host", "url", "allowed"),
    [
        ("0.0.0.0", "", ()),
        ("::", "", ()),
        ("192.0.2.7", "", ()),
        ("console.example", "", ()),
        ("127.0.0.1", "https://console.example", ()),
        ("127.0.0.1", "", ("console.example",)),
    ],
)
def test_a_console_without_accounts_is_for_this_machine_only(
    host: str, url: str, allowed: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match="--open"):
        refuse_public(host, url=url, allowed_hosts=allowed)
    for loopback in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        refuse_public(loopback, url="", allowed_hosts=())


def test_sign_ins_at_the_same_moment_do_not_take_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords, go = Passwords(), threading.Event()
    monkeypatch.setattr(passwords._hash, "verify", lambda *_: go.wait(30))
    passwords._nobody = "x"
    results: list[object] = []

    def sign_in() -> None:
        try:
            results.append(passwords.matches("guess", "kept"))
        except TooManyRequestsError as error:
            results.append(error)

    threads = [threading.Thread(target=sign_in) for _ in range(30)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: len(results) >= 20)
    go.set()
    for thread in threads:
        thread.join()
    assert len([each for each in results if isinstance(each, TooManyRequestsError)]) == 20


def test_the_memory_of_guesses_is_bounded_and_comes_back() -> None:
    now = [0.0]
    limits = SignInLimits(lambda: now[0], many=50)
    for _ in range(5):
        limits.take("ann", "203.0.113.1")
    with pytest.raises(TooManyRequestsError) as refused:
        limits.take("ann", "203.0.113.1")
    limits.take("ann", "203.0.113.2")
    now[0] += refused.value.retry_after_s + 0.1
    limits.take("ann", "203.0.113.1")
    for number in range(500):
        limits.take(f"name-{number}", f"2001:db8:{number:x}::1")
    assert len(limits._buckets) == 50
    for number in range(30):
        limits.take(f"other-{number}", f"2001:db8:ffff::{number + 1:x}")
    with pytest.raises(TooManyRequestsError):
        limits.take("another", "2001:db8:ffff::99")


def test_every_answer_forbids_what_the_console_does_not_do(console: str) -> None:
    for path in ("/sign-in", "/uploads", "/api/samples", "/static/console.css", "/nothing"):
        headers = ask.get(console + path).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy and "script-src" not in policy and "default-src 'self'" in policy
        assert (
            "style-src" not in policy and "base-uri 'none'" in policy and "frame-ancestors 'none'" in policy
        )
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert "<style" not in ask.get(f"{console}/sign-in").text


def _filled(path: str) -> str:
    return re.sub(r"\{[^}]+\}", "0" * 64, path)


def _none() -> dict[str, str]:
    return {"Content-Length": "0"}
