"""A vehicle's configuration: TOML checked by pydantic, every error with file, line and what was expected.

file --read_config--> VehicleConfig;  desired_config.py lays over it what the fleet may change
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from misfire_runtime.engines.base import Provider
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import Name
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.toml import TomlFile, parse_toml, read_toml
from misfire_runtime.uplink.bandwidth import Bandwidth
from misfire_runtime.uplink.settings import UplinkSettings

HOT = ("random", "triggers", "novelty", "limits", "clips", "encode", "degrade", "bandwidth")
"""Tables that a running vehicle takes over from its changed file without a restart."""

Rate = Annotated[float, Field(ge=0, le=1)]
Priority = Annotated[int, Field(ge=0, le=9)]


def _beside(path: Path, info: ValidationInfo) -> Path:
    folder: Path | None = (info.context or {}).get("folder")
    return path if folder is None else folder / path


def _input_beside(text: str, info: ValidationInfo) -> str:
    other = "://" in text or text.startswith(("gst:", "v4l2:"))
    return text if other else str(_beside(Path(text), info))


RelativePath = Annotated[Path, AfterValidator(_beside)]
"""A path. In a file it is relative to the folder of that file, on the command line to the working folder."""


class Table(BaseModel):
    """Base of all tables: a key that is not known is an error, not silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _any_name(value: Any, handler: ValidatorFunctionWrapHandler) -> str:
    """Takes every text: names of files that are not UTF-8 are no strings for pydantic."""
    return value if isinstance(value, str) and value else str(handler(value))


class SourceTable(Table):
    """One camera or recording."""

    input: Annotated[str, Field(min_length=1), WrapValidator(_any_name), AfterValidator(_input_beside)] = (
        Field(description="path, rtsp:// URL, /dev/videoN, gst:PIPELINE, or .mcap")
    )
    name: str = Field(default="", max_length=64)
    topic: str | None = None
    options: dict[str, str] = {}


class EngineTable(Table):
    """What runs the graph."""

    provider: Provider = "auto"
    threads: int = Field(default=1, ge=1, le=64)
    device: int = Field(default=0, ge=0)


class SpoolTable(Table):
    """Where samples wait."""

    path: RelativePath = Path("spool")
    max_bytes: int = Field(default=2 * 1024**3, gt=0)
    reserve_bytes: int = Field(default=64 * 1024**2, ge=0)
    queue: int = Field(default=32, ge=1, le=4096, description="chosen frames that may wait for the disk")


class RandomTable(Table):
    """The unbiased stream."""

    rate: Rate = 0.01
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None


class _TriggerTable(Table):
    priority: Priority = 5
    cool_down_s: float = Field(default=0.0, ge=0)
    cool_down_frames: int = Field(default=0, ge=0)


class ThresholdTable(_TriggerTable):
    """At or above a fixed score."""

    kind: Literal["threshold"]
    score: str | None = None
    above: float


class PercentileTable(_TriggerTable):
    """At or above a level of the bundle's calibration."""

    kind: Literal["percentile"]
    score: str | None = None
    level: Rate


class TargetRateTable(_TriggerTable):
    """The top share of recent frames."""

    kind: Literal["target-rate"]
    score: str | None = None
    rate: Rate = 0.02
    window: int = Field(default=2000, ge=50, le=1_000_000)
    warm_up: int = Field(default=50, ge=2, le=1_000_000)


class RuleTable(_TriggerTable):
    """An expression over scores and context."""

    kind: Literal["rule"]
    when: str


class GroupTable(_TriggerTable):
    """Any or all of other triggers, by name."""

    kind: Literal["any", "all"]
    of: tuple[str, ...] = Field(min_length=1, max_length=64)


TriggerTable = Annotated[
    ThresholdTable | PercentileTable | TargetRateTable | RuleTable | GroupTable, Field(discriminator="kind")
]


