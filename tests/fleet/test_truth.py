"""The failure rate from a store: random stream, sketches and labels, against a fleet whose rate is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.fleet.stores import without_tables
from tests.fleet.truths import BUNDLE, Field, drive, label, make_field, open_store
from typer.testing import CliRunner

from misfire_fleet.commands.app import app
from misfire_fleet.errors import StoreError
from misfire_fleet.labels.verdicts.ledger import NewVerdict, Verdict, VerdictLedger
from misfire_fleet.store import Store
from misfire_fleet.store.where import parse_where, where_of
from misfire_fleet.truth.deals import dealt_frames
from misfire_fleet.truth.report import FieldTruth, Query, Report
from misfire_runtime.errors import ConfigError
from proving_ground.services import Postgres

FRAMES = 20_000


@pytest.fixture(scope="module")
def field() -> Field:
    return make_field(FRAMES, rate=0.10, seed=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "fleet")


def report(store: Store, **options: object) -> Report:
    return FieldTruth(store, Query(BUNDLE, **options)).report()  # type: ignore[arg-type]


def dealt(store: Store, count: int, **options: object) -> list[str]:
    return FieldTruth(store, Query(BUNDLE, **options)).deal(count, actor="test")  # type: ignore[arg-type]


def test_dealt_labels_give_the_rate_of_all_frames(store: Store, field: Field) -> None:
    ids = drive(store, field)
    label(store, field, ids, dealt(store, 300))
    found = report(store)
    assert found.whole.low is not None and found.whole.high is not None
    assert found.whole.low <= field.rate <= found.whole.high
    assert found.whole.frames == FRAMES
    assert found.whole.source == "sketches"
    assert found.whole.labels == 300
    assert found.whole.estimator == "stratified"
    # Dealt by the score: more failures among the labels than in the field.
    assert found.whole.failures / 300 > 1.2 * field.rate
    assert found.warnings == ()


def test_dealt_labels_tell_more_than_uniform_ones(store: Store, field: Field, tmp_path: Path) -> None:
    ids = drive(store, field)
    label(store, field, ids, dealt(store, 300))
    other = open_store(tmp_path / "uniform")
    same = drive(other, field)
    label(other, field, same, sorted(same)[:300])
    by_score, uniform = report(store).whole, report(other).whole
    assert by_score.high is not None and by_score.low is not None
    assert uniform.high is not None and uniform.low is not None and uniform.rate is not None
    assert uniform.low <= field.rate <= uniform.high
    assert by_score.high - by_score.low < 0.9 * (uniform.high - uniform.low)


@pytest.mark.slow
def test_postgres_answers_alike(store: Store, field: Field, database: Postgres, tmp_path: Path) -> None:
    ids = drive(store, field)
    without_tables(database)
    with Store.open(database.url, tmp_path / "blobs") as other:
        assert drive(other, field) == ids
        chosen = dealt(store, 200, by="vehicle")
        assert dealt(other, 200, by="vehicle") == chosen
        for each in (store, other):
            label(each, field, ids, chosen)
        assert report(other, by="vehicle") == report(store, by="vehicle")


@pytest.mark.parametrize("by", ["vehicle", "day", "weather"])
def test_slices_have_intervals_of_their_own(store: Store, field: Field, by: str) -> None:
    ids = drive(store, field)
    label(store, field, ids, dealt(store, 600, by=by))
    found = report(store, by=by)
    values = {"vehicle": field.vehicle, "day": field.day, "weather": field.weather}[by]
    names = {"vehicle": ("car-0", "car-1"), "day": ("2023-11-14", "2023-11-15"), "weather": ("sun", "fog")}[
        by
    ]
    rates = {rate.name: rate for rate in found.slices}
    assert set(rates) == set(names)
    for number, name in enumerate(names):
        one, true = rates[name], field.failed[values == number].mean()
        assert one.low is not None and one.high is not None
        assert one.low <= true <= one.high
        assert one.labels == 300
        # A sketch knows no weather: there the random stream tells the shares.
        assert one.source == ("stream" if by == "weather" else "sketches")
        assert one.frames == ((values == number).sum() if by != "weather" else one.stream)
    assert found.whole.low is not None and found.whole.high is not None
    assert found.whole.low <= field.rate <= found.whole.high


def test_deals_follow_each_other_and_repeat_nothing(store: Store, field: Field) -> None:
    ids = drive(store, field)
    first = dealt(store, 100)
    assert dealt(store, 50) == first[:50] or set(dealt(store, 50)) <= set(ids)
    label(store, field, ids, first)
    second = dealt(store, 200, by="weather")
    assert not set(first) & set(second)
    label(store, field, ids, second)
    found = report(store)
    assert found.whole.labels == 300
    assert found.whole.low is not None and found.whole.high is not None
    assert found.whole.low <= field.rate <= found.whole.high


def test_true_classes_have_rates_of_labelled_frames(store: Store, field: Field) -> None:
    ids = drive(store, field)
    label(store, field, ids, dealt(store, 600))
    found = report(store, by="label")
    index = np.arange(FRAMES)
    # The right class is the answer, or the other one where the frame failed.
    red = (index % 2 == 1) != field.failed
    for one in found.slices:
        true = field.failed[red if one.name == "red" else ~red].mean()
        assert one.low is not None and one.high is not None
        assert one.low <= true <= one.high
        assert one.high - one.low < 0.12
    assert [one.name for one in found.slices] == ["green", "red"]
    assert sum(one.labels for one in found.slices) == 600


@pytest.mark.slow
def test_the_interval_covers_at_its_confidence(tmp_path: Path) -> None:
    """Twenty-five fleets at 80 %, each with its own stream and deal: 20 are expected, give or take two."""
    covered = 0
    for seed in range(25):
        field = make_field(1500, rate=0.15, seed=100 + seed)
        with open_store(tmp_path / str(seed)) as store:
            ids = drive(store, field, seed=seed, share=0.3)
            label(store, field, ids, dealt(store, 80))
            rate = report(store, confidence=0.8).whole
        assert rate.low is not None and rate.high is not None
        covered += rate.low <= field.rate <= rate.high
    assert 16 <= covered <= 24


@pytest.mark.slow
def test_as_many_labels_as_it_asks_for_halve_the_interval(store: Store, field: Field) -> None:
    ids = drive(store, field, share=0.3)
    label(store, field, ids, dealt(store, 200))
    before = report(store).whole
    assert before.to_halve is not None and before.low is not None and before.high is not None
    label(store, field, ids, dealt(store, before.to_halve))
    after = report(store).whole
    assert after.low is not None and after.high is not None
    assert 0.38 < (after.high - after.low) / (before.high - before.low) < 0.62


def test_few_frames_and_no_sketch_cannot_be_halved_by_labels(store: Store) -> None:
    field = make_field(300, rate=0.3, seed=3)
    ids = drive(store, field, share=1.0, beats=False)
    label(store, field, ids, dealt(store, 300))
    found = report(store)
    assert found.whole.source == "stream"
    assert found.whole.to_halve is None
    assert any("no heartbeats" in warning for warning in found.warnings)


def test_labels_that_were_not_dealt_do_not_count(store: Store, field: Field) -> None:
    ids = drive(store, field)
    worst = sorted(ids, key=lambda name: -field.score[ids[name]])[:100]
    chosen = dealt(store, 200)
    label(store, field, ids, sorted({*chosen, *worst}))
    found = report(store)
    assert found.whole.labels == 200
    assert found.whole.low is not None and found.whole.high is not None
    assert found.whole.low <= field.rate <= found.whole.high
    assert any("were not dealt" in warning for warning in found.warnings)


def test_labels_of_the_worst_frames_are_noticed(store: Store, field: Field) -> None:
    ids = drive(store, field)
    label(store, field, ids, sorted(ids, key=lambda name: -field.score[ids[name]])[:100])
    assert any("other scores than the random stream" in warning for warning in report(store).warnings)


def test_a_stream_that_is_not_uniform_is_noticed(store: Store, field: Field) -> None:
    """A vehicle that keeps only frames of low scores: the rest was evicted."""
    rng = np.random.default_rng(5)
    drawn = (rng.random(FRAMES) < 0.1) & (field.score < 1.5)
    ids = drive(store, field, drawn=drawn)
    label(store, field, ids, dealt(store, 100))
    warnings = report(store).warnings
    assert any("the random stream is not uniform" in warning for warning in warnings)
    assert any("frames are missing" in warning for warning in warnings)


def test_frames_that_no_sketch_has_are_noticed(store: Store, field: Field) -> None:
    ids = drive(store, field, beats=False)
    # The second heartbeat of each vehicle and day is lost.
    kept = [beat for number, beat in enumerate(field.heartbeats) if number % 3 != 1]
    store.vehicles.record_telemetry(kept)
    label(store, field, ids, dealt(store, 100))
    found = report(store)
    assert any("the sketches miss" in warning for warning in found.warnings)
    assert any("sketches are missing" in warning for warning in found.warnings)
    # Half of the time is no base for shares of the whole.
    assert found.whole.source == "stream"


def test_a_vehicle_without_heartbeats_is_told_by_its_stream(store: Store, field: Field) -> None:
    ids = drive(store, field, beats=False)
    store.vehicles.record_telemetry([beat for beat in field.heartbeats if beat[0] == "car-0"])
    label(store, field, ids, dealt(store, 100, by="vehicle"))
    rates = {rate.name: rate for rate in report(store, by="vehicle").slices}
    assert rates["car-1"].source == "stream"
    assert rates["car-1"].frames == rates["car-1"].stream


def test_visible_scores_votes_and_few_labels_are_said(store: Store, field: Field) -> None:
    ids = drive(store, field)
    chosen = dealt(store, 40)
    label(store, field, ids, chosen[:10], source="label-studio")
    label(store, field, ids, chosen[10:20], source="vote")
    found = report(store)
    assert found.whole.labels == 10
    text = "\n".join(found.warnings)
    assert "10 from label-studio" in text
    assert "10 samples have only votes" in text
    assert "30 of 40 dealt frames have no label" in text
    assert "fewer than 30 labels" in text


def test_verdicts_of_people_tell_what_failed(store: Store, field: Field) -> None:
    ids = drive(store, field)
    some, ledger = dealt(store, 60), VerdictLedger(store)
    for number, name in enumerate(some):
        verdict: Verdict = "ignore" if number == 0 else "wrong" if field.failed[ids[name]] else "right"
        ledger.give(NewVerdict(f"act-{number:06d}", "ann", (name,), verdict, blind=number != 1))
    found = report(store)
    assert found.whole.labels == 59
    assert found.whole.failures == sum(bool(field.failed[ids[name]]) for name in some[1:])
    assert found.unjudged == {"a person ignored the frame": 1}
    assert FieldTruth(store, Query(BUNDLE)).outstanding() == []
    assert any("1 verdicts were given with the score visible" in text for text in found.warnings)
    # What was labelled since tells more than an older verdict.
    label(store, field, ids, some)
    assert report(store).whole.failures == found.whole.failures


def test_a_bundle_without_random_frames_is_an_error(store: Store) -> None:
    with pytest.raises(StoreError, match="no frame in the random stream"):
        report(store)


def test_the_command_deals_and_prints(store: Store, field: Field, tmp_path: Path) -> None:
    ids = drive(store, field)
    place = ["--fleet-dir", str(tmp_path / "fleet")]
    made = CliRunner().invoke(app, ["truth", "--to-label", "200", "--by", "weather", *place])
    lines = made.stdout.split()
    assert len(lines) == 200 and set(lines) <= set(ids)
    assert "http://127.0.0.1:8000/verdicts?order=dealt&where=bundle%3Dlights%401.0.0" in made.stderr
    assert sorted(dealt_frames(store, BUNDLE)) == sorted(lines)
    label(store, field, ids, lines)
    text = CliRunner().invoke(app, ["truth", "--by", "weather", *place])
    assert text.exit_code == 0, text.output
    assert "fog" in text.stdout and "sun" in text.stdout and "stratified" in text.stdout
    printed = json.loads(CliRunner().invoke(app, ["truth", "--json", *place]).stdout)["reports"][0]
    assert printed["whole"]["low"] <= field.rate <= printed["whole"]["high"]


def test_what_was_dealt_and_not_labelled_is_listed(store: Store, field: Field, tmp_path: Path) -> None:
    ids = drive(store, field)
    chosen = dealt(store, 30)
    label(store, field, ids, chosen[::2])
    command = ["truth", "--outstanding", "--fleet-dir", str(tmp_path / "fleet")]
    assert CliRunner().invoke(app, command).stdout.split() == chosen[1::2]


def test_other_commands_take_the_dealt_frames_by_a_file(store: Store, field: Field, tmp_path: Path) -> None:
    drive(store, field)
    chosen = dealt(store, 700)
    file = tmp_path / "to-label.txt"
    file.write_text("\n".join(chosen) + "\n", encoding="ascii")
    filters = parse_where([f"ids=@{file}", "random=yes"])
    assert {sample.id for sample in store.newest(5000, filters)} == set(chosen)
    assert store.count(filters) == 700
    assert parse_where(where_of(filters)) == filters
    for wrong in ("ids=@/no/such/file", "ids=", "ids=abc", f"ids={chosen[0]},{chosen[1][:-1]}"):
        with pytest.raises(ConfigError, match="ids"):
            parse_where([wrong])


def test_dry_deals_leave_no_trace(store: Store, field: Field, tmp_path: Path) -> None:
    drive(store, field)
    command = ["truth", "--to-label", "20", "--dry-run", "--fleet-dir", str(tmp_path / "fleet")]
    first = CliRunner().invoke(app, command).stdout
    assert CliRunner().invoke(app, command).stdout == first
    assert FieldTruth(store, Query(BUNDLE)).deals == []
