"""What a campaign bought: failures for each label and gigabyte, and the accuracy that its samples gave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.fleet.stores import at
from typer.testing import CliRunner

from misfire_fleet.bought.findings import find
from misfire_fleet.bought.rates import quotient, rates_of
from misfire_fleet.bought.training import measure_gain
from misfire_fleet.datasets.snapshots import Plan, Snapshots
from misfire_fleet.datasets.splits import Shares
from misfire_fleet.errors import StoreError
from misfire_fleet.labels.content import ClassLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.store import Store
from misfire_fleet.store.records import ANY, NewSample, SampleFilter
from misfire_fleet.truth.judging import Judge
from misfire_runtime.cli import app
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import Clock, Trigger
from misfire_runtime.preprocess import encode_png
from misfire_runtime.testing import make_offer
from misfire_train.data import load_dataset
from misfire_train.fit import train_run
from misfire_train.metrics import Estimate
from misfire_train.runs import Run, read_splits, run_splits
from misfire_train.train_config import parse_train_config

CAMPAIGN = SampleFilter(trigger="uncertain")


def rates(hits: int, count: int) -> Estimate:
    failed = np.arange(count) < hits
    return rates_of(failed, np.full(count, 1e6), np.arange(count), replicates=100, seed=0).per_label


@pytest.mark.parametrize(("p", "q", "n"), [(0.4, 0.1, 60), (0.5, 0.02, 100), (0.1, 0.1, 80)])
def test_the_interval_of_a_quotient_holds_the_truth(p: float, q: float, n: int) -> None:
    """2,000 pairs of samples; the bootstrap of a rate only widens what is tested here."""
    from misfire_train.metrics import wilson

    rng = np.random.default_rng(0)
    inside = 0
    for a, b in zip(rng.binomial(n, p, 2000), rng.binomial(n, q, 2000), strict=True):
        sides = [Estimate(hits / n, *wilson(int(hits), n)) for hits in (a, b)]
        found = quotient(*sides)
        assert found.low <= found.value <= found.high
        inside += found.low <= p / q <= found.high
    assert 0.935 <= inside / 2000 <= 0.995


def test_no_failure_in_the_random_stream_bounds_the_quotient_from_below_only() -> None:
    found = quotient(rates(30, 60), rates(0, 60))
    assert found.value == np.inf and found.high == np.inf and found.low > 3
    assert quotient(rates(0, 60), rates(6, 60)).low == 0
    assert np.isnan(
        quotient(rates(3, 60), rates_of(*np.zeros((3, 0)), replicates=100, seed=0).per_label).value
    )


def test_drives_that_fail_together_make_wider_intervals() -> None:
    rng = np.random.default_rng(0)
    drive = np.repeat(np.arange(40), 10)
    failed = rng.random(40)[drive] < 0.2
    together = rates_of(failed, np.full(400, 1e6), drive, replicates=400, seed=0)
    alone = rates_of(failed, np.full(400, 1e6), np.arange(400), replicates=400, seed=0)
    assert together.groups == 40
    assert together.per_label.high - together.per_label.low > 1.8 * (
        alone.per_label.high - alone.per_label.low
    )
    assert together.per_gb.value == pytest.approx(1000 * together.per_label.value)


def put(store: Store, count: int, *, wrong: int, trigger: Trigger, start: int, labelled: int) -> None:
    """Uploads of one trigger; the vehicle answered "tram" to all of them, and `wrong` are buses."""
    new, said = [], []
    for i in range(count):
        data = f"{trigger.name} {i}".encode().ljust(1000 if trigger.random else 3000)
        offer = make_offer(
            data, trigger=trigger, captured_at=at(60.0 * (start + i)), prediction={"class": "tram"}
        )
        new.append(NewSample(offer, data, 8, 8, "collector-1"))
        if i < labelled:
            name = "bus" if i < wrong else "tram"
            said.append(NewLabel(offer.id, ClassLabel(name=name), source="file"))
    store.add_many(new)
    assert LabelLedger(store).add(said, add_classes=True).written


def test_failures_are_counted_by_label_and_by_byte_on_both_databases(anywhere: Store) -> None:
    put(anywhere, 60, wrong=30, trigger=Trigger(name="uncertain"), start=0, labelled=50)
    put(anywhere, 100, wrong=10, trigger=Trigger(name="random", random=True), start=0, labelled=100)
    found = find(anywhere, CAMPAIGN, judge=Judge(), replicates=100)
    assert (found.campaign.uploads, found.campaign.rates.labels, found.campaign.rates.failures) == (
        60,
        50,
        30,
    )
    assert (found.random.uploads, found.random.bytes, found.random.rates.failures) == (100, 100_000, 10)
    assert found.per_label.value == pytest.approx(6.0) and found.per_label.low > 3
    # An upload of the campaign is three times as large.
    assert found.per_gb.value == pytest.approx(2.0) and found.per_gb.low < 2 < found.per_gb.high
    assert found.campaign.rates.per_gb.value == pytest.approx(30 / (50 * 3000 / 1e9))
    assert found.notes[0].startswith("50 of 60 of the campaign's uploads are labelled")
    with pytest.raises(ConfigError, match="is the random stream itself"):
        find(anywhere, SampleFilter(random=True), judge=Judge())
    with pytest.raises(StoreError, match="the campaign has no upload"):
        find(anywhere, SampleFilter(trigger="fog"), judge=Judge())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = parse_train_config(
        {
            "dataset": "digits",
            "model": {"options": {"width": 4}},
            "split": {"field": 0.5},
            "training": {"epochs": 1},
            "head": {"steps": 10, "copies": 0, "strength": 1.0, "columns": "all"},
        }
    )
    return train_run(config, out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def fleet(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 labelled pictures of 40 drives; a campaign took every second one. The exam is frozen."""
    folder = tmp_path_factory.mktemp("fleet")
    digits = load_dataset("digits")
    field = run_splits(run, digits)["field"]
    with Store.open_folder(folder) as store:
        new, said = [], []
        for i in range(160):
            data = encode_png(field.images[i])
            name = digits.classes[int(field.targets[i])]
            offer = make_offer(
                data,
                vehicle="car",
                media_type="image/png",
                captured_at=Clock(wall=1_700_000_000.0 + i, monotonic=5.0, boot_id=f"boot-{i // 4}"),
                trigger=Trigger(name="random", random=True) if i % 2 else Trigger(name="uncertain"),
                prediction={"class": name if i % 3 else "none"},
            )
            new.append(NewSample(offer, data, 8, 8, "collector-1"))
            said.append(NewLabel(offer.id, ClassLabel(name=name), source="file"))
        store.add_many(new)
        assert LabelLedger(store).add(said, add_classes=True).written
        plan = Plan(shares=Shares(0.2, 0.4), frozen=True, seed=1)
        Snapshots(store).create("exam", ANY, plan=plan)
    return folder


