"""Defines what a campaign is: who collects, what, how much, until when, and under which privacy.

CampaignSpec --tables--> the triggers `campaign.NAME` and its parts, as a vehicle's desired configuration has
them (misfire_runtime.triggers.campaigns)
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import Key, SampleId
from misfire_runtime.toml import explain
from misfire_runtime.triggers.campaigns import MAX_PRIORITY, PREFIX
from misfire_runtime.triggers.expression import compile_rule

MAX_NAMES = 200
CampaignName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")]
"""Short and without dots, because it is part of a trigger's name."""
_Glob = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@*?\[\]!-]{1,130}$")]
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = {"prediction", "confidence", "boxes", "source", "context", "score", "percentile"}
_Value = Annotated[str, Field(max_length=64)] | bool | Annotated[float, Field(ge=-1e12, le=1e12)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Cut:
    """Holds what the budget sets for a vehicle: a score, and the share of its frames that it takes at most.

    The share bounds what a vehicle takes that cannot be told a new score, because it is offline for days.
    """

    above: float
    rate: float = 1.0


class Who(_Part):
    """Selects vehicles: all conditions hold, and of a list any. Nothing given: every vehicle.

    Attributes:
        vehicles: names, or patterns with * and ?.
        bundles: `name@version`, or patterns, of the bundle that the vehicle runs.
        tags: values that the operator gave the vehicle, such as {"region": "eu"}.
        context: values in the vehicle's newest samples, such as {"country": "de"}.
    """

    vehicles: Annotated[tuple[_Glob, ...], Field(max_length=MAX_NAMES)] = ()
    bundles: Annotated[tuple[_Glob, ...], Field(max_length=MAX_NAMES)] = ()
    tags: Annotated[dict[Key, Annotated[str, Field(max_length=64)]], Field(max_length=16)] = {}
    context: Annotated[dict[Key, _Value], Field(max_length=16)] = {}


class Near(_Part):
    """Selects frames like a stored sample, by the cosine similarity of embeddings."""

    sample: SampleId
    similarity: float = Field(default=0.9, gt=0, le=1)


class What(_Part):
    """Selects frames: all conditions that are given hold.

    Attributes:
        score: that `top`, `level` or `above` looks at; None is the bundle's own.
        top: share of frames with the highest score, 0..1.
        level: at or above this level of the score's calibration, 0..1.
        above: at or above this score.
        budget: at or above the threshold that the fleet's budget sets (docs/campaigns.md).
        when: an expression, as in a vehicle's `kind = "rule"`.
        slice: values of the context, such as {"weather": "fog"}.
        near: frames like a sample.
        cool_down_s: seconds without a further frame, per source.
    """

    score: Annotated[str, Field(max_length=128)] | None = None
    top: float | None = Field(default=None, gt=0, le=1)
    level: float | None = Field(default=None, ge=0, le=1)
    above: float | None = None
    budget: bool = False
    when: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    slice: Annotated[dict[Key, _Value], Field(max_length=8)] = {}
    near: Near | None = None
    cool_down_s: float = Field(default=0.0, ge=0, le=86_400)

    @property
    def by_score(self) -> bool:
        """Returns True if a score selects."""
        return self.budget or any(each is not None for each in (self.top, self.level, self.above))

    @property
    def rules(self) -> list[str]:
        """Returns the expressions that must hold: `when`, and one for each value of the slice."""
        found = [] if self.when is None else [self.when]
        for key, value in self.slice.items():
            # JSON's text is Python's, but for true and false.
            text = str(value) if isinstance(value, bool) else json.dumps(value)
            found.append(f"context[{json.dumps(key)}] == {text}")
        return found

    @model_validator(mode="after")
    def _is_clear(self) -> What:
        ways = [name for name in ("top", "level", "above") if getattr(self, name) is not None]
        ways += ["budget"] if self.budget else []
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)}: give one of them")
        if self.score is not None and not ways:
            raise ValueError(f"score {self.score!r}: say top, level, above or budget")
        if not ways and not self.rules and self.near is None:
            raise ValueError("nothing is selected: give top, level, above, budget, when, slice or near")
        for rule in self.rules:
            try:
                # Which scores a vehicle's bundle has is known when the campaign reaches it.
                compile_rule(rule, scores=words(rule))
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self


