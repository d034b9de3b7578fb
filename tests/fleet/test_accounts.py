"""Accounts, sessions, tokens and links on each database."""

from __future__ import annotations

import threading

import pytest
from tests.fleet.people import PASSWORD

from misfire_fleet.accounts.accounts import Accounts
from misfire_fleet.accounts.links import OneTimeLinks, SignedLinks, shared_secret
from misfire_fleet.accounts.sessions import Sessions
from misfire_fleet.accounts.tokens import Tokens
from misfire_fleet.console.rules.repeated import Answers, Kept
from misfire_fleet.errors import AccountConflictError, AccountError
from misfire_fleet.store import Store


def test_sessions_tokens_links_and_answers_live_in_the_database(anywhere: Store) -> None:
    accounts, sessions, tokens = Accounts(anywhere), Sessions(anywhere), Tokens(anywhere)
    ann = accounts.add("ann", "admin", password=PASSWORD, actor="test")
    with pytest.raises(AccountConflictError, match="exists already"):
        accounts.add("Ann", "admin", external=("https://id.example", "eve"), actor="oidc")
    with pytest.raises(AccountConflictError, match="exists already"):
        accounts.signed_in_externally("https://id.example", "eve", "ann", "admin")
    first = sessions.start(ann, address="::1", agent="x" * 500)
    second = sessions.start(ann, address="::1", agent="b", replaces=first)
    found = sessions.find(second)
    assert sessions.find(first) is None and found is not None and found.role == "admin"
    assert [each.id for each in sessions.of("ann")] == [found.id]
    token, secret = tokens.add("ann", title="t", role="operator", areas=("samples",), days=1, actor="ann")
    held = tokens.find(secret)
    assert held is not None and held[0].areas == ("samples",) and held[1].name == "ann"
    assert tokens.revoke(token.id, actor="ann").revoked_at and tokens.find(secret) is None
    links = OneTimeLinks(anywhere, accounts)
    with pytest.raises(AccountError, match="characters"):
        links.use(one := links.for_account("ann", actor="test"), name="", password="short")
    links.use(one, name="", password=PASSWORD + "!")
    assert accounts.check_password("Ann", PASSWORD + "!") is not None and sessions.find(second) is None
    assert shared_secret(anywhere, "links") == shared_secret(anywhere, "links")
    signed = SignedLinks(anywhere).query("0" * 64).partition("=")[2]
    assert SignedLinks(anywhere).holds("0" * 64, signed) and not SignedLinks(anywhere).holds("1" * 64, signed)
    answers = Answers(anywhere)
    assert answers.claim("k" * 64, "ann", "r" * 64) == "new"
    answers.keep("k" * 64, Kept(201, {"etag": "1"}, b"\x00\xff"))
    assert answers.claim("k" * 64, "ann", "r" * 64) == Kept(201, {"etag": "1"}, b"\x00\xff")


def test_two_admins_who_make_each_other_less_leave_one(anywhere: Store) -> None:
    accounts = Accounts(anywhere)
    for name in ("ann", "bob"):
        accounts.add(name, "admin", password=PASSWORD, actor="test")
    together, refused = threading.Barrier(2), []

    def lower(name: str) -> None:
        together.wait()
        try:
            accounts.set_role(name, "viewer", actor="test")
        except AccountConflictError as error:
            refused.append(error)

    threads = [threading.Thread(target=lower, args=(name,)) for name in ("ann", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1 and [each.role for each in accounts.all()].count("admin") == 1


def test_a_one_time_link_is_used_by_one_of_two(anywhere: Store) -> None:
    accounts = Accounts(anywhere)
    accounts.add("ann", "viewer", actor="test")
    links = OneTimeLinks(anywhere, accounts)
    secret, together, done = links.for_account("ann", actor="test"), threading.Barrier(2), []

    def use(password: str) -> None:
        together.wait()
        try:
            links.use(secret, name="", password=password)
            done.append(password)
        except AccountError:
            pass

    threads = [threading.Thread(target=use, args=(PASSWORD + end,)) for end in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1 and accounts.check_password("ann", done[0]) is not None
