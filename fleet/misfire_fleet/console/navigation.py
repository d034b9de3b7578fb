"""Lists the pages that the console's header links to, in this order."""

from __future__ import annotations

from typing import NamedTuple

from misfire_fleet.accounts.roles import Role


class Place(NamedTuple):
    """Names a page: `key` is what its template says in the block `here`; `role` is who sees the link."""

    key: str
    title: str
    path: str
    role: Role = "viewer"


PLACES = (
    Place("fleet", "Fleet", "/"),
    Place("uploads", "Uploads", "/uploads"),
    Place("verdicts", "Verdicts", "/verdicts"),
    Place("drift", "Drift", "/drift"),
    Place("campaigns", "Campaigns", "/campaigns"),
    Place("datasets", "Datasets", "/datasets"),
    Place("audit", "Audit", "/audit", "operator"),
    Place("settings", "Settings", "/settings"),
)
