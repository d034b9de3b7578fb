"""The estimators against simulations with a known rate, and against what is known in closed form."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from ddsketch import LogCollapsingLowestDenseDDSketch
from numpy.typing import NDArray

from misfire_fleet.truth.curve import cut, deal, failure_curve, ranks, stratum_of, worth
from misfire_fleet.truth.histogram import Histogram, binned
from misfire_fleet.truth.intervals import Interval, plain, wilson
from misfire_fleet.truth.powered import combined, prediction_powered
from misfire_fleet.truth.sequence import betting_sequence, compare
from misfire_fleet.truth.stratified import groups_of, merge, stratified
from misfire_runtime.state.statistics import pack_sketch

LABELS, REPEATS = 300, 2000
# Three standard errors of a share near .95 among so many repeats.
SLACK = 0.015


def covers(interval: Interval, rate: float) -> float:
    return float(((interval.low <= rate) & (rate <= interval.high)).mean())


class Simulated:
    """Frames with normal scores, an AUROC of .9, in strata as the fleet cuts them."""

    def __init__(self, rate: float, *, seed: int, auroc: float = 0.9, frames: int = 200_000) -> None:
        self.rng = np.random.default_rng(seed)
        apart = 2**0.5 * NormalDist().inv_cdf(auroc)
        self.failed = (self.rng.permutation(frames) < round(rate * frames)).astype(float)
        score = self.rng.normal(size=frames) + apart * self.failed
        odds = 0.1 / 0.9 * np.exp(apart * score - apart**2 / 2)
        self.predicted = odds / (1 + odds)
        histogram = Histogram()
        histogram.add_scores(score)
        self.values, self.counts = histogram.table()
        edges = cut(self.values, self.counts)
        self.stratum = stratum_of(binned(score), edges)
        self.strata = len(edges) + 1
        self.sizes = np.bincount(self.stratum, minlength=self.strata)
        self.shares = self.sizes / frames
        worths = np.bincount(stratum_of(self.values, edges), worth(self.counts), self.strata)
        self.dealt = deal(LABELS, worths, self.sizes)

    def uniform(self) -> NDArray[np.int64]:
        return self.rng.integers(0, len(self.failed), (REPEATS, LABELS))

    def by_stratum(self) -> NDArray[np.int64]:
        parts = [
            self.rng.choice(np.flatnonzero(self.stratum == k), (REPEATS, size))
            for k, size in enumerate(self.dealt)
        ]
        return np.concatenate(parts, axis=1)

    def failures(self, drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        failed, stratum = self.failed[drawn], self.stratum[drawn]
        return np.stack([np.where(stratum == k, failed, 0).sum(-1) for k in range(self.strata)], -1)


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.15, 0.30])
def test_every_estimator_covers_from_2_to_30_percent(rate: float) -> None:
    field = Simulated(rate, seed=11)
    even, drawn = field.uniform(), field.by_stratum()
    predicted = np.bincount(field.stratum, field.predicted) / field.sizes
    found = {
        "plain": plain(field.failed[even]),
        "powered": prediction_powered(field.failed[even], field.predicted[even], field.predicted.mean()),
        "stratified": stratified(field.shares, field.dealt, field.failures(drawn)),
        "combined": combined(
            field.shares, field.failed[drawn], field.predicted[drawn], field.stratum[drawn], predicted
        ),
    }
    for name, interval in found.items():
        assert 0.94 - SLACK <= covers(interval, rate) <= 0.98, name
    if rate >= 0.05:
        assert found["stratified"].width.mean() <= 0.78 * found["plain"].width.mean()


def test_a_worthless_score_costs_little_and_no_coverage() -> None:
    field = Simulated(0.1, seed=12, auroc=0.5)
    even, drawn = field.uniform(), field.by_stratum()
    found = stratified(field.shares, field.dealt, field.failures(drawn))
    assert covers(found, 0.1) >= 0.94 - SLACK
    assert found.width.mean() < 1.25 * plain(field.failed[even]).width.mean()
    powered = prediction_powered(field.failed[even], field.predicted[even], field.predicted.mean())
    assert powered.width == pytest.approx(plain(field.failed[even]).width, rel=0.01)
    noise = field.rng.random(len(field.failed))
    powered = prediction_powered(field.failed[even], noise[even], noise.mean())
    assert covers(powered, 0.1) >= 0.94 - SLACK
    assert powered.width.mean() < 1.03 * plain(field.failed[even]).width.mean()


def test_shares_that_were_estimated_widen_the_interval() -> None:
    """The strata's shares come from 400 frames of a stream, of which 200 are labelled."""
    field = Simulated(0.2, seed=13)
    stream = field.rng.integers(0, len(field.failed), (REPEATS, 400))
    shares = np.stack([(field.stratum[stream] == k).mean(-1) for k in range(field.strata)], -1)
    kept = (shares > 0).all(-1)
    labels = np.broadcast_to(field.dealt, shares.shape)
    failures = field.failures(field.by_stratum())
    assert covers(stratified(shares[kept], labels[kept], failures[kept], pool=400), 0.2) >= 0.94 - SLACK
    assert covers(stratified(shares[kept], labels[kept], failures[kept]), 0.2) < 0.93


