"""Serves /api/campaigns: makes, estimates, starts, pauses and ends campaigns, and shows what came of them.

Every route that writes needs the role of an operator and records who it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field

from misfire_fleet.campaigns.budget import BudgetKeeper
from misfire_fleet.campaigns.documents import Documents
from misfire_fleet.campaigns.dry_run import DryRun, Horizon, estimate
from misfire_fleet.campaigns.ledger import Campaign, CampaignLedger, Progress
from misfire_fleet.campaigns.spec import CampaignSpec
from misfire_fleet.campaigns.vehicles import tag, tags_of
from misfire_fleet.console.access import Caller, requires
from misfire_fleet.console.filters import readable
from misfire_fleet.console.shared import Shared
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import Key, Name

Operator = Annotated[Caller, Depends(requires("operator"))]
T = TypeVar("T")
_Days = Annotated[float, Field(gt=0, le=365, allow_inf_nan=False)]


class CampaignJson(BaseModel):
    """Describes a campaign, its state and what it has brought. Times are seconds since 1970."""

    name: str
    state: str
    reason: str
    spec: CampaignSpec
    created_at: float
    created_by: str
    changed_at: float
    changed_by: str
    started_at: float | None
    ended_at: float | None
    samples: int
    bytes: int
    vehicles: int
    dry_run: dict[str, Any] | None


class OfVehicleJson(BaseModel):
    """Describes a campaign on one vehicle: waiting, delivered, accepted, refused or left out, and why."""

    vehicle: str
    state: str
    reason: str
    version: int
    reported_version: int | None
    published_at: float | None
    reported_at: float | None
    samples: int
    bytes: int


class ReasonIn(BaseModel):
    """Says why a campaign is moved."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=256)] = ""


class HorizonIn(BaseModel):
    """Says how many days a dry run looks ahead and back."""

    model_config = ConfigDict(extra="forbid")

    days: _Days = 7.0
    back_days: Annotated[float, Field(gt=0, le=90, allow_inf_nan=False)] = 7.0


class DryRunIn(HorizonIn):
    """A campaign that need not be kept, to be estimated."""

    spec: CampaignSpec


class BudgetIn(BaseModel):
    """The fleet's budget; None removes it."""

    model_config = ConfigDict(extra="forbid")

    bytes_per_day: Annotated[int, Field(ge=0, le=10**15)] | None


class TagsIn(BaseModel):
    """Tags to set, or to remove with null."""

    model_config = ConfigDict(extra="forbid")

    tags: Annotated[dict[Key, Annotated[str, Field(max_length=64)] | None], Field(max_length=16)]


