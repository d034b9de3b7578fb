"""Shows the campaigns, a form for a new one, and one campaign with its dry run, progress and vehicles."""

from __future__ import annotations

from collections import Counter

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from misfire_fleet.campaigns.budget import BudgetKeeper
from misfire_fleet.campaigns.documents import Documents
from misfire_fleet.campaigns.ledger import Campaign, CampaignLedger, Progress
from misfire_fleet.console.api.campaigns import of_vehicles
from misfire_fleet.console.filters import readable
from misfire_fleet.console.shared import Shared

_VEHICLES = 500
"""Vehicles on a campaign's page, those with a problem first."""


def router(shared: Shared) -> APIRouter:
    """Returns /campaigns, /campaigns/new and /campaigns/{name}."""
    store = shared.store
    routes = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)
    ledger, documents, budget = CampaignLedger(store), Documents(store), BudgetKeeper(store)

    @routes.get("/campaigns")
    def campaigns() -> Response:
        listed = ledger.listed()
        progress = ledger.progress_of([each.name for each in listed])
        found = [(each, progress[each.name]) for each in listed]
        states: dict[str, Counter[str]] = {}
        for row in documents.all().values():
            for name in row.campaigns:
                states.setdefault(name, Counter())[row.state] += 1
            for name in row.left_out:
                if name not in row.campaigns:
                    states.setdefault(name, Counter())["left out"] += 1
        rows = [
            (each, counts, filled(each, counts), states.get(each.name, Counter())) for each, counts in found
        ]
        return shared.render.page(
            "campaigns.html", rows=rows, budget=budget.state(), damaged=ledger.damaged()
        )

    @routes.get("/campaigns/new")
    def new() -> Response:
        return shared.render.page("campaign_new.html", known=store.distinct())

    @routes.get("/campaigns/{name}")
    def campaign(name: str) -> Response:
        each = ledger.get(readable("name", name))
        progress = ledger.progress(each.name)
        vehicles = of_vehicles(documents, each.name, progress)
        return shared.render.page(
            "campaign.html",
            campaign=each,
            progress=progress,
            filled=filled(each, progress),
            counts=Counter(row.state for row in vehicles),
            vehicles=vehicles[:_VEHICLES],
            hidden=max(0, len(vehicles) - _VEHICLES),
            history=_history(shared, each.name),
        )

    return routes


def filled(each: Campaign, progress: Progress) -> float | None:
    """Returns how full a campaign is, 0..1; None if it has no limit."""
    most = each.spec.how_much
    shares = [
        have / limit
        for have, limit in ((progress.samples, most.samples), (progress.bytes, most.bytes))
        if limit
    ]
    return min(1.0, max(shares)) if shares else None


def _history(shared: Shared, name: str) -> list[tuple[float, str, str, str]]:
    """Returns what was done to a campaign: time, who, what and why, newest first."""
    found = []
    for at, actor, action, detail in shared.store.deletion.audit(limit=2000):
        if action.startswith("campaign-") and detail.get("campaign") == name:
            after = detail.get("after")
            reason = str(after.get("reason", "")) if isinstance(after, dict) else ""
            found.append((at, actor, action.removeprefix("campaign-"), reason))
    return found[:50]
