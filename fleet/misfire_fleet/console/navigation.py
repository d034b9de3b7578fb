"""Lists the pages that the console's header links to, in this order."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """Names a page: `key` is what its template says in the block `here`."""

    key: str
    title: str
    path: str


PLACES = (
    Place("uploads", "Uploads", "/uploads"),
    Place("verdicts", "Verdicts", "/verdicts"),
    Place("vehicles", "Vehicles", "/vehicles"),
    Place("campaigns", "Campaigns", "/campaigns"),
)