def campaigns_api(shared: Shared) -> APIRouter:
    """Returns the routes under /api/campaigns, /api/budget and /api/tags."""
    store = shared.store
    router, ledger, documents = APIRouter(), CampaignLedger(store), Documents(store)
    budget = BudgetKeeper(store)

    def shown(each: Campaign) -> CampaignJson:
        return campaign_json(each, ledger.progress(each.name))

    @router.get("/api/campaigns")
    def campaigns(
        state: Annotated[Literal["draft", "running", "paused", "ended"] | None, Query()] = None,
    ) -> list[CampaignJson]:
        """Lists campaigns, the running ones first."""
        found = ledger.listed() if state is None else ledger.listed(states=(state,))
        progress = ledger.progress_of([each.name for each in found])
        return [campaign_json(each, progress[each.name]) for each in found]

    @router.post("/api/campaigns", status_code=201)
    def create(spec: CampaignSpec, caller: Operator) -> CampaignJson:
        """Makes a campaign, as a draft."""
        return shown(_checked(lambda: ledger.create(spec, actor=caller.name)))

    @router.post("/api/campaigns/dry-run")
    def dry_run(body: DryRunIn, _caller: Operator) -> dict[str, Any]:
        """Estimates a campaign that is not kept."""
        horizon = Horizon(days=body.days, back_days=body.back_days)
        return _checked(lambda: estimate(store, body.spec, horizon)).to_dict()

    @router.get("/api/campaigns/{name}")
    def campaign(name: str) -> CampaignJson:
        return shown(ledger.get(readable("name", name)))

    @router.put("/api/campaigns/{name}")
    def change(name: str, spec: CampaignSpec, caller: Operator) -> CampaignJson:
        """Replaces a draft."""
        if spec.name != name:
            raise HTTPException(422, f"name: {spec.name!r} is not {name[:64]!r}; a campaign keeps its name")
        return shown(_checked(lambda: ledger.change(spec, actor=caller.name)))

    @router.post("/api/campaigns/{name}/dry-run")
    def dry_run_kept(name: str, body: HorizonIn, caller: Operator) -> dict[str, Any]:
        """Estimates a campaign, and keeps the estimate beside it."""
        found: DryRun = _checked(
            lambda: estimate(
                store,
                ledger.get(readable("name", name)).spec,
                Horizon(days=body.days, back_days=body.back_days),
            )
        )
        ledger.keep_dry_run(found.campaign, found.to_dict(), actor=caller.name)
        return found.to_dict()

    @router.post("/api/campaigns/{name}/{move}")
    def move(
        name: str, move: Literal["start", "pause", "end"], body: ReasonIn, caller: Operator
    ) -> CampaignJson:
        """Starts, pauses or ends a campaign."""
        return shown(ledger.move(readable("name", name), move, actor=caller.name, reason=body.reason))

    @router.get("/api/campaigns/{name}/vehicles")
    def vehicles(name: str) -> list[OfVehicleJson]:
        """Lists what each vehicle was told, and what it answered."""
        found = ledger.get(readable("name", name))
        return of_vehicles(documents, found.name, ledger.progress(found.name))

    @router.get("/api/budget")
    def read_budget() -> dict[str, Any]:
        """Returns the fleet's budget and its present plan."""
        return budget.state()

    @router.put("/api/budget")
    def set_budget(body: BudgetIn, caller: Operator) -> dict[str, Any]:
        """Sets or removes the fleet's budget."""
        budget.set(body.bytes_per_day, actor=caller.name)
        return budget.state()

    @router.get("/api/tags")
    def tags() -> dict[str, dict[str, str]]:
        """Returns the tags of all vehicles that have any."""
        return tags_of(store)

    @router.patch("/api/tags/{vehicle}")
    def set_tags(vehicle: Name, body: TagsIn, caller: Operator) -> dict[str, str]:
        """Sets or removes tags of a vehicle."""
        return _checked(lambda: tag(store, vehicle, body.tags, actor=caller.name))

    return router


def campaign_json(each: Campaign, progress: Progress) -> CampaignJson:
    """Returns a campaign as the API shows it."""
    return CampaignJson(
        name=each.name,
        state=each.state,
        reason=each.reason,
        spec=each.spec,
        created_at=each.created_at,
        created_by=each.created_by,
        changed_at=each.changed_at,
        changed_by=each.changed_by,
        started_at=each.started_at,
        ended_at=each.ended_at,
        samples=progress.samples,
        bytes=progress.bytes,
        vehicles=progress.vehicles,
        dry_run=each.dry_run,
    )


def of_vehicles(documents: Documents, name: str, progress: Progress) -> list[OfVehicleJson]:
    """Returns what each vehicle was told of a campaign and answered, those with a problem first."""
    found = []
    for vehicle, row in documents.all(campaign=name).items():
        included = name in row.campaigns
        count, size = progress.by_vehicle.get(vehicle, (0, 0))
        found.append(
            OfVehicleJson(
                vehicle=vehicle,
                state=row.state if included else "left out",
                reason=row.left_out.get(name, "") or (row.reason if included else ""),
                version=row.version,
                reported_version=row.reported_version,
                published_at=row.published_at,
                reported_at=row.reported_at,
                samples=count,
                bytes=size,
            )
        )
    order = {"refused": 0, "left out": 1, "waiting": 2, "delivered": 3, "accepted": 4}
    return sorted(found, key=lambda each: (order[each.state], each.vehicle))


def _checked(work: Callable[[], T]) -> T:
    """Answers 422 for a campaign that is wrong in itself."""
    try:
        return work()
    except ConfigError as error:
        raise HTTPException(422, str(error)) from error