class NoveltyTable(Table):
    """Suppression of near-duplicates by cosine similarity of embeddings."""

    similarity: float = Field(default=0.98, gt=-1, le=1)
    memory: int = Field(default=256, ge=1, le=65536)


class LimitsTable(Table):
    """Budgets of what triggers may choose."""

    samples_per_hour: int | None = Field(default=None, ge=0)
    samples_per_day: int | None = Field(default=None, ge=0)
    bytes_per_hour: int | None = Field(default=None, ge=0)
    bytes_per_day: int | None = Field(default=None, ge=0)


class ClipsTable(Table):
    """Frames around a chosen one. "frames" uploads each as its own sample, "video" one MP4."""

    before_s: float = Field(default=1.0, ge=0, le=60)
    after_s: float = Field(default=1.0, ge=0, le=60)
    fps: float = Field(default=5.0, gt=0, le=60)
    format: Literal["frames", "video"] = "frames"
    max_bytes: int = Field(
        default=256 * 1024**2, gt=0, description="memory of the ring and of the open video, per source"
    )


class EncodeTable(Table):
    """How chosen frames are written where their original bytes cannot be used."""

    jpeg_quality: int = Field(default=90, ge=1, le=100)
    keep_original: bool = True


class MaskTable(Table):
    """A rectangle painted black: x, y, width, height as shares 0..1 of the picture; "" is every source."""

    box: tuple[Rate, Rate, Rate, Rate]
    source: str = ""


class BlurTable(Table):
    """A detector whose boxes are blurred."""

    model: RelativePath
    label: str = Field(
        default="blur", pattern=r"^[a-z0-9-]{1,32}$", description="what it finds: faces, plates"
    )
    threshold: Rate = 0.3
    grow: float = Field(default=0.15, ge=0, le=2, description="share of the box added on each side")
    layout: Literal["boxes+scores", "detections", "yolo"] = "detections"
    normalised: bool = False
    classes: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="class numbers that count; none: all (detections: the sixth column; yolo)"
    )
    size: tuple[Annotated[int, Field(ge=16, le=4096)], Annotated[int, Field(ge=16, le=4096)]] | None = Field(
        default=None, description="height, width to run at, where the graph leaves them free"
    )
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: Literal["stretch", "letterbox"] = "stretch"


class CropsTable(Table):
    """Keep a region alone, as shares 0..1: x, y, width, height."""

    box: tuple[Rate, Rate, Rate, Rate]
    source: str = ""


class PrivacyTable(Table):
    """What happens to a picture before it is written anywhere."""

    masks: tuple[MaskTable, ...] = ()
    blur: tuple[BlurTable, ...] = ()
    crops: tuple[CropsTable, ...] = ()


class ContextTable(Table):
    """Where signals of the vehicle (GPS, speed, ...) come from; each optional."""

    socket: RelativePath | None = Field(default=None, description="Unix datagram socket to create")
    udp: str | None = Field(
        default=None, pattern=r"^[0-9A-Za-z.:\[\]-]+:\d{1,5}$", description="HOST:PORT to bind"
    )
    file: RelativePath | None = Field(default=None, description="file that another program rewrites")
    max_age_s: float = Field(default=10.0, gt=0)


class TelemetryTable(Table):
    """Metrics, heartbeat and logs."""

    port: int | None = Field(default=None, ge=0, le=65535)
    host: str = "127.0.0.1"
    heartbeat_s: float = Field(default=60.0, gt=0)
    stall_s: float = Field(default=10.0, gt=0)


class DegradeTable(Table):
    """When to do less: limits above which the ladder is climbed, and below 80 % of which it is left."""

    enabled: bool = True
    latency_ms: float | None = Field(default=None, gt=0)
    temperature_c: float | None = Field(default=None, gt=0)
    temperature_file: RelativePath = Path("/sys/class/thermal/thermal_zone0/temp")
    hold_s: float = Field(default=10.0, ge=0)


