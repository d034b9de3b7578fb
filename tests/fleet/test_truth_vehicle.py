"""The failure rate of a real vehicle: its own random stream, sketches and offers, sent to a collector."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from tests.fleet.conftest import eventually

from misfire_fleet.collector import Collector
from misfire_fleet.labels.content import ClassLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_fleet.truth.report import FieldTruth, Query
from misfire_runtime.config.tables import VehicleConfig
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.preprocess import encode_png
from misfire_runtime.vehicle.session import run_vehicle
from proving_ground.bundles import CLASSES, write_bundle
from proving_ground.client import FLEET

pytestmark = pytest.mark.slow
FRAMES, SHARE = 500, 0.4


def fails(sample: str) -> bool:
    """A fifth of all pictures shows something else than the bundle says: their bytes decide which."""
    return int(sample[:4], 16) % 5 == 0


def test_the_rate_of_what_a_vehicle_saw(store: Store, address: BrokerConfig, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    rng = np.random.default_rng(0)
    drive = tmp_path / "drive"
    drive.mkdir()
    seen = []
    for number in range(FRAMES):
        picture = encode_png(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1))
        (drive / f"{number:04d}.png").write_bytes(picture)
        seen.append(hashlib.sha256(picture).hexdigest())
    config = VehicleConfig.model_validate(
        {
            "vehicle": "car-1",
            "fleet": FLEET,
            "bundle": str(bundle.path),
            "source": [{"input": str(drive)}],
            "spool": {"path": str(tmp_path / "spool")},
            "broker": {"url": f"mqtt://127.0.0.1:{address.port}"},
            "random": {"rate": SHARE, "seed": 11},
            "telemetry": {"heartbeat_s": 1.0},
        }
    )
    collector = Collector(store, broker=address, fleet=FLEET, name="collector-1")
    collector.start()
    try:
        done = run_vehicle(config, until_empty=True)
        eventually(lambda: bool(store.vehicles.heartbeats("car-1")))
    finally:
        collector.close()
    query = Query(bundle.manifest.label)
    first = FieldTruth(store, query)
    assert len(first.frames) == done.report.chosen["random"]
    assert {frame.rate for frame in first.frames} == {SHARE}
    assert first.sketches.bad == 0
    assert first.sketches.frames <= FRAMES
    new = []
    # All of the stream: what is dealt by strata depends on when heartbeats were sent.
    for sample in store.among(first.deal(FRAMES, actor="test")):
        answer = sample.prediction["class"]
        right = next(name for name in CLASSES if (name == answer) != fails(sample.id))
        at = datetime(2023, 11, 20, tzinfo=timezone.utc)
        new.append(NewLabel(sample.id, ClassLabel(name=right), source="person", at=at))
    assert LabelLedger(store).add(new, add_classes=True, actor="test").ok
    found = FieldTruth(store, query).report()
    true = np.mean([fails(sample) for sample in seen])
    assert found.whole.labels == len(first.frames)
    assert found.whole.low is not None and found.whole.high is not None
    assert found.whole.low <= true <= found.whole.high
    assert not found.unjudged
    assert not any("uniform" in warning for warning in found.warnings)
