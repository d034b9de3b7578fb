"""The fleet may change what is collected, within bounds, and nothing else of a vehicle."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from misfire_runtime.config.desired import MAX_TRIGGERS, DesiredConfig, with_desired
from misfire_runtime.config.tables import VehicleConfig, parse_config
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import pack_embedding, unpack_embedding
from misfire_runtime.triggers import Near, ScoredFrame, build_triggers
from misfire_runtime.triggers.near import NearTable

FULL = """
[[source]]
input = "drive"
[random]
rate = 0.2
seed = 7
[limits]
bytes_per_day = 500_000_000
[novelty]
memory = 16
[clips]
max_bytes = 1_000_000
[encode]
keep_original = false
[degrade]
temperature_file = "/sys/heat"
latency_ms = 40
[[privacy.blur]]
model = "faces.onnx"
"""


def test_the_fleet_replaces_whole_tables() -> None:
    config = parse_config(FULL)
    wished = with_desired(
        config,
        {"triggers": {"fog": {"kind": "percentile", "level": 0.9}}, "limits": {"samples_per_day": 5}},
    )
    assert list(wished.triggers) == ["fog"]
    assert wished.limits.samples_per_day == 5 and wished.limits.bytes_per_day is None
    assert wished.privacy == config.privacy and wished.source == config.source


@pytest.mark.parametrize(
    "table",
    [
        "privacy",
        "broker",
        "source",
        "spool",
        "bundle",
        "vehicle",
        "context",
        "x",
        "engine",
        "uplink",
        "telemetry",
    ],
)
def test_the_fleet_cannot_touch_what_is_not_its_own(table: str) -> None:
    with pytest.raises(ConfigError, match=f"the fleet cannot set {table}"):
        with_desired(parse_config(FULL), {table: {}})


def test_a_wish_that_is_wrong_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"desired configuration: random.rate: .*got 7"):
        with_desired(parse_config(FULL), {"random": {"rate": 7}})


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        ({"degrade": {"temperature_c": 80, "temperature_file": "/dev/zero"}}, "degrade.temperature_file"),
        ({"clips": {"max_bytes": 10**15}}, "clips.max_bytes"),
        ({"clips": {"max_bytes": 1}}, "clips.max_bytes"),
        ({"novelty": {"memory": 65536}}, "novelty.memory"),
        ({"random": {"rate": 0.1, "seed": 1}}, "random.seed"),
    ],
)
def test_paths_memory_and_the_seed_are_the_vehicles_own(wish: dict[str, Any], named: str) -> None:
    with pytest.raises(
        ConfigError, match=f"the fleet cannot set {named}; only {named.split('.', maxsplit=1)[0]}"
    ):
        with_desired(parse_config(FULL), wish)


def test_no_field_that_the_fleet_may_set_is_a_path() -> None:
    """Whoever adds a field to what the fleet may set must not add a file name."""

    def kinds(schema: Any) -> Any:
        if isinstance(schema, dict):
            yield str(schema.get("format"))
            for value in schema.values():
                yield from kinds(value)
        elif isinstance(schema, list):
            for value in schema:
                yield from kinds(value)

    assert "path" in set(kinds(VehicleConfig.model_json_schema()))
    assert "path" not in set(kinds(DesiredConfig.model_json_schema()))


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"clips": {"fps": 60, "before_s": 60}}, r"clips: 3660 frames per clip, .*; at most 300"),
        ({"clips": {"fps": 61}}, r"clips.fps: .*less than or equal to 60"),
        ({"limits": {"samples_per_day": 10**30}}, r"limits.samples_per_day: .*less than or equal to"),
        ({"bandwidth": {"burst_bytes": 10**15}}, r"bandwidth.burst_bytes: .*less than or equal to"),
        ({"degrade": {"hold_s": 1e300}}, r"degrade.hold_s: .*less than or equal to 3600"),
        ({"degrade": None}, r"degrade: "),
        ({"degrade": {"nonsense": 1}}, r"degrade.nonsense: unknown key"),
        ({"triggers": {"t": {"kind": "target-rate", "window": 10**9}}}, r"triggers.t.window: .*less than"),
        (
            {"encode": {"keep_original": True}},
            r"encode.keep_original: the vehicle's own file sets it to false",
        ),
    ],
)
def test_every_field_that_the_fleet_may_set_is_bounded(wish: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        with_desired(parse_config(FULL), wish)


def test_the_number_of_triggers_is_bounded_also_in_groups_of_groups(bundle: Any) -> None:
    kind = {"kind": "threshold", "above": 1.0}
    with pytest.raises(ConfigError, match=r"triggers: .*at most 32"):
        with_desired(parse_config(FULL), {"triggers": {f"t{i}": kind for i in range(MAX_TRIGGERS + 1)}})
    doubled: dict[str, Any] = {"g0": kind}
    doubled |= {f"g{i}": {"kind": "any", "of": [f"g{i - 1}"] * 2} for i in range(1, MAX_TRIGGERS)}
    wished = with_desired(parse_config(FULL), {"triggers": doubled})
    scorer = Scorer.load(bundle)
    with pytest.raises(ConfigError, match="groups name more than 256 triggers"):
        build_triggers(wished.triggers, scorer=scorer)
    scorer.close()


def test_what_the_fleet_may_not_set_stays_the_vehicles_own() -> None:
    wished = with_desired(
        parse_config(FULL),
        {
            "random": {"rate": 0.5},
            "novelty": {"similarity": 0.9},
            "clips": {"fps": 2},
            "encode": {"jpeg_quality": 70},
            "degrade": {"hold_s": 3},
        },
    )
    assert (wished.random.rate, wished.random.seed) == (0.5, 7)
    assert wished.novelty is not None and (wished.novelty.similarity, wished.novelty.memory) == (0.9, 16)
    assert wished.clips is not None and (wished.clips.fps, wished.clips.max_bytes) == (2, 1_000_000)
    assert (wished.encode.jpeg_quality, wished.encode.keep_original) == (70, False)
    assert wished.degrade.temperature_file == Path("/sys/heat")
    assert (wished.degrade.hold_s, wished.degrade.latency_ms) == (3, None)


def test_the_fleet_switches_optional_tables_off_and_on() -> None:
    off = with_desired(parse_config(FULL), {"clips": None, "novelty": None})
    assert off.clips is None and off.novelty is None
    on = with_desired(parse_config(""), {"clips": {}, "novelty": {}})
    assert on.clips is not None and on.clips.max_bytes == parse_config("[clips]").clips.max_bytes  # type: ignore[union-attr]
    assert on.novelty is not None and on.novelty.memory == 256


NEAR = {"kind": "near", "to": pack_embedding(np.array([3.0, 4.0])), "bundle": "b@1", "similarity": 0.9}


def test_campaigns_run_beside_the_vehicles_own_triggers() -> None:
    wished = with_desired(
        parse_config("[triggers.own]\nkind = 'threshold'\nabove = 2.0\n"),
        {
            "campaigns": {
                "campaign.fog": {"kind": "all", "of": ["campaign.fog.1", "campaign.fog.2"]},
                "campaign.fog.1": {"kind": "percentile", "level": 0.9},
                "campaign.fog.2": {"kind": "rule", "when": "context.weather == 'fog'"},
            }
        },
    )
    assert list(wished.triggers) == ["own"] and len(wished.campaigns) == 3
    defaults = with_desired(parse_config(""), {"campaigns": {"campaign.near": NEAR}})
    assert "triggers" not in defaults.model_fields_set, "the bundle's own triggers stay in force"


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"own": {"kind": "threshold", "above": 1}}, "own: the name of a campaign's trigger begins with"),
        ({"campaign.": {"kind": "threshold", "above": 1}}, "begins with"),
        ({"campaign.a": {"kind": "any", "of": ["own"]}}, "'own' is no trigger of a campaign"),
        ({"campaign.a": {"kind": "threshold", "above": 1, "priority": 6}}, "priority 6 is above 5"),
        ({"campaign.a": {"kind": "threshold", "above": 1, "path": "/etc/passwd"}}, "path: unknown key"),
        ({"campaign.a": {**NEAR, "to": "/etc/passwd"}}, "campaign.a.to: .*not base64|embedding"),
        ({"campaign.a": {**NEAR, "to": pack_embedding(np.zeros(2))}}, "has no direction"),
        ({"campaign.a": {**NEAR, "to": "A" * 9000}}, "campaign.a.to: .*8192"),
        ({f"campaign.{i}": NEAR for i in range(33)}, "at most 32"),
        ({"campaign.a/b": NEAR}, "campaign.a/b"),
    ],
)
def test_a_campaign_cannot_leave_its_bounds(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        with_desired(parse_config(FULL), {"campaigns": tables})


def test_near_fires_on_its_own_bundle_only() -> None:
    table = NearTable.model_validate(NEAR)
    trigger = Near("campaign.a", to=unpack_embedding(table.to), bundle="b@1", similarity=0.9)

    def looks(embedding: list[float] | None, bundle: str = "b@1") -> bool:
        vector = None if embedding is None else np.array(embedding, np.float32)
        frame = SimpleNamespace(scored=SimpleNamespace(embedding=vector), bundle=bundle)
        return trigger.look(cast(ScoredFrame, frame)) is not None

    assert looks([30.0, 40.0]) and looks([1.0, 1.0])
    assert not looks([4.0, -3.0]) and not looks([3.0, 4.0], "b@2")
    assert not looks(None) and not looks([0.0, 0.0]) and not looks([1.0, 1.0, 1.0])
