"""Signing in at a real OpenID provider, and what a false one, or a false answer, gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from oidc_provider_mock import User, run_server_in_thread
from tests.fleet.consoles import serving
from tests.fleet.people import person

from misfire_fleet.accounts.accounts import Accounts
from misfire_fleet.accounts.oidc import OidcSettings, person_of, read_console_config
from misfire_fleet.console.access.settings import AccessSettings
from misfire_fleet.errors import AccountError
from misfire_fleet.store import Store
from misfire_runtime.errors import ConfigError

# The provider is built on parts of authlib that warn of their own successors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:get_jwt_config:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:authlib.jose"),
]

PEOPLE = (
    User(sub="s-ann", claims={"email": "Ann@example.org", "groups": ["fleet-admins", "staff"]}),
    User(sub="s-lee", claims={"email": "lee@example.org", "groups": "labelling"}),
    User(sub="s-out", claims={"email": "out@example.org", "groups": ["staff"]}),
    User(sub="s-fake", claims={"email": "root@example.org", "groups": ["fleet-admins"]}),
    User(
        sub="s-unproven",
        claims={"email": "eve@example.org", "email_verified": False, "groups": ["fleet-admins"]},
    ),
)
SETTINGS = {
    "client_id": "misfire",
    "roles": {"fleet-admins": "admin", "labelling": "labeller"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open_folder(tmp_path_factory.mktemp("oidc") / "fleet") as opened:
        person(opened, "admin", name="root@example.org")
        yield opened


@pytest.fixture(scope="module")
def console(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    secret = tmp_path_factory.mktemp("secret") / "oidc"
    secret.write_text("client-secret\n")
    with run_server_in_thread(user_claims=PEOPLE, require_nonce=True) as provider:
        oidc = OidcSettings.model_validate(
            SETTINGS | {"issuer": f"http://localhost:{provider.server_port}", "client_secret_file": secret}
        )
        with serving(store, access=AccessSettings(oidc=oidc)) as address:
            yield address


def walk(console: str, subject: str, *, after: str = "/") -> tuple[httpx.Client, httpx.Response]:
    """Signs in as a browser does; returns it with the console's last answer."""
    client = httpx.Client(base_url=console, timeout=30, verify=False)
    asked = client.get("/oidc/sign-in", params={"next": after})
    assert asked.status_code == 302, asked.text
    query = parse_qs(urlsplit(asked.headers["location"]).query)
    assert query["code_challenge_method"] == ["S256"] and query["nonce"][0] and query["state"][0]
    allowed = httpx.post(asked.headers["location"], data={"sub": subject}, verify=False, timeout=30)
    assert allowed.status_code == 302, allowed.text
    return client, client.get(allowed.headers["location"])


def test_a_person_comes_in_with_the_role_of_their_group(console: str, store: Store) -> None:
    client, answer = walk(console, "s-ann", after="/settings?x=1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/settings?x=1")
    assert client.get("/api/me").json()["role"] == "admin"
    lee, _ = walk(console, "s-lee")
    assert lee.get("/api/me").json() == {
        "name": "lee@example.org",
        "role": "labeller",
        "how": "session",
        "areas": [],
    }
    assert Accounts(store).get("ann@example.org").external
    Accounts(store).set_disabled("lee@example.org", True, actor="test")
    again, refused = walk(console, "s-lee")
    assert refused.status_code == 403 and again.get("/api/me").status_code == 401
    for each in (client, lee, again):
        each.close()


@pytest.mark.parametrize(
    ("subject", "reason"),
    [("s-out", "has a role"), ("s-fake", "exists already"), ("s-unproven", "not verified")],
)
def test_who_has_no_role_or_anothers_name_stays_out(console: str, subject: str, reason: str) -> None:
    client, answer = walk(console, subject)
    assert answer.status_code == 403 and reason in answer.text
    assert client.get("/api/me").status_code == 401
    client.close()


def test_an_answer_that_was_not_asked_for_is_refused(console: str) -> None:
    victim = httpx.Client(base_url=console, timeout=30, verify=False)
    thief, _ = walk(console, "s-ann")
    asked = thief.get("/oidc/sign-in")
    allowed = httpx.post(asked.headers["location"], data={"sub": "s-ann"}, verify=False, timeout=30)
    # The thief's answer in the victim's browser would sign the victim in as the thief.
    answer = victim.get(allowed.headers["location"])
    assert answer.status_code == 403 and victim.get("/api/me").status_code == 401
    victim.get("/oidc/sign-in")
    for path in ("/oidc/back", "/oidc/back?code=x", "/oidc/back?state=x&code=y", "/oidc/back?error=<script>"):
        answer = victim.get(path)
        assert answer.status_code == 403 and "<script>" not in answer.text, path
    # A code works once.
    assert thief.get(allowed.headers["location"]).status_code == 303
    assert thief.get(allowed.headers["location"]).status_code == 403
    victim.close()
    thief.close()


@pytest.mark.parametrize(
    "after", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "/a\nb"]
)
def test_nobody_is_led_elsewhere_after_signing_in(console: str, after: str) -> None:
    client, answer = walk(console, "s-ann", after=after)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    client.close()


def test_a_provider_that_does_not_answer_is_told(store: Store) -> None:
    oidc = OidcSettings.model_validate(SETTINGS | {"issuer": "http://127.0.0.1:9"})
    with serving(store, access=AccessSettings(oidc=oidc)) as console:
        answer = httpx.get(f"{console}/oidc/sign-in", timeout=30)
        assert answer.status_code == 502 and "does not answer" in answer.text
        assert "Sign in with" in httpx.get(f"{console}/sign-in").text


def test_claims_are_read_with_suspicion(tmp_path: Path) -> None:
    settings = OidcSettings.model_validate(SETTINGS | {"issuer": "https://id.example"})
    good = {"sub": "1", "email": "a@example.org", "groups": ["labelling", "fleet-admins", 7]}
    assert person_of(settings, good).role == "admin"
    for wrong in (
        {"sub": None},
        {"sub": ""},
        {"email": None},
        {"email": ["a"]},
        {"email": "<b>"},
        {"groups": {"fleet-admins": True}},
        {"groups": []},
    ):
        with pytest.raises(AccountError):
            person_of(settings, good | wrong)
    for text, named in (
        ('[oidc]\nissuer = "http://id.example"\nclient_id = "x"', "https"),
        ('[oidc]\nissuer = "https://id.example"', "client_id"),
        ('[oidc]\nissuer = "https://id.example"\nclient_id = "x"\nroles = {a = "root"}', "viewer"),
    ):
        path = tmp_path / "console.toml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=named):
            read_console_config(path)