class BrokerTable(BrokerConfig):
    """The broker: a `url`, or `host` and `port`; it names none where both are left out.

    Whether plain MQTT to another machine is allowed is decided by `connection`: the command line may say so.
    """

    address: str | None = Field(default=None, alias="url", repr=False)
    ca_file: RelativePath | None = None
    cert_file: RelativePath | None = None
    key_file: RelativePath | None = None
    password_file: RelativePath | None = None

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is not None:
            _as_value_error(BrokerConfig.from_url, url, insecure=True)
        return url

    @model_validator(mode="after")
    def _plain_stays_here(self) -> BrokerTable:
        return self

    @model_validator(mode="after")
    def _certificates_need_tls(self) -> BrokerTable:
        given = self._given()
        if "url" in given and given.keys() & {"host", "port", "tls"}:
            raise ValueError("a url already says host, port and tls; leave these out")
        _as_value_error(BrokerConfig.from_table, {**given, "insecure": True})
        return self

    def connection(self) -> BrokerConfig | None:
        """How to reach it; None where no broker is named. Raises ConfigError, which shows no password."""
        return BrokerConfig.from_table(self._given())

    def _given(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True, by_alias=True)


def _as_value_error(check: Callable[..., object], *arguments: object, **options: object) -> None:
    """Lets pydantic, which knows where it is, report a ConfigError."""
    try:
        check(*arguments, **options)
    except ConfigError as error:
        raise ValueError(str(error)) from None


class VehicleConfig(Table):
    """Everything a vehicle needs to know."""

    version: int = Field(default=0, ge=0)
    fleet: Name = "default"
    vehicle: Name = "vehicle"
    bundle: RelativePath | None = None
    bundles: RelativePath | None = Field(
        default=None, description="folder of bundles the fleet may switch to"
    )
    source: tuple[SourceTable, ...] = ()
    engine: EngineTable = EngineTable()
    spool: SpoolTable = SpoolTable()
    broker: BrokerTable | None = None
    bandwidth: Bandwidth = Bandwidth()
    uplink: UplinkSettings = UplinkSettings()
    random: RandomTable = RandomTable()
    triggers: dict[Name, TriggerTable] = {"target-rate": TargetRateTable(kind="target-rate")}
    novelty: NoveltyTable | None = None
    limits: LimitsTable = LimitsTable()
    clips: ClipsTable | None = None
    encode: EncodeTable = EncodeTable()
    privacy: PrivacyTable | None = None
    context: ContextTable | None = None
    telemetry: TelemetryTable = TelemetryTable()
    degrade: DegradeTable = DegradeTable()

    @model_validator(mode="after")
    def _names_are_unique(self) -> VehicleConfig:
        names = [source.name for source in self.source]
        if len(names) > 1 and ("" in names or len(set(names)) < len(names)):
            raise ValueError("several sources need a `name` each, all different")
        return self


def parse_config(text: str, *, file: str = "configuration", folder: Path | None = None) -> VehicleConfig:
    """Checks TOML text; relative paths in it are relative to `folder`.

    Raises ConfigError: `file:line: key: what is wrong, what was expected`.
    """
    return _checked(parse_toml(text, name=file, folder=folder))


def read_config(path: Path) -> VehicleConfig:
    """Reads and checks a file; paths in it are relative to its folder. Raises ConfigError."""
    return _checked(read_toml(path))


def _checked(file: TomlFile) -> VehicleConfig:
    values = dict(file.values)
    if file.folder is not None and isinstance(values.get("spool", {}), dict):
        # The default, too, is beside the file; pydantic does not validate defaults.
        values["spool"] = {"path": str(SpoolTable().path), **values.get("spool", {})}
    return file.check(VehicleConfig, values)


def validated(data: dict[str, Any], *, origin: str) -> VehicleConfig:
    """Checks what did not come from a file's text. Raises ConfigError that begins with `origin`."""
    return TomlFile(data, "", origin).check(VehicleConfig)