def test_wilson_is_the_published_example() -> None:
    """Newcombe 1998, table I: 81 of 263 gives .2553 to .3662, 0 of 20 gives 0 to .1611."""
    first, second = wilson(81 / 263, 263), wilson(0.0, 20)
    assert (first.low, first.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert (second.low, second.high) == (pytest.approx(0.0, abs=1e-9), pytest.approx(0.1611, abs=1e-4))
    assert tuple(map(float, wilson(0.0, 0))) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(("failures", "labels"), [(0, 20), (81, 263), (20, 20), (1, 5)])
def test_one_stratum_is_wilson(failures: int, labels: int) -> None:
    one, known = stratified([1.0], [labels], [failures]), wilson(failures / labels, labels)
    assert tuple(map(float, one)) == pytest.approx(tuple(map(float, known)), abs=1e-6)


def test_equal_strata_without_failures_still_bound_the_rate() -> None:
    found = stratified([0.5, 0.5], [50, 50], [0, 0])
    assert float(found.low) == 0.0
    assert 0.02 < float(found.high) < 0.08


def test_a_stratum_without_labels_is_an_error_and_is_merged() -> None:
    with pytest.raises(ValueError, match="merge it"):
        stratified([0.5, 0.5], [10, 0], [1, 0])
    assert groups_of([10, 0, 1, 9, 2]) == [[0], [1, 2, 3], [4]] or groups_of([10, 0, 1, 9, 2])[-1] == [
        1,
        2,
        3,
        4,
    ]
    weights, labels, failures = merge(
        np.array([0.7, 0.2, 0.1]), np.array([9.0, 1.0, 5.0]), np.array([1.0, 0, 3])
    )
    assert weights == pytest.approx([0.7, 0.3])
    assert labels.tolist() == [9, 6] and failures.tolist() == [1, 3]


def test_the_sequence_holds_at_every_look() -> None:
    rng = np.random.default_rng(14)
    for rate in (0.02, 0.3):
        found = betting_sequence((rng.random((300, 200)) < rate).astype(float), grid=401)
        missed = ((found.low > rate) | (found.high < rate)).any(-1).mean()
        assert missed <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
        assert found.width[:, -1].mean() < 0.25


def test_values_outside_of_0_to_1_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        betting_sequence([0.5, 1.5])


def test_disagreements_show_the_better_bundle() -> None:
    rng = np.random.default_rng(15)
    incumbent = rng.random(400) < 0.8
    found = compare(~incumbent, incumbent, disagreeing=0.05)
    assert found.high[-1] < 0
    assert found.rate[-1] == pytest.approx(0.05 * (1 - 2 * incumbent.mean()))


def test_a_histogram_counts_as_the_vehicles_sketch_does() -> None:
    rng = np.random.default_rng(16)
    scores = np.concatenate(
        [rng.normal(0, 3, 3000), np.exp(rng.normal(0, 8, 1000)), [0.0, 0.0, 1e-300, -1e-12]]
    )
    sketch = LogCollapsingLowestDenseDDSketch(relative_accuracy=0.01, bin_limit=4096)
    for score in scores:
        sketch.add(float(score))
    sent, own = Histogram(), Histogram()
    assert sent.add(pack_sketch(sketch)) == len(scores)
    own.add_scores(scores)
    values, counts = sent.table()
    assert own.table()[0] == pytest.approx(values)
    assert own.table()[1].tolist() == counts.tolist()
    assert (np.diff(values) > 0).all()
    # A value is within one percent of its bin's.
    assert binned(scores) == pytest.approx(scores, rel=0.0101, abs=1e-290)


@pytest.mark.parametrize("text", ["", "AAAA", "not base64 at all", "////"])
def test_what_is_no_sketch_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="sketch"):
        Histogram().add(text)


def test_strata_are_of_equal_worth() -> None:
    values = np.linspace(0, 1, 1000)
    edges = cut(values, np.ones(1000))
    parts = np.bincount(stratum_of(values, edges), worth(np.ones(1000)))
    assert len(parts) == 8
    assert parts == pytest.approx(np.full(8, 1 / 8), abs=0.01)
    assert (np.diff(failure_curve(ranks(np.ones(1000)))) > 0).all()


def test_many_equal_scores_are_one_stratum() -> None:
    edges = cut(np.array([0.0, 1.0, 2.0]), np.array([9000.0, 500, 500]))
    assert len(edges) == 2
    assert len(cut(np.array([0.0]), np.array([100.0]))) == 0
    assert len(cut(np.zeros(0), np.zeros(0))) == 0


def test_deals_give_what_is_there() -> None:
    assert deal(10, [0.5, 0.5], [100, 100]).tolist() == [5, 5]
    assert deal(10, [0.9, 0.1], [3, 100]).tolist() == [3, 7]
    assert deal(10, [0.5, 0.5], [2, 3]).tolist() == [2, 3]
    assert deal(7, [0.0, 0.0], [5, 5]).sum() == 7
