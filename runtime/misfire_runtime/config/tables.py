"""Defines a vehicle's configuration: TOML checked by pydantic; errors name file, line and expectation.

file --read_config--> VehicleConfig;  desired.py puts in place of its tables what the fleet may change

Each table stands beside the class that it configures; here they are only put together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from misfire_runtime.engines.base import EngineTable
from misfire_runtime.messages import Name
from misfire_runtime.mqtt.broker_table import BrokerTable
from misfire_runtime.samples.clips import ClipsTable
from misfire_runtime.samples.encoding import EncodeTable
from misfire_runtime.samples.privacy import PrivacyTable
from misfire_runtime.service.degrade import DegradeTable
from misfire_runtime.service.settings import TelemetryTable
from misfire_runtime.sources.context import ContextTable
from misfire_runtime.sources.registry import AnySourceTable
from misfire_runtime.spool.spool import SpoolTable
from misfire_runtime.tables import RelativePath, Table
from misfire_runtime.toml import TomlFile, parse_toml, read_toml
from misfire_runtime.triggers.budget import Limits
from misfire_runtime.triggers.campaigns import CampaignTables
from misfire_runtime.triggers.novelty import NoveltyTable
from misfire_runtime.triggers.random_stream import RandomTable
from misfire_runtime.triggers.rates import TargetRateTable
from misfire_runtime.triggers.registry import AnyTriggerTable
from misfire_runtime.uplink.bandwidth import Bandwidth
from misfire_runtime.uplink.settings import UplinkSettings

HOT = ("random", "triggers", "campaigns", "novelty", "limits", "clips", "encode", "degrade", "bandwidth")
"""Tables that a running vehicle takes over from its changed file without a restart."""


class VehicleConfig(Table):
    """Everything a vehicle needs to know."""

    version: int = Field(default=0, ge=0)
    fleet: Name = "default"
    vehicle: Name = "vehicle"
    bundle: RelativePath | None = None
    bundles: RelativePath | None = Field(
        default=None, description="folder of bundles the fleet may switch to"
    )
    source: tuple[AnySourceTable, ...] = ()
    engine: EngineTable = EngineTable()
    spool: SpoolTable = SpoolTable()
    broker: BrokerTable | None = None
    bandwidth: Bandwidth = Bandwidth()
    uplink: UplinkSettings = UplinkSettings()
    random: RandomTable = RandomTable()
    triggers: dict[Name, AnyTriggerTable] = Field(
        default={"target-rate": TargetRateTable(kind="target-rate")}
    )
    campaigns: CampaignTables = Field(default={}, description="set by the fleet, beside `triggers`")
    novelty: NoveltyTable | None = None
    limits: Limits = Limits()
    clips: ClipsTable | None = None
    encode: EncodeTable = EncodeTable()
    privacy: PrivacyTable | None = None
    context: ContextTable | None = None
    telemetry: TelemetryTable = TelemetryTable()
    degrade: DegradeTable = DegradeTable()

    @model_validator(mode="after")
    def _names_are_unique(self) -> VehicleConfig:
        names = [source.name for source in self.source]
        # The pipeline tells sources apart by their names.
        if len(names) > 1 and ("" in names or len(set(names)) < len(names)):
            raise ValueError("several sources need a `name` each, all different")
        return self


def parse_config(text: str, *, file: str = "configuration", folder: Path | None = None) -> VehicleConfig:
    """Checks TOML text.

    Args:
        text: the configuration.
        file: what the errors call it.
        folder: relative paths in it are relative to this folder.

    Raises:
        ConfigError: `file:line: key: what is wrong, what was expected`.
    """
    return _checked(parse_toml(text, name=file, folder=folder))


def read_config(path: Path) -> VehicleConfig:
    """Reads and checks a file; paths in it are relative to its folder.

    Raises:
        ConfigError: see `parse_config`; or the file cannot be read.
    """
    return _checked(read_toml(path))


def _checked(file: TomlFile) -> VehicleConfig:
    values = dict(file.values)
    if file.folder is not None and isinstance(values.get("spool", {}), dict):
        # The default, too, is beside the file; pydantic does not validate defaults.
        values["spool"] = {"path": str(SpoolTable().path), **values.get("spool", {})}
    return file.check(VehicleConfig, values)


def validated(data: dict[str, Any], *, origin: str) -> VehicleConfig:
    """Checks what did not come from a file's text.

    Raises:
        ConfigError: the message begins with `origin`.
    """
    return TomlFile(data, "", origin).check(VehicleConfig)