@pytest.mark.slow
def test_both_arms_get_as_many_samples_and_the_same_seeds(run: Run, fleet: Path, tmp_path: Path) -> None:
    digits = load_dataset("digits")
    with Store.open_folder(fleet) as store:
        gain = measure_gain(
            store,
            run,
            where=CAMPAIGN,
            snapshot="exam",
            dataset=digits,
            out=tmp_path / "arms",
            seeds=(0,),
            epochs=1,
            replicates=100,
        )
        manifest = Snapshots(store).read("exam")[0]
        random = {s.id for s in store.newest(200) if s.offer.trigger.random}
    sides = {
        side: {m.id for m in manifest.members if m.side == side} for side in ("train", "test", "holdout")
    }
    assert gain.frames == len(sides["test"]) and gain.samples == min(gain.available) > 20
    assert len(gain.campaign) == len(gain.random) == 1
    used = {}
    for name in ("campaign", "random"):
        parts = read_splits(tmp_path / "arms" / f"{name}-0")
        used[name] = set(parts["uploads-train"])
        assert len(used[name]) == gain.samples and used[name] <= sides["train"]
        assert set(parts["uploads-holdout"]) == sides["holdout"]
    assert used["random"] <= random and not used["campaign"] & random
    assert gain.difference.low <= gain.difference.value <= gain.difference.high
    assert gain.difference.value == pytest.approx(gain.campaign[0] - gain.random[0])


@pytest.mark.slow
def test_the_command(fleet: Path, tmp_path: Path) -> None:
    words = ["fleet", "bought", "--where", "trigger=uncertain", "--fleet-dir", str(fleet)]
    text = CliRunner().invoke(app, words)
    assert text.exit_code == 0, text.output
    assert "failures per label" in text.stdout and max(map(len, text.stdout.splitlines()[:10])) <= 80
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert found["accuracy"] is None and found["found"]["campaign"]["uploads"] == 80
    wrong = CliRunner().invoke(app, [*words, "--snapshot", "exam"])
    assert wrong.exit_code != 0
