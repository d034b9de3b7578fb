"""Lineage: from a sample to the vehicles that run what came of it, and back, on both databases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.fleet.stores import again, at, sample, without_tables
from typer.testing import CliRunner

from misfire_fleet.datasets.lineage import Kind, Trace, trace
from misfire_fleet.datasets.snapshots import Plan, Snapshots
from misfire_fleet.datasets.splits import Shares
from misfire_fleet.errors import StoreError
from misfire_fleet.labels.content import ClassLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import FolderBlobs
from misfire_fleet.store.care.rebuild import rebuild
from misfire_fleet.store.curated.lineage import Link, record
from misfire_fleet.store.records import ANY, SampleFilter
from misfire_runtime.cli import app
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import Counters, State, Telemetry
from proving_ground.services import Postgres


def key(number: int) -> str:
    return sample(number).offer.id


def ids(found: Trace, way: str, kind: Kind) -> list[str]:
    return [node.id for node in getattr(found, way) if node.kind == kind]


@pytest.fixture
def chain(anywhere: Store) -> Store:
    """Samples of two vehicles, a snapshot, two runs, a bundle, and who runs it."""
    anywhere.add_many([sample(n, vehicle=f"car-{n % 2}", captured_at=at(n)) for n in range(12)])
    new = [NewLabel(key(n), ClassLabel(name="tram"), source="cvat", annotator="ann") for n in range(10)]
    assert LabelLedger(anywhere).add(new, add_classes=True).written
    plan = Plan(group_by="vehicle", shares=Shares(0.0, 0.5), seed=seed())
    Snapshots(anywhere).create("autumn", ANY, plan=plan)
    links = [
        Link("run", "run-2", "snapshot", "autumn", detail={"test_accuracy": 0.9}),
        Link("run", "run-2", "run", "run-1"),
        Link("bundle", "lights@2.0.0", "run", "run-2"),
    ]
    record(anywhere.deletion, links, actor="ann")
    record(anywhere.deletion, links, actor="bob")
    anywhere.vehicles.record_states(
        {
            "car-0": State(online=True, bundle="lights@1.0.0"),
            "car-1": State(online=True, bundle="lights@2.0.0"),
            "car-2": State(online=True, bundle="lights@2.0.0"),
            "car-3": State(online=True, bundle="lights@2.0.00"),
        }
    )
    beat = Telemetry(at=at(0), bundle="lights@2.0.0", counters=Counters())
    newer = Telemetry(at=at(0), bundle="lights@3.0.0", counters=Counters())
    anywhere.vehicles.record_telemetry([("car-0", beat), ("car-2", newer)])
    return anywhere


def seed() -> int:
    """A seed by which car-0 is trained on and car-1 is tested on."""
    from misfire_fleet.datasets.splits import side_of

    shares = Shares(0.0, 0.5)
    wanted = {"vehicle:car-0": "train", "vehicle:car-1": "test"}
    return next(
        n for n in range(100) if all(side_of(g, seed=n, shares=shares) == s for g, s in wanted.items())
    )


def test_from_a_sample_to_the_vehicles_that_run_what_came_of_it(chain: Store) -> None:
    found = trace(chain, key(4))
    assert [node.kind for node in found.down] == ["label", "snapshot", "run", "bundle", "vehicle", "vehicle"]
    assert ids(found, "down", "run") == ["run-2"] and ids(found, "down", "bundle") == ["lights@2.0.0"]
    # By the last heartbeat or, without one, by the state.
    assert ids(found, "down", "vehicle") == ["car-0", "car-1"]
    assert ids(found, "up", "vehicle") == ["car-0"]


def test_a_test_sample_led_to_no_run_and_an_unlabelled_one_to_nothing(chain: Store) -> None:
    found = trace(chain, key(5))
    assert ids(found, "down", "snapshot") == ["autumn"] and not ids(found, "down", "run")
    assert not trace(chain, key(11)).down


def test_back_from_a_vehicle_to_the_samples(chain: Store) -> None:
    found = trace(chain, "car-1", limit=3)
    assert ids(found, "up", "bundle") == ["lights@2.0.0"]
    assert ids(found, "up", "run") == ["run-2", "run-1"] and ids(found, "up", "snapshot") == ["autumn"]
    assert len(ids(found, "up", "sample")) == 3 and found.totals["samples_up"] == 10
    assert len(ids(found, "down", "sample")) == 3 and found.totals["samples_down"] == 6


@pytest.mark.parametrize("name", ["autumn", "run-2", "run-1", "lights@2.0.0"])
def test_each_thing_of_the_chain_leads_to_the_vehicles(chain: Store, name: str) -> None:
    found = trace(chain, name)
    assert ids(found, "down", "vehicle") == ["car-0", "car-1"]
    assert found.totals["vehicles_down"] == 2
    json.dumps([node.detail for node in (*found.up, *found.down)])


def test_a_prefix_a_hash_and_a_deleted_sample_are_found(chain: Store) -> None:
    assert trace(chain, key(4)[:10]).start.id == key(4)
    sha256 = Snapshots(chain).listed()[0].sha256
    assert trace(chain, sha256).start.id == "autumn"
    chain.deletion.delete(sample=key(4), reason="asked for")
    gone = trace(chain, key(4))
    assert gone.start.detail == {"deleted": True} and ids(gone, "down", "run") == ["run-2"]


def test_names_that_mean_nothing_or_several_things(chain: Store) -> None:
    for name in ("nobody", "", "a\0b", "0" * 64, "%", "lights@2"):
        with pytest.raises(StoreError, match="nothing in this store"):
            trace(chain, name)
    Snapshots(chain).create("car-1", SampleFilter(vehicle="car-1"))
    with pytest.raises(ConfigError, match="snapshot car-1, vehicle car-1"):
        trace(chain, "car-1")
    assert trace(chain, "car-1", kind="vehicle").start.kind == "vehicle"


def test_lineage_survives_a_rebuild(chain: Store, request: pytest.FixtureRequest) -> None:
    before = trace(chain, "lights@2.0.0")
    if isinstance(chain.blobs, FolderBlobs):
        folder = chain.blobs.root.parent
        chain.close()
        rebuild(folder / "fleet.sqlite", folder / "blobs", force=True)
    else:
        database: Postgres = request.getfixturevalue("database")
        without_tables(database)
        rebuild(database.url, chain.blobs.url, blob_options=chain.blobs.options)  # type: ignore[attr-defined]
    with again(chain) as store:
        assert trace(store, "lights@2.0.0").up == before.up


def test_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    with Store.open_folder(folder) as store:
        store.add_many([sample(1, vehicle="car-0")])
        assert (
            LabelLedger(store)
            .add([NewLabel(key(1), ClassLabel(name="tram"), source="cvat")], add_classes=True)
            .written
        )
    words = ["fleet", "lineage", key(1), "--fleet-dir", str(folder)]
    text = CliRunner().invoke(app, words)
    assert text.exit_code == 0 and "led to:\n  label" in text.stdout and "vehicle  car-0" in text.stdout
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert [node["kind"] for node in found["down"]] == ["label"]
    assert CliRunner().invoke(app, ["fleet", "lineage", "x", "--fleet-dir", str(folder)]).exit_code != 0
