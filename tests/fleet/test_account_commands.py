"""`misfire fleet users` and `tokens`: what an admin does on the server, and what they are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from misfire_fleet.accounts.accounts import Accounts
from misfire_fleet.accounts.links import OneTimeLinks
from misfire_fleet.accounts.tokens import Tokens
from misfire_fleet.commands.app import app
from misfire_fleet.store import Store
from misfire_runtime.errors import MisfireError

PASSWORD = "correct horse battery"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Store.open_folder(tmp_path / "fleet"):
        return tmp_path / "fleet"


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--fleet-dir", str(folder)])


def test_an_account_is_added_changed_disabled_and_listed(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(f"{PASSWORD}\n")
    assert (
        run(folder, "users", "add", "Ann", "--role", "admin", "--password-file", str(secret)).exit_code == 0
    )
    added = run(folder, "users", "add", "bob")
    assert "'bob' is viewer" in added.stdout
    link = added.stdout.strip().splitlines()[-1].partition("#")[2]
    with Store.open_folder(folder) as store:
        accounts = Accounts(store)
        assert OneTimeLinks(store, accounts).use(link, name="", password=PASSWORD).name == "bob"
        found = accounts.check_password("ann", PASSWORD)
        assert found is not None and found.role == "admin"
    assert run(folder, "users", "role", "bob", "operator").exit_code == 0
    assert run(folder, "users", "disable", "bob").exit_code == 0
    listed = json.loads(run(folder, "users", "list", "--json").stdout)["users"]
    assert [(each["name"], each["role"], each["disabled"]) for each in listed] == [
        ("ann", "admin", False),
        ("bob", "operator", True),
    ]
    assert run(folder, "users", "enable", "bob").exit_code == 0
    assert "bob: operator, never signed in" in run(folder, "users", "list").stdout
    assert "welcome#" in run(folder, "users", "password", "bob").stdout
    log = json.loads(run(folder, "audit", "--json").stdout)["audit"]
    assert {"account-add", "account-role", "account-disable", "account-link"} <= {
        each["action"] for each in log
    }


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("users", "add", "a b"), "a name has"),
        (("users", "add", "x" * 65), "a name has"),
        (("users", "add", "ann"), "exists already"),
        (("users", "role", "nobody", "viewer"), "there is none"),
        (("users", "role", "ann", "viewer"), "last admin"),
        (("users", "disable", "ann"), "last admin"),
        (("users", "password", "nobody"), "there is none"),
        (("users", "password", "ann", "--password-file", "/nothing"), "cannot be read"),
        (("tokens", "create", "t", "--user", "nobody"), "there is none"),
        (("tokens", "create", "t", "--user", "ann", "--area", "everything"), "is none of"),
        (("tokens", "create", " ", "--user", "ann"), "title"),
        (("tokens", "revoke", "9" * 401), "there is none"),
    ],
)
def test_what_will_not_do_is_told_in_one_sentence(
    folder: Path, arguments: tuple[str, ...], reason: str
) -> None:
    with Store.open_folder(folder) as store:
        Accounts(store).add("ann", "admin", password=PASSWORD, actor="test")
    done = run(folder, *arguments)
    assert isinstance(done.exception, MisfireError) and reason in str(done.exception)


def test_a_token_is_printed_once_and_revoked(folder: Path) -> None:
    with Store.open_folder(folder) as store:
        Accounts(store).add("exporter", "operator", actor="test")
    made = run(
        folder, "tokens", "create", "nightly", "--user", "exporter", "--area", "samples", "--days", "2"
    )
    secret = made.stdout.strip()
    listed = run(folder, "tokens", "list").stdout
    assert secret.startswith("misfire_") and secret not in listed
    assert "'nightly' of exporter: viewer, samples, valid" in listed
    with Store.open_folder(folder) as store:
        found = Tokens(store).find(secret)
        assert found is not None and found[0].areas == ("samples",)
    assert run(folder, "tokens", "revoke", listed.split()[0]).exit_code == 0
    assert "revoked" in run(folder, "tokens", "list").stdout
    with Store.open_folder(folder) as store:
        assert Tokens(store).find(secret) is None
