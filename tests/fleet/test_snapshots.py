"""Snapshots: immutable, the same bytes again, never split by frame, and frozen tests that stay untouched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.fleet.stores import NOON, again, sample, without_tables
from typer.testing import CliRunner, Result

from misfire_fleet.datasets.freezing import frozen_among
from misfire_fleet.datasets.manifest import Manifest, digest
from misfire_fleet.datasets.snapshots import Plan, Snapshots
from misfire_fleet.datasets.splits import Shares, keys_of, side_of
from misfire_fleet.errors import StoreError
from misfire_fleet.labels.content import ClassLabel, ValuesLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import Document, FolderBlobs
from misfire_fleet.store.care.check import check, repair
from misfire_fleet.store.care.rebuild import rebuild
from misfire_fleet.store.records import ANY, SampleFilter
from misfire_fleet.store.schema import samples, snapshots
from misfire_runtime.cli import app
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import Clock
from proving_ground.services import Postgres

COUNT = 60
DAY_S = 86_400


def key(number: int) -> str:
    return sample(number).offer.id


def add(store: Store, numbers: range, *, cars: int = 6) -> None:
    """Samples of several cars, five to a drive, each drive on a day of its own."""
    store.add_many(
        [
            sample(
                n,
                vehicle=f"car-{n // 5 % cars}",
                captured_at=Clock(wall=NOON + DAY_S * (n // 5), monotonic=0, boot_id=f"boot-{n // 5}"),
            )
            for n in numbers
        ]
    )


def label(store: Store, numbers: range, name: str = "car") -> None:
    new = [NewLabel(key(n), ClassLabel(name=name), source="file", annotator="ann") for n in numbers]
    assert LabelLedger(store).add(new, add_classes=True).written


@pytest.fixture
def filled(anywhere: Store) -> Store:
    """60 labelled samples, 12 drives of 6 cars, each drive on a day of its own."""
    add(anywhere, range(COUNT))
    label(anywhere, range(COUNT))
    return anywhere


def make(store: Store, name: str, filters: SampleFilter = ANY, **plan: object) -> Manifest:
    return Snapshots(store).create(name, filters, plan=Plan(**plan), actor="ann").manifest  # type: ignore[arg-type]


def sides(manifest: Manifest) -> dict[str, str]:
    return {member.id: member.side for member in manifest.members}


def test_a_snapshot_has_each_labelled_sample_once_with_its_label(filled: Store) -> None:
    add(filled, range(COUNT, COUNT + 5))
    made = Snapshots(filled).create("first", ANY, plan=Plan(shares=Shares(0.3, 0.2)), actor="ann")
    manifest, sha256 = Snapshots(filled).read("first")
    assert manifest == made.manifest and sha256 == made.sha256 == digest(manifest.to_bytes())
    assert [member.id for member in manifest.members] == sorted(key(n) for n in range(COUNT))
    assert {member.label for member in manifest.members} == {
        LabelLedger(filled).label_of(key(0)).content_hash
    }  # type: ignore[union-attr]
    assert manifest.kind == "class" and manifest.provenance.actor == "ann"
    total = {side: names.get("car", 0) for side, names in manifest.classes.items()}
    assert total == manifest.counts() and sum(total.values()) == COUNT
    (row,) = Snapshots(filled).listed()
    assert (row.name, row.count, row.sha256, row.frozen, row.gone) == ("first", COUNT, sha256, False, 0)
    document = json.loads(manifest.to_bytes())
    assert document["snapshot"]["samples"] == len(document["members"]) == COUNT


@pytest.mark.parametrize("group_by", ["vehicle", "drive", "day"])
def test_no_group_is_on_two_sides(filled: Store, group_by: str) -> None:
    manifest = make(filled, "split", group_by=group_by, shares=Shares(0.3, 0.3), seed=2)
    of_group: dict[str, set[str]] = {}
    for member in manifest.members:
        of_group.setdefault(member.group, set()).add(member.side)
    assert all(len(found) == 1 for found in of_group.values())
    assert len(of_group) == {"vehicle": 6, "drive": 12, "day": 12}[group_by]
    assert {side for found in of_group.values() for side in found} == {"train", "holdout", "test"}


def test_a_group_stays_on_its_side_when_more_data_comes(filled: Store) -> None:
    before = sides(make(filled, "before", SampleFilter(label_class="car")))
    add(filled, range(COUNT, 90))
    label(filled, range(COUNT, 90))
    after = sides(make(filled, "after"))
    assert len(after) == 90 and {name: after[name] for name in before} == before


def test_the_bytes_come_again_from_the_query_and_the_labels_of_its_time(filled: Store) -> None:
    filters = SampleFilter(vehicle="car-1", captured_from=NOON, min_percentile=0.0, label_class="car")
    make(filled, "then", filters, kind="class")
    make(filled, "all", shares=Shares(0.2, 0.2), frozen=True, seed=2)
    label(filled, range(20), "tram")
    add(filled, range(COUNT, 90))
    label(filled, range(COUNT, 90))
    make(filled, "later", shares=Shares(0.1, 0.4), frozen=True)
    for name in ("then", "all", "later"):
        done = Snapshots(filled).rebuild(name)
        assert done.identical and done.sha256 == done.expected, name
    with again(filled) as other:
        assert Snapshots(other).rebuild("all").identical


def test_conditions_choose_the_samples(filled: Store) -> None:
    label(filled, range(10), "tram")
    assert len(make(filled, "trams", SampleFilter(label_class="tram")).members) == 10
    chosen = make(filled, "of-one", SampleFilter(vehicle="car-0", snapshot="trams"))
    assert {m.id for m in chosen.members} == {key(n) for n in range(5)}
    with pytest.raises(StoreError, match="no labelled sample"):
        make(filled, "none", SampleFilter(vehicle="nobody"))
    with pytest.raises(ConfigError, match="labelled=no"):
        make(filled, "none", SampleFilter(labelled=False))


def test_an_altered_or_lost_manifest_is_refused_and_can_be_written_again(filled: Store) -> None:
    make(filled, "fact")
    (name,) = filled.blobs.documents("snapshots")
    data = filled.blobs.document("snapshots", name)
    filled.blobs.keep(Document("snapshots", name, data.replace(b'"holdout"', b'"train"', 1)))
    with pytest.raises(StoreError, match="altered"):
        Snapshots(filled).read("fact")
    found = Snapshots(filled).verify("fact")
    assert not found.intact and "altered" in found.altered
    assert len(check(filled).problems["snapshots_damaged"]) == 1
    assert Snapshots(filled).rebuild("fact").identical
    assert filled.blobs.document("snapshots", name) == data
    filled.blobs.drop("snapshots", name)
    with pytest.raises(StoreError, match="lost"):
        Snapshots(filled).diff("fact", "fact")
    assert Snapshots(filled).rebuild("fact").identical and check(filled).sound


def test_a_file_with_a_hash_to_match_is_still_not_the_recorded_snapshot(filled: Store) -> None:
    manifest = make(filled, "fact")
    (name,) = filled.blobs.documents("snapshots")
    forged = manifest.to_bytes().replace(b'"side":"holdout"', b'"side":"train"')
    with filled.database.write() as connection:
        connection.execute(snapshots.update().values(sha256=digest(forged)))
    filled.blobs.keep(Document("snapshots", f"fact.{digest(forged)[:16]}.json", forged))
    assert Snapshots(filled).read("fact")[0].counts()["holdout"] == 0
    # The rows of its samples, and the query, give it away.
    assert "rows are not those" in Snapshots(filled).verify("fact").altered
    assert not Snapshots(filled).rebuild("fact").identical
    assert name in set(filled.blobs.documents("snapshots"))


def test_deleting_for_privacy_wins_and_the_snapshot_says_so(filled: Store) -> None:
    make(filled, "fact")
    filled.deletion.delete(sample=key(7), reason="asked for")
    found = Snapshots(filled).verify("fact", deep=True)
    assert found.intact and found.deleted == (key(7),) and not found.damaged
    assert Snapshots(filled).listed()[0].gone == 1
    done = Snapshots(filled).rebuild("fact")
    assert not done.identical and done.deleted == (key(7),)
    assert Snapshots(filled).read("fact")[0].members


def test_deep_verification_reads_the_bytes(filled: Store) -> None:
    make(filled, "fact")
    filled.blobs.delete_many([key(3)])
    filled.blobs.publish([filled.blobs.stage(key(3), b"something else")])
    assert Snapshots(filled).verify("fact").intact
    assert Snapshots(filled).verify("fact", deep=True).damaged == (key(3),)


def test_what_differs_between_two_snapshots(filled: Store) -> None:
    make(filled, "a", SampleFilter(label_class="car"), shares=Shares(0.5, 0.0))
    label(filled, range(2), "tram")
    add(filled, range(COUNT, COUNT + 1))
    label(filled, range(COUNT, COUNT + 1))
    filled.deletion.delete(sample=key(9), reason="asked for")
    make(filled, "b", shares=Shares(0.5, 0.0))
    found = Snapshots(filled).diff("a", "b")
    assert found.added == (key(COUNT),) and found.removed == (key(9),)
    assert set(found.relabelled) == {key(0), key(1)} and not found.moved
    make(filled, "c", shares=Shares(0.0, 0.0))
    moved = Snapshots(filled).diff("b", "c").moved
    assert moved and set(moved.values()) == {("holdout", "train")}


def test_names_are_never_used_again(filled: Store) -> None:
    make(filled, "once")
    for name in ("once", "diff", "", "a/b", "../x", "x" * 41, ".hidden", "a\0b"):
        with pytest.raises(ConfigError, match="snapshot"):
            make(filled, name)
    with pytest.raises(StoreError, match="there is none"):
        Snapshots(filled).read("a\0b")


def test_labels_of_several_kinds_need_a_choice(filled: Store) -> None:
    add(filled, range(COUNT, COUNT + 3))
    new = [NewLabel(key(COUNT), ValuesLabel(values=(1.0,)), source="file")]
    assert LabelLedger(filled).add(new).written
    with pytest.raises(StoreError, match="60 class, 1 values"):
        make(filled, "mixed")
    assert len(make(filled, "values", kind="values").members) == 1


def test_a_frozen_test_set_stays_out_of_training_in_every_later_snapshot(filled: Store) -> None:
    first = make(filled, "first", shares=Shares(0.2, 0.3), seed=1, frozen=True)
    tested = {m.id for m in first.members if m.side == "test"}
    groups = {m.group for m in first.members if m.side == "test"}
    assert 0 < len(tested) < COUNT
    # Another seed and another grouping; more frames of the same drives.
    add(filled, range(COUNT, COUNT + 5))
    late = next(n for n in range(COUNT) if key(n) in tested)
    filled.add_many([sample(999, vehicle=f"car-{late // 5 % 6}", captured_at=_clock(late))])
    label(filled, range(COUNT, COUNT + 5))
    label(filled, range(999, 1000))
    for group_by in ("vehicle", "drive", "day"):
        for seed in (1, 2):
            second = make(filled, f"{group_by}-{seed}", seed=seed, shares=Shares(0.2, 0.2), group_by=group_by)
            assert tested <= {m.id for m in second.members if m.side == "test"}
            assert sides(second)[key(999)] == "test"
            trained = [m for m in second.members if m.side != "test"]
            assert not tested & {m.id for m in trained}
            assert not groups & {m.group for m in trained if group_by == "drive"}
    taken = make(filled, "taken", SampleFilter(vehicle="car-1"), test_from="first")
    assert {m.id for m in taken.members if m.side == "test"} == tested
    assert key(999) not in sides(taken)
    make(filled, "other", shares=Shares(0.2, 0.3), seed=9, frozen=True)
    again_taken = make(filled, "again", test_from="first")
    assert {m.id for m in again_taken.members if m.side == "test"} == tested and again_taken.left_out
    assert set(frozen_among(filled, [key(n) for n in range(COUNT)])) >= tested
    assert key(999) in frozen_among(filled, [key(999)])
    for name in ("again", "taken", "other"):
        assert Snapshots(filled).rebuild(name).identical


def _clock(number: int) -> Clock:
    return Clock(wall=NOON + DAY_S * (number // 5), monotonic=9, boot_id=f"boot-{number // 5}")


def test_freezing_what_was_trained_on_is_said(filled: Store) -> None:
    make(filled, "old", seed=1, shares=Shares(0.0, 0.0))
    made = Snapshots(filled).create("new", ANY, plan=Plan(seed=1, shares=Shares(0.2, 0.3), frozen=True))
    count = made.manifest.counts()["test"]
    assert f"{count} samples of this test set are on the train side of snapshot old" in made.warnings[0]


def test_plans_that_contradict_themselves_are_refused(filled: Store) -> None:
    make(filled, "first", shares=Shares(0.2, 0.3))
    with pytest.raises(ConfigError, match="leave --test out"):
        make(filled, "x", test_from="first", shares=Shares(0.1, 0.1))
    with pytest.raises(StoreError, match="there is none"):
        make(filled, "x", test_from="nothing")
    with pytest.raises(StoreError, match="is empty"):
        make(filled, "x", frozen=True)
    for shares in ((0.5, 0.5), (-0.1, 0.0), (0.0, float("nan"))):
        with pytest.raises(ConfigError, match="share"):
            Shares(*shares)


def test_snapshots_survive_a_rebuild_of_the_database(filled: Store, request: pytest.FixtureRequest) -> None:
    make(filled, "test", shares=Shares(0.2, 0.3), seed=1, frozen=True)
    make(filled, "plain")
    before = Snapshots(filled).listed()
    held = frozen_among(filled, [key(n) for n in range(COUNT)])
    if isinstance(filled.blobs, FolderBlobs):
        folder = filled.blobs.root.parent
        filled.close()
        done = rebuild(folder / "fleet.sqlite", folder / "blobs", force=True)
    else:
        database: Postgres = request.getfixturevalue("database")
        without_tables(database)
        done = rebuild(database.url, filled.blobs.url, blob_options=filled.blobs.options)  # type: ignore[attr-defined]
    with again(filled) as store:
        assert done.snapshots == 2 and Snapshots(store).listed() == before
        assert frozen_among(store, [key(n) for n in range(COUNT)]) == held
        assert all(Snapshots(store).rebuild(name).identical for name in ("test", "plain"))
        assert all(Snapshots(store).verify(name, deep=True).intact for name in ("test", "plain"))


def test_a_snapshot_that_an_old_backup_lacks_is_added_again(filled: Store) -> None:
    make(filled, "test", shares=Shares(0.2, 0.3), seed=1, frozen=True)
    before = Snapshots(filled).listed()
    with filled.database.write() as connection:
        for table in (snapshots, *(t for t in snapshots.metadata.tables.values() if "snapshot" in t.c)):
            connection.execute(table.delete())
    found = check(filled)
    assert found.problems["snapshots_without_row"] == ["test"]
    repair(filled, found)
    assert Snapshots(filled).listed() == before and check(filled).sound


def test_damaged_offers_have_a_drive_a_day(anywhere: Store) -> None:
    for offer in ("", "[]", "{}", "null", "[" * 100_000, '{"captured_at": 5}'):
        assert keys_of("car", NOON, offer)["drive"] == "drive:car/2023-11-14"
    recording = json.dumps({"position_s": 2.0, "source": "a.mp4", "captured_at": {"boot_id": "b"}})
    assert keys_of("car", NOON, recording)["drive"] == "drive:car/a.mp4"
    assert len(keys_of("car", NOON, json.dumps({"captured_at": {"boot_id": "b" * 5000}}))["drive"]) <= 200


def test_sides_have_the_shares_that_were_asked_for() -> None:
    found = [side_of(f"vehicle:{n}", seed=5, shares=Shares(0.2, 0.1)) for n in range(20_000)]
    assert abs(found.count("test") / 20_000 - 0.1) < 0.01
    assert abs(found.count("holdout") / 20_000 - 0.2) < 0.01


def fleet(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["fleet", *arguments, "--fleet-dir", str(folder)])


def test_the_commands(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    with Store.open_folder(folder) as store:
        add(store, range(40))
        label(store, range(40))
    made = fleet(folder, "snapshot", "a", "--where", "vehicle=car-1", "--where", "class=car", "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["samples"] == 10
    # An option may come before the name, and `create` may be written.
    plain = fleet(folder, "snapshot", "--test", "0.4", "--seed", "3", "--frozen", "b")
    assert plain.exit_code == 0 and "its test set is frozen" in plain.stdout, plain.output
    assert fleet(folder, "snapshot", "create", "c", "--test-from", "b").exit_code == 0
    listed = fleet(folder, "snapshots")
    assert [line.split(":")[0] for line in listed.stdout.splitlines()] == ["a", "b", "c"]
    assert "added: 30" in fleet(folder, "snapshot", "diff", "a", "b").stdout
    assert fleet(folder, "snapshot", "verify", "b", "--deep").stdout.endswith("intact\n")
    assert "the same bytes" in fleet(folder, "snapshot", "rebuild", "b").stdout
    for wrong in (["snapshot", "a"], ["snapshot", "d", "--where", "x=1"], ["snapshot", "diff", "a", "z"]):
        done = fleet(folder, *wrong)
        assert done.exit_code != 0 and done.exception is not None
    assert fleet(folder, "classes", "--add", "tram").stdout.startswith("car: added by")
    assert json.loads(fleet(folder, "classes", "--json").stdout)["classes"][1]["name"] == "tram"
    (document,) = (folder / "blobs" / "snapshots").glob("a.*.json")
    document.write_text(document.read_text().replace("train", "test"))
    verified = fleet(folder, "snapshot", "verify", "a", "--json")
    assert verified.exit_code == 1 and not json.loads(verified.stdout)["intact"]


def test_a_large_snapshot_is_made_by_pages(anywhere: Store) -> None:
    add(anywhere, range(1203))
    label(anywhere, range(1203))
    assert len(make(anywhere, "large").members) == 1203
    with anywhere.database.read() as connection:
        assert len(connection.execute(samples.select()).all()) == 1203
