"""The audit log: nobody changes it, it says how things were, and it is exported whole."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import text
from tests.fleet.consoles import serving
from tests.fleet.people import PASSWORD, browser, person

from misfire_fleet.accounts.accounts import Accounts
from misfire_fleet.console.access.settings import AccessSettings
from misfire_fleet.errors import StoreError, StoreUnavailableError
from misfire_fleet.store import Store
from misfire_fleet.store.audit.record import Change, record
from misfire_fleet.store.audit.search import AuditFilter, all_lines, lines
from misfire_fleet.store.records import Hold

SECRET_WORDS = ("argon2", PASSWORD)


def test_no_row_of_the_log_is_changed_or_removed(anywhere: Store) -> None:
    anywhere.deletion.hold(Hold("case-7", "accident", None, "car-1", None, None), actor="ann")
    before = lines(anywhere.database, AuditFilter())
    attacks = ["UPDATE audit SET actor = 'eve'", "DELETE FROM audit"]
    if anywhere.database.dialect == "sqlite":
        attacks.append(
            "INSERT OR REPLACE INTO audit (seq, at, actor, action, detail) VALUES (1, 0, 'eve', 'x', '{}')"
        )
    else:
        attacks.append("TRUNCATE audit")
    for attack in attacks:
        with (
            pytest.raises(StoreUnavailableError, match="append-only"),
            anywhere.database.write() as connection,
        ):
            connection.execute(text(attack))
    assert lines(anywhere.database, AuditFilter()) == before != []


def test_a_line_is_written_only_if_the_change_is(anywhere: Store) -> None:
    with pytest.raises(RuntimeError), anywhere.database.write() as connection:
        record(connection, Change("ann", "delete"))
        raise RuntimeError("something fails afterwards")
    assert lines(anywhere.database, AuditFilter()) == []


def test_changes_of_accounts_say_how_they_were(anywhere: Store) -> None:
    accounts = Accounts(anywhere)
    accounts.add("ann", "admin", password=PASSWORD, actor="root", via="command")
    accounts.add("bob", "viewer", actor="ann")
    accounts.set_role("bob", "operator", actor="ann", via="session:1")
    accounts.set_password("bob", PASSWORD + "2", actor="bob")
    accounts.set_disabled("bob", True, actor="ann")
    with pytest.raises(StoreError, match="last admin"):
        accounts.set_role("ann", "viewer", actor="ann")
    found = lines(anywhere.database, AuditFilter(subject="account:bob"))
    assert [each.action for each in found] == [
        "account-disable",
        "account-password",
        "account-role",
        "account-add",
    ]
    role = found[2]
    assert (role.actor, role.via) == ("ann", "session:1")
    assert (role.before or {})["role"] == "viewer" and (role.after or {})["role"] == "operator"
    assert found[3].before is None and not (found[3].after or {})["has_password"]
    assert all(word not in str(found) for word in SECRET_WORDS)
    assert len(lines(anywhere.database, AuditFilter(actor="ann"))) == 3
    assert len(list(all_lines(anywhere.database, AuditFilter(action="account-add")))) == 2
    assert lines(anywhere.database, AuditFilter(until=1.0)) == []


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open_folder(tmp_path_factory.mktemp("audit") / "fleet") as opened:
        for number in range(130):
            hold = Hold(f"case-{number}", "=cmd|' /C calc'!A0", None, "<b>car</b>", None, None)
            opened.deletion.hold(hold, actor="<script>alert(1)</script>" if number == 129 else "ann")
        yield opened


@pytest.fixture(scope="module")
def console(store: Store) -> Iterator[str]:
    with serving(store, access=AccessSettings()) as address:
        yield address


def test_the_page_and_the_export_show_every_line(console: str, store: Store) -> None:
    person(store, "admin")
    with browser(console, store, "operator") as client:
        page = client.get("/audit").text
        assert "<script>alert" not in page and "&lt;script&gt;" in page and "Show older" in page
        filtered = client.get("/audit", params={"actor": "ann", "action": "hold", "since": "2020-01-01"})
        assert filtered.status_code == 200 and filtered.text.count("<time>") == 100
        first = client.get("/api/audit", params={"action": "hold", "limit": 100}).json()
        second = client.get("/api/audit", params={"action": "hold", "cursor": first["next"]}).json()
        assert (len(first["lines"]), len(second["lines"]), second["next"]) == (100, 30, None)
        rows = list(csv.DictReader(io.StringIO(client.get("/api/audit/export?action=hold").text)))
        assert len(rows) == 130 and not rows[0]["actor"].startswith(("=", "+", "-", "@"))
        many = client.get("/api/audit/export?format=jsonl&action=hold").text.splitlines()
        assert [json.loads(each)["seq"] for each in many] == sorted(
            each["seq"] for each in map(json.loads, many)
        )
        for query in ("since=noon", "actor=%00", "cursor=x", "format=xml"):
            path = "export" if query.startswith("format") else ""
            assert client.get(f"/api/audit{'/' if path else ''}{path}?{query}").status_code == 422, query
    with browser(console, store, "labeller") as client:
        for path in ("/audit", "/api/audit", "/api/audit/export"):
            assert client.get(path).status_code == 403
        assert "/audit" not in client.get("/uploads").text


def test_a_cell_is_never_a_formula(console: str, store: Store) -> None:
    with store.database.write() as connection:
        record(connection, Change("=1+1", "note", "@SUM(A1)"))
    with browser(console, store, "operator") as client:
        found = client.get("/api/audit/export?action=note").text
    assert "'=1+1" in found and "'@SUM(A1)" in found


def test_the_pages_need_the_role(console: str) -> None:
    answer = httpx.get(f"{console}/audit")
    assert answer.status_code == 303