class HowMuch(_Part):
    """Limits what the fleet takes; the collectors decline what is above.

    Attributes:
        samples: in all; None is no limit.
        bytes: in all; None is no limit.
        per_cluster: near-duplicates of one another; None is no limit.
        similarity: cosine similarity at which samples are near-duplicates.
    """

    samples: int | None = Field(default=None, ge=1, le=10**9)
    bytes: int | None = Field(default=None, ge=1, le=10**15)
    per_cluster: int | None = Field(default=None, ge=1, le=10**6)
    similarity: float = Field(default=0.95, gt=0, le=1)


class CampaignSpec(_Part):
    """Describes a campaign.

    Attributes:
        name: unique, also among ended campaigns.
        note: why it is made.
        who: vehicles.
        what: frames.
        how_much: limits.
        until: end, ISO 8601, UTC without a zone; None is open.
        privacy: changes that every sample must have had, such as "blur:faces"; others are declined.
        priority: 0 to 9; a frame that several campaigns want is the highest one's.
    """

    name: CampaignName
    note: Annotated[str, Field(max_length=500)] = ""
    who: Who = Who()
    what: What
    how_much: HowMuch = HowMuch()
    until: datetime | None = None
    privacy: Annotated[tuple[Key, ...], Field(max_length=16)] = ()
    priority: int = Field(default=5, ge=0, le=9)

    @field_validator("name")
    @classmethod
    def _is_no_page(cls, value: str) -> str:
        if value == "new":
            raise ValueError("'new' is the address of the form")
        return value

    @field_validator("until")
    @classmethod
    def _in_utc(cls, value: datetime | None) -> datetime | None:
        if value is None:
            return None
        value = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        if (
            not datetime(2000, 1, 1, tzinfo=timezone.utc)
            <= value
            <= datetime(9000, 1, 1, tzinfo=timezone.utc)
        ):
            raise ValueError("expected a time from the year 2000 on")
        return value.astimezone(timezone.utc)

    @property
    def trigger(self) -> str:
        """Returns the trigger's name in offers."""
        return trigger_of(self.name)

    def ends_before(self, now: float) -> bool:
        """Returns True if its time is over; `now` is in seconds since 1970."""
        return self.until is not None and self.until.timestamp() <= now


def trigger_of(name: str) -> str:
    """Returns the name of a campaign's trigger."""
    return PREFIX + name


def parse_spec(fields: Any, *, origin: str = "campaign") -> CampaignSpec:
    """Checks a campaign.

    Args:
        fields: parsed JSON or TOML.
        origin: what the error calls it.

    Raises:
        ConfigError: the message names the key and what was expected.
    """
    try:
        return CampaignSpec.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(explain(error, fields if isinstance(fields, dict) else {}, file=origin)) from error


def tables(
    spec: CampaignSpec, *, near: tuple[str, str] | None = None, threshold: Cut | None = None
) -> dict[str, dict[str, Any]]:
    """Returns a campaign's triggers as a vehicle's desired configuration has them, by name.

    Args:
        spec: the campaign.
        near: embedding (float16, base64) and bundle of the sample that `what.near` names.
        threshold: what the budget sets for this vehicle, if `what.budget`.
    """
    what, parts = spec.what, list[dict[str, Any]]()
    named = {} if what.score is None else {"score": what.score}
    if what.top is not None:
        parts.append({"kind": "target-rate", "rate": what.top, **named})
    if what.level is not None:
        parts.append({"kind": "percentile", "level": what.level, **named})
    if what.above is not None:
        parts.append({"kind": "threshold", "above": what.above, **named})
    if what.budget and threshold is not None:
        parts.append({"kind": "threshold", "above": threshold.above, **named})
        if threshold.rate < 1:
            # A window in which such a share is still some frames.
            window = min(1_000_000, max(2000, round(50 / threshold.rate)))
            parts.append({"kind": "target-rate", "rate": threshold.rate, "window": window, **named})
    parts += [{"kind": "rule", "when": rule} for rule in what.rules]
    if what.near is not None and near is not None:
        parts.append({"kind": "near", "to": near[0], "bundle": near[1], "similarity": what.near.similarity})
    own = {"priority": MAX_PRIORITY, **({"cool_down_s": what.cool_down_s} if what.cool_down_s else {})}
    if len(parts) == 1:
        return {spec.trigger: {**parts[0], **own}}
    names = [f"{spec.trigger}.{number}" for number in range(1, len(parts) + 1)]
    group = {spec.trigger: {"kind": "all", "of": names, **own}}
    return group | dict(zip(names, parts, strict=True))


def words(rule: str) -> set[str]:
    """Returns the words of a rule that may be names of scores."""
    return set(_WORD.findall(rule)) - _RESERVED
