"""Holds what all pages and the API share: the open store, the renderer, and counts that are cached."""

from __future__ import annotations

from pathlib import Path

from misfire_fleet.accounts.accounts import Accounts
from misfire_fleet.console.access.settings import AccessSettings
from misfire_fleet.console.board.board import Board
from misfire_fleet.console.recent import Recent
from misfire_fleet.console.reconciliation import Reconciliation
from misfire_fleet.console.rendering import Renderer
from misfire_fleet.console.thumbs import Thumbnails
from misfire_fleet.gallery.collected import Collected
from misfire_fleet.gallery.index import GalleryIndex
from misfire_fleet.gallery.losses import Losses
from misfire_fleet.gallery.query import Gallery
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import FolderBlobs
from misfire_fleet.store.records import Totals

_TOTALS_S = 2.0
"""Seconds that a count is reused. Open galleries ask for the totals every 5 s (totals.html), each of them."""


class Shared:
    """Serves one console. `close` ends its worker processes; the store stays open.

    Args:
        store: the open store.
        access: who may use the console. Default: accounts of the store.
        cache: folder of thumbnails and of the embeddings' matrix. Default: `console/` beside a folder of
            blobs; for other stores, they are kept in memory only.
    """

    def __init__(
        self, store: Store, *, access: AccessSettings | None = None, cache: Path | None = None
    ) -> None:
        if cache is None and isinstance(store.blobs, FolderBlobs):
            cache = store.blobs.root.parent / "console"
        self.store = store
        self.access = access or AccessSettings()
        self.accounts = Accounts(store)
        self.render = Renderer()
        self.thumbnails = Thumbnails(store, folder=None if cache is None else cache / "thumbs")
        self.reconciliation = Reconciliation(store)
        self.totals = Recent(self._totals, max_age_s=_TOTALS_S)
        self.index = GalleryIndex(
            store,
            folder=None if cache is None else cache / "vectors",
            on_deleted=self.thumbnails.forget_deleted,
        )
        self.losses = Losses(store)
        self.gallery = Gallery(store, self.index, self.losses)
        self.collected = Collected(store)
        self.board = Board(store)

    def close(self) -> None:
        """Ends what runs in the background."""
        self.board.close()
        self.thumbnails.close()
        self.index.close()

    def _totals(self) -> Totals:
        """Counts the samples from the gallery's columns: the database would read every row."""
        view = self.index.view()
        if not view.complete:
            return self.store.totals()
        columns = view.columns
        return self.store.totals((len(view), int(columns["size"].sum()), int(columns["random"].sum())))
