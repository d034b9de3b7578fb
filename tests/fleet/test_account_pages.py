"""The pages of accounts in a real browser: the first admin, settings, audit, signing out and in again."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fleet.consoles import browsing, serving
from tests.fleet.people import PASSWORD

from misfire_fleet.accounts.accounts import Accounts
from misfire_fleet.accounts.links import OneTimeLinks
from misfire_fleet.accounts.tokens import Tokens
from misfire_fleet.console.access.settings import AccessSettings
from misfire_fleet.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=2)]


def test_an_admin_comes_in_adds_people_and_sees_what_was_done(tmp_path: Path) -> None:
    with (
        Store.open_folder(tmp_path / "fleet") as store,
        serving(store, access=AccessSettings()) as console,
        browsing() as page,
    ):
        accounts = Accounts(store)
        page.goto(f"{console}/welcome#{OneTimeLinks(store, accounts).for_first_admin()}")
        page.fill("#name", "Ann")
        page.fill("#password", PASSWORD)
        page.fill("#again", PASSWORD + "x")
        page.click("#enter-form button")
        assert page.locator("#trouble").inner_text() == "The passwords differ."
        page.fill("#again", PASSWORD)
        page.click("#enter-form button")
        page.wait_for_url(lambda url: "welcome" not in url)
        assert page.locator(".account").inner_text().startswith("ann")

        page.goto(f"{console}/settings")
        page.fill("#token-title", "Prometheus")
        page.select_option("#token-areas", "metrics")
        page.click("#token-form button")
        page.wait_for_selector("#token-secret:not([hidden])")
        secret = page.locator("#token-secret code").inner_text()
        found = Tokens(store).find(secret)
        assert found is not None and found[0].areas == ("metrics",)
        page.fill("#user-name", "bob")
        page.click("#user-form button")
        page.wait_for_selector("#user-link:not([hidden])")
        assert page.locator("#user-link code").inner_text().startswith(f"{console}/welcome#")
        page.reload()
        page.select_option("select[data-user=bob]", "operator")
        # Not wait_for_function: the policy forbids the eval by which it asks again.
        chosen = page.locator("select[data-user=bob] option[selected]", has_text="operator")
        chosen.wait_for(state="attached")
        assert accounts.get("bob").role == "operator"

        page.goto(f"{console}/audit?subject=account%3Abob")
        assert "viewer" in page.locator("tr:has-text('account-role') del").inner_text()
        assert "operator" in page.locator("tr:has-text('account-role') ins").inner_text()

        page.click("#sign-out")
        page.wait_for_url("**/sign-in")
        page.goto(f"{console}/verdicts?order=newest")
        assert page.url.startswith(f"{console}/sign-in?next=")
        page.fill("#name", "ann")
        page.fill("#password", PASSWORD)
        page.click("#enter-form button")
        page.wait_for_url("**/verdicts?order=newest")
        page.wait_for_selector("#name-button:has-text('ann')")
        assert page.locator("#name-button").is_disabled() and not page.locator("#who").is_visible()
