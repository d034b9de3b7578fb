"""Defines what the fleet may change of a vehicle: these fields within these bounds, and nothing else.

Desired.config --DesiredConfig (names and bounds)--> with_desired: the fleet's fields over the vehicle's own

The fleet changes what is collected. Paths, memory (`clips.max_bytes`, `novelty.memory`), the seed of
the random stream and privacy are set in the vehicle's own file: whoever may write `desired` could otherwise
have a vehicle read any file, or fill its memory at every start.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from misfire_runtime.config.tables import VehicleConfig
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import Name
from misfire_runtime.samples.clips import ClipsTable
from misfire_runtime.samples.encoding import EncodeTable
from misfire_runtime.service.degrade import DegradeTable
from misfire_runtime.tables import Rate, Table
from misfire_runtime.toml import explain
from misfire_runtime.triggers.budget import Limits
from misfire_runtime.triggers.campaigns import CampaignTables
from misfire_runtime.triggers.novelty import NoveltyTable
from misfire_runtime.triggers.random_stream import RandomTable
from misfire_runtime.triggers.registry import AnyTriggerTable
from misfire_runtime.uplink.bandwidth import Bandwidth

MAX_TRIGGERS = 32
"""Every trigger looks at every frame."""
MAX_CLIP_FRAMES = 300
"""Before and after a chosen frame, e.g. 10 s at 30 per second: all are encoded, and may be held in memory."""
_ORIGIN = "desired configuration"
_Samples = Annotated[int, Field(ge=0, le=10**6)]
_Bytes = Annotated[int, Field(ge=0, le=10**15)]
_Hold = Annotated[float, Field(ge=0, le=3600)]


class DesiredRandom(Table):
    """See RandomTable."""

    rate: Rate = 0.01


class DesiredNovelty(Table):
    """See NoveltyTable."""

    similarity: float = Field(default=0.98, gt=-1, le=1)


class DesiredLimits(Table):
    """See Limits."""

    samples_per_hour: _Samples | None = None
    samples_per_day: _Samples | None = None
    bytes_per_hour: _Bytes | None = None
    bytes_per_day: _Bytes | None = None


class DesiredClips(Table):
    """See ClipsTable."""

    before_s: float = Field(default=1.0, ge=0, le=60)
    after_s: float = Field(default=1.0, ge=0, le=60)
    fps: float = Field(default=5.0, gt=0, le=60)
    format: Literal["frames", "video"] = "frames"

    @model_validator(mode="after")
    def _few_frames(self) -> DesiredClips:
        frames = (self.before_s + self.after_s) * self.fps
        if frames > MAX_CLIP_FRAMES:
            raise ValueError(
                f"{frames:.0f} frames per clip, (before_s + after_s) * fps; at most {MAX_CLIP_FRAMES}"
            )
        return self


class DesiredEncode(Table):
    """See EncodeTable."""

    jpeg_quality: int = Field(default=90, ge=1, le=100)
    keep_original: bool = True


class DesiredDegrade(Table):
    """See DegradeTable."""

    enabled: bool = True
    latency_ms: float | None = Field(default=None, gt=0)
    temperature_c: float | None = Field(default=None, gt=0)
    hold_s: _Hold = 10.0


class DesiredConfig(Table):
    """The tables and fields that the fleet may set. A table that is left out stays the vehicle's own."""

    random: DesiredRandom = DesiredRandom()
    triggers: dict[Name, AnyTriggerTable] = Field(default={}, max_length=MAX_TRIGGERS)
    campaigns: CampaignTables = Field(default={})
    novelty: DesiredNovelty | None = None
    limits: DesiredLimits = DesiredLimits()
    clips: DesiredClips | None = None
    encode: DesiredEncode = DesiredEncode()
    degrade: DesiredDegrade = DesiredDegrade()
    bandwidth: Bandwidth = Bandwidth()


_TABLES: dict[str, type[Table]] = {
    "random": RandomTable,
    "novelty": NoveltyTable,
    "limits": Limits,
    "clips": ClipsTable,
    "encode": EncodeTable,
    "degrade": DegradeTable,
}
"""Tables whose fields are partly the vehicle's own; the fleet sets `triggers`, `campaigns` and
`bandwidth` whole."""
_FIELDS: dict[str, type[Table]] = {
    "random": DesiredRandom,
    "novelty": DesiredNovelty,
    "limits": DesiredLimits,
    "clips": DesiredClips,
    "encode": DesiredEncode,
    "degrade": DesiredDegrade,
}


def with_desired(config: VehicleConfig, fields: dict[str, Any]) -> VehicleConfig:
    """Returns `config` with the fleet's tables in place of its own.

    A table's fields that the fleet may set but leaves out get their defaults; those that it may not set stay
    the vehicle's own.

    Args:
        config: the vehicle's own.
        fields: `Desired.config`, unchecked.

    Raises:
        ConfigError: the fleet may not set a key, or not to that value; the message names it.
    """
    # First: its message names what the fleet may set, while pydantic's says "unknown key".
    _refuse_foreign(fields)
    try:
        desired = DesiredConfig.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(explain(error, fields, file=_ORIGIN)) from error
    _keep_metadata_off(config, desired)
    update: dict[str, Any] = {}
    for name in desired.model_fields_set:
        value = getattr(desired, name)
        if name in _TABLES and value is not None:
            value = _merged(name, getattr(config, name), value)
        update[name] = value
    return config.model_copy(update=update)


def _refuse_foreign(fields: dict[str, Any]) -> None:
    tables = DesiredConfig.model_fields
    foreign = [name for name in fields if name not in tables]
    only = ", ".join(tables)
    for name, kind in _TABLES.items():
        given = fields.get(name)
        settable = _FIELDS[name].model_fields
        own = [key for key in kind.model_fields if key not in settable]
        if isinstance(given, dict) and (named := [key for key in own if key in given]):
            foreign += [f"{name}.{key}" for key in named]
            only = f"{name}.{f', {name}.'.join(settable)}"
    if foreign:
        raise ConfigError(f"{_ORIGIN}: the fleet cannot set {', '.join(sorted(foreign))[:200]}; only {only}")


def _keep_metadata_off(config: VehicleConfig, desired: DesiredConfig) -> None:
    """Refuses to turn `keep_original` on: original bytes hold what a camera wrote, such as its position."""
    asked = "keep_original" in desired.encode.model_fields_set and desired.encode.keep_original
    if asked and not config.encode.keep_original:
        raise ConfigError(
            f"{_ORIGIN}: encode.keep_original: the vehicle's own file sets it to false, and the fleet cannot "
            "undo that"
        )


def _merged(name: str, own: Table | None, desired: Table) -> Table:
    """Returns the vehicle's own fields that the fleet may not set, with the fleet's."""
    kept = {} if own is None else {k: v for k, v in own if k not in _FIELDS[name].model_fields}
    given = desired.model_dump(exclude_unset=True)
    if isinstance(own, EncodeTable) and not own.keep_original:
        given["keep_original"] = False
    return _TABLES[name].model_validate({**kept, **given})
