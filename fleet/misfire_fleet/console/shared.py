"""Holds what all pages and the API share: the open store, the renderer, and counts that are cached."""

from __future__ import annotations

from misfire_fleet.accounts.accounts import Accounts
from misfire_fleet.console.access.settings import AccessSettings
from misfire_fleet.console.recent import Recent
from misfire_fleet.console.reconciliation import Reconciliation
from misfire_fleet.console.rendering import Renderer
from misfire_fleet.console.thumbs import Thumbnails
from misfire_fleet.store import Store

_TOTALS_S = 2.0
"""Seconds that a count is reused. Open galleries ask for the totals every 5 s (totals.html), each of them."""


class Shared:
    """Serves one console. `close` ends its worker processes; the store stays open."""

    def __init__(self, store: Store, *, access: AccessSettings | None = None) -> None:
        self.store = store
        self.access = access or AccessSettings()
        self.accounts = Accounts(store)
        self.render = Renderer()
        self.thumbnails = Thumbnails(store)
        self.reconciliation = Reconciliation(store)
        self.totals = Recent(store.totals, max_age_s=_TOTALS_S)

    def close(self) -> None:
        """Ends what runs in the background."""
        self.thumbnails.close()
