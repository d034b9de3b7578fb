"""Puts together the failure rate of a bundle, whole and by slice: frames, labels, deals, sketches --> Report.

stream, deals --probability of each label--+
telemetry --shares of the strata-----------+--> stratified, per slice --> rate, interval, labels to halve it
labels, offers --failed or not-------------+
verdicts of people --failed or not---------+

The estimator is fixed: stratified by score, with the strata of `curve.cut`. Neighbouring strata are merged
where labels are few; one that is left is the plain estimator. Nothing is chosen by looking at failures.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from misfire_fleet.errors import StoreError
from misfire_fleet.labels.content import ClassLabel
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.labels.verdicts.ledger import settled_verdicts
from misfire_fleet.store import Store
from misfire_fleet.store.labels import MACHINES, PERSON
from misfire_fleet.store.records import SampleFilter
from misfire_fleet.truth import checks
from misfire_fleet.truth.curve import cut, stratum_of, worth
from misfire_fleet.truth.deals import Deal, draw, keep, kept_deals, probabilities, strata_of
from misfire_fleet.truth.histogram import Histogram
from misfire_fleet.truth.intervals import CONFIDENCE, Interval, wilson
from misfire_fleet.truth.judging import Judge, UnjudgedError
from misfire_fleet.truth.stratified import groups_of, stratified
from misfire_fleet.truth.stream import (
    SKETCHED,
    Sketches,
    StreamFrame,
    frames,
    score_names,
    sketches,
)
from misfire_runtime.errors import ConfigError

_MOST_TIMES = 400.0
"""A halved interval needs about 4 times the labels; where frames limit it, no number of labels is enough."""
_PAGE = 500
LABEL = "label"
"""`by`: the class that the label names."""


@dataclass(frozen=True)
class _Labelled:
    """Holds whether a sample failed (None: cannot be judged), and its label's source, class and time."""

    failed: bool | None
    source: str
    name: str
    at: float


@dataclass(frozen=True)
class Query:
    """Says of which frames the failure rate is wanted.

    Attributes:
        bundle: `name@version`.
        by: "vehicle", "day", "class" (that the vehicle answered), "label" (that is right), or a key of the
            context; "" for no slices.
        score: strata are cut by it; None takes the first of `stream.PREFERRED` that vehicles send.
        since, until: capture times in seconds since 1970; None is open.
        vehicle: only of this vehicle.
        confidence: of the intervals.
        judge: the rule of the task.
    """

    bundle: str
    by: str = ""
    score: str | None = None
    since: float | None = None
    until: float | None = None
    vehicle: str | None = None
    confidence: float = CONFIDENCE
    judge: Judge = field(default_factory=Judge)

    @property
    def filters(self) -> SampleFilter:
        """Returns the filter of the random stream."""
        return SampleFilter(
            vehicle=self.vehicle,
            bundle=self.bundle,
            random=True,
            captured_from=self.since,
            captured_to=self.until,
        )


@dataclass(frozen=True)
class SliceRate:
    """Holds the failure rate of a slice; rate and ends are None if it has no label.

    Attributes:
        name: of the slice; "" for all frames.
        labels, failures: that count.
        frames: that the rate is of: of all vehicles' sketches, or of the random stream.
        source: "sketches" or "stream": what tells the shares of the strata.
        stream: frames in the random stream.
        estimator: "stratified", or "plain" if few labels left one stratum.
        to_halve: labels more that would halve the interval; None if no number of labels would.
        unlabelled: frames of the stream that could be labelled.
    """

    name: str
    rate: float | None
    low: float | None
    high: float | None
    labels: int
    failures: int
    frames: int
    source: str
    stream: int
    estimator: str
    to_halve: int | None
    unlabelled: int


@dataclass(frozen=True)
class Report:
    """Holds the rates of a bundle and what may be wrong with them."""

    bundle: str
    score: str
    by: str
    since: float | None
    until: float | None
    confidence: float
    whole: SliceRate
    slices: tuple[SliceRate, ...]
    unjudged: Mapping[str, int]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns an object for JSON."""
        return asdict(self)


class FieldTruth:
    """Reads a store once, and answers for all frames and for each slice.

    Raises:
        StoreError: the bundle has no frame in the random stream.
    """

    def __init__(self, store: Store, query: Query) -> None:
        self._store = store
        self.query = query
        names = [query.score] if query.score else score_names(store, query.filters)
        self.score = names[0] if names else ""
        # Strata of another score are no cells of these frames.
        self.deals = [deal for deal in kept_deals(store, query.bundle) if deal.score == self.score]
        wanted = {"", query.by if query.by != LABEL else "", *(deal.by for deal in self.deals)}
        self.frames = list(frames(store, query.filters, score=self.score, by=wanted))
        if not self.frames:
            raise StoreError(
                f"bundle {query.bundle!r} has no frame in the random stream; vehicles draw it with "
                "`[random] rate`, 0.01 by default"
            )
        self.sketches = self._sketches()
        self.edges = tuple(float(edge) for edge in cut(*self._histogram().table()))
        ids = [frame.id for frame in self.frames]
        self._strata = dict(zip(ids, strata_of(self.frames, self.edges).tolist(), strict=True))
        self._probability = dict(zip(ids, probabilities(self.deals, self.frames).tolist(), strict=True))
        self._labelled: dict[str, _Labelled] = {}
        self.unjudged: Counter[str] = Counter()
        self.votes = 0
        self.verdicts: Counter[str] = Counter()
        self._read_labels()
        self._read_verdicts()
        self._by_slice: dict[str, dict[str, list[StreamFrame]]] = {}

    @property
    def recorded(self) -> int:
        """Returns the number of frames that were read from recordings."""
        return sum(frame.recorded for frame in self.frames)

    @property
    def sources(self) -> Counter[str]:
        """Returns the number of labels by where they were made."""
        return Counter(each.source for each in self._labelled.values())

    def judged(self) -> dict[str, tuple[bool, float]]:
        """Returns, of each label that counts, whether the frame failed, and the probability of its deal."""
        return {
            frame.id: (labelled.failed, self._probability[frame.id])
            for frame in self.frames
            if (labelled := self._labelled.get(frame.id)) is not None
            and labelled.failed is not None
            and self._probability[frame.id] > 0
        }

    def report(self) -> Report:
        """Returns the failure rates."""
        if self.query.by == LABEL:
            rates = tuple(self._rates_by_label())
        else:
            slices = self._cells(self.query.by) if self.query.by else {}
            rates = tuple(self._rate(name, found) for name, found in sorted(slices.items()))
        whole = self._rate("", self.frames)
        return Report(
            bundle=self.query.bundle,
            score=self.score,
            by=self.query.by,
            since=self.query.since,
            until=self.query.until,
            confidence=self.query.confidence,
            whole=whole,
            slices=rates,
            unjudged=dict(self.unjudged),
            warnings=tuple(self._warnings((whole, *rates))),
        )

    def outstanding(self) -> list[str]:
        """Returns the ids of frames that were dealt and have no label, in the order of `deal`."""
        left = [
            f for f in self.frames if self.deals and self._probability[f.id] and f.id not in self._labelled
        ]
        return [frame.id for frame in sorted(left, key=lambda frame: frame.order)]

    def deal(self, count: int, *, actor: str, dry_run: bool = False) -> list[str]:
        """Deals the next frames to label, and remembers the deal.

        Args:
            count: frames, in equal parts to the slices of the query.
            actor: for the audit log.
            dry_run: only list what would be dealt.

        Returns:
            Ids of samples, in an order that says nothing of their scores.
        """
        if self.query.by == LABEL:
            raise ConfigError("frames cannot be dealt by a label that they do not have yet; use --by class")
        cells = {name: self._by_stratum(found) for name, found in sorted(self._cells(self.query.by).items())}
        values, counts = self._histogram().table()
        worths = np.bincount(stratum_of(values, self.edges), worth(counts), len(self.edges) + 1)
        cuts, chosen = draw(cells, list(worths), set(self._labelled), count)
        if chosen and not dry_run:
            made = Deal(
                bundle=self.query.bundle,
                score=self.score,
                edges=self.edges,
                by=self.query.by,
                cuts=cuts,
                since=self.query.since,
                until=self.query.until,
                stored_to=max(frame.stored_at for frame in self.frames),
            )
            keep(self._store, made, actor=actor)
        return [frame.id for frame in chosen]

    def _by_stratum(self, found: Sequence[StreamFrame]) -> list[list[StreamFrame]]:
        cells: list[list[StreamFrame]] = [[] for _stratum in range(len(self.edges) + 1)]
        for frame in found:
            cells[self._strata[frame.id]].append(frame)
        return cells

    def _sketches(self) -> Sketches:
        query = self.query
        return sketches(
            self._store,
            bundle=query.bundle,
            score=self.score,
            by=query.by if query.by in SKETCHED else "",
            since=query.since,
            until=query.until,
            vehicle=query.vehicle,
        )

    def _histogram(self) -> Histogram:
        """Returns the scores of all frames: the vehicles' sketches, or those of the stream."""
        found = self.sketches.by.get("")
        if found is not None and self._sketches_fit:
            return found
        own = Histogram()
        own.add_scores([frame.score for frame in self.frames if frame.score is not None])
        return own

    @property
    def _sketches_fit(self) -> bool:
        # A recording's frames carry its own dates, and their sketches that of the replay.
        return (
            not self.recorded
            and not checks.misses_frames(self.sketches)
            and checks.sketches_cover(self.frames, self.sketches.frames)
        )

    def _read_labels(self) -> None:
        """Reads who labelled what, and judges it, in pages."""
        known = {frame.id for frame in self.frames}
        page = []
        for record in LabelLedger(self._store).current(self.query.filters):
            if record.sample not in known:
                continue
            if record.source in MACHINES:
                self.votes += 1
                continue
            page.append(record)
            if len(page) == _PAGE:
                self._judge(page)
                page = []
        self._judge(page)

    def _judge(self, page: Sequence[Any]) -> None:
        stored = {sample.id: sample for sample in self._store.among([record.sample for record in page])}
        for record in page:
            sample = stored.get(record.sample)
            if sample is None:
                continue
            failed: bool | None = None
            try:
                failed = self.query.judge.failed_on(sample, record.label)
            except UnjudgedError as error:
                self.unjudged[str(error)] += 1
            name = record.label.name if isinstance(record.label, ClassLabel) else "unknown"
            self._labelled[record.sample] = _Labelled(failed, record.source, name, record.at.timestamp())

    def _read_verdicts(self) -> None:
        """Adds what people said of the answers themselves, where no label judges them or it is older."""
        known = {frame.id for frame in self.frames}
        for verdict in settled_verdicts(self._store, self.query.filters):
            if verdict.sample not in known:
                continue
            label = self._labelled.get(verdict.sample)
            judged = label is not None and label.failed is not None and label.at >= verdict.at
            if judged and verdict.label_version is None:
                continue
            # The label may be the verdict's own: then it is as blind as that.
            self.verdicts["seen"] += not verdict.blind
            self.verdicts["shared"] += verdict.shared
            if judged:
                continue
            failed = None if verdict.verdict == "ignore" else verdict.verdict != "right"
            if failed is None:
                self.unjudged["a person ignored the frame"] += 1
            name = label.name if label is not None else "unknown"
            self._labelled[verdict.sample] = _Labelled(failed, PERSON, name, verdict.at)

    def _cells(self, by: str) -> dict[str, list[StreamFrame]]:
        if by not in self._by_slice:
            found: dict[str, list[StreamFrame]] = defaultdict(list)
            for frame in self.frames:
                found[frame.slices[by]].append(frame)
            self._by_slice[by] = dict(found)
        return self._by_slice[by]

    def _shares(self, name: str, found: Sequence[StreamFrame]) -> tuple[np.ndarray[Any, Any], float, str]:
        """Returns the shares of the strata in a slice, of how many frames, and what tells it."""
        histogram = self.sketches.by.get(name)
        told = name == "" or self.query.by in SKETCHED
        covered = histogram is not None and checks.sketches_cover(found, histogram.total)
        if told and histogram is not None and covered and self._sketches_fit:
            values, counts = histogram.table()
            shares = np.bincount(stratum_of(values, self.edges), counts, len(self.edges) + 1)
            return shares / shares.sum(), histogram.total, "sketches"
        weights = [1 / (frame.rate or 1.0) for frame in found]
        places = [self._strata[frame.id] for frame in found]
        shares = np.bincount(places, weights, len(self.edges) + 1)
        return shares / shares.sum(), float(len(found)), "stream"

    def _drawn(self, found: Sequence[StreamFrame]) -> list[tuple[int, float, float]]:
        """Returns stratum, weight and failure of the labels that count."""
        return [
            (self._strata[frame.id], 1 / (probability * (frame.rate or 1.0)), float(labelled.failed))
            for frame in found
            if (labelled := self._labelled.get(frame.id)) is not None
            and labelled.failed is not None
            and (probability := self._probability[frame.id]) > 0
        ]

    def _rates_by_label(self) -> Iterator[SliceRate]:
        """Yields a rate for each class that labels name: only labelled frames can be of one."""
        names = sorted({each.name for each in self._labelled.values()})
        shares, _count, _source = self._shares("", self.frames)
        sizes = np.zeros(len(shares))
        for stratum, weight, _failed in self._drawn(self.frames):
            sizes[stratum] += weight
        for name in names:
            own = {sample for sample, each in self._labelled.items() if each.name == name}
            drawn = self._drawn([frame for frame in self.frames if frame.id in own])
            # Each label stands for its part of its stratum.
            weights = np.array([weight * shares[stratum] / sizes[stratum] for stratum, weight, _y in drawn])
            interval = weighted(weights, [failed for _s, _w, failed in drawn], self.query.confidence)
            yield SliceRate(
                name=name,
                rate=float(interval.rate) if drawn else None,
                low=float(interval.low) if drawn else None,
                high=float(interval.high) if drawn else None,
                labels=len(drawn),
                failures=int(sum(failed for _s, _w, failed in drawn)),
                frames=len(own),
                source="labels",
                stream=len(own),
                estimator="weighted" if drawn else "none",
                # Four times as many labels of this class.
                to_halve=3 * len(drawn) if drawn else None,
                unlabelled=sum(frame.id not in self._labelled for frame in self.frames),
            )

    def _rate(self, name: str, found: Sequence[StreamFrame]) -> SliceRate:
        drawn = self._drawn(found)
        shares, count, source = self._shares(name, found)
        free = sum(frame.id not in self._labelled for frame in found)
        failures = int(sum(failed for _stratum, _weight, failed in drawn))
        common: dict[str, Any] = {
            "name": name,
            "labels": len(drawn),
            "failures": failures,
            "frames": round(count),
            "source": source,
            "stream": len(found),
            "unlabelled": free,
        }
        if not drawn:
            return SliceRate(rate=None, low=None, high=None, estimator="none", to_halve=None, **common)
        columns = _columns(shares, drawn)
        pool = count if source == "stream" else None
        interval = stratified(*columns, pool=pool, confidence=self.query.confidence)
        return SliceRate(
            rate=float(interval.rate),
            low=float(interval.low),
            high=float(interval.high),
            estimator="stratified" if len(columns[0]) > 1 else "plain",
            to_halve=labels_to_halve(columns, interval, pool=pool, confidence=self.query.confidence),
            **common,
        )

    def _warnings(self, rates: Sequence[SliceRate]) -> list[str]:
        dealt = [f for f in self.frames if self._probability[f.id] > 0] if self.deals else []
        outside = sum(frame.id in self._labelled and not self._probability[frame.id] for frame in self.frames)
        shares, _count, source = self._shares("", self.frames)
        places = [self._strata[frame.id] for frame in self.frames]
        marked = [self._strata[frame.id] for frame in self.frames if frame.id in self._labelled]
        strata = len(shares)
        return [
            *checks.stream_size(self.frames, self.sketches),
            *checks.stream_scores(np.bincount(places, minlength=strata), shares, source=source),
            *checks.missing_frames(self.sketches),
            *checks.recordings(self.recorded),
            *checks.label_sources(self.sources, votes=self.votes),
            *checks.verdicts(self.verdicts),
            *checks.free_labels(
                np.bincount(marked, minlength=strata), np.bincount(places, minlength=strata), dealt=self.deals
            ),
            *checks.deals(dealt, {frame.id for frame in dealt} & set(self._labelled), outside=outside),
            *checks.unjudged(self.unjudged),
            *checks.too_few({rate.name or "all": (rate.labels, rate.failures) for rate in rates}),
        ]


def _columns(
    shares: np.ndarray[Any, Any], drawn: Sequence[tuple[int, float, float]]
) -> tuple[np.ndarray[Any, Any], ...]:
    """Returns shares, effective labels and failures of merged strata. drawn: (stratum, weight, failed)."""
    counts = np.bincount([stratum for stratum, _w, _y in drawn], minlength=len(shares))
    columns = []
    for group in groups_of(counts):
        inside = [(weight, failed) for stratum, weight, failed in drawn if stratum in group]
        weights, failed = (np.array(column) for column in zip(*inside, strict=True))
        # Kish (1965): as many labels of equal weight would be as exact.
        effective = weights.sum() ** 2 / (weights**2).sum()
        columns.append((shares[group].sum(), effective, effective * (weights @ failed) / weights.sum()))
    return tuple(np.array(column, float) for column in zip(*columns, strict=True))


def weighted(weights: ArrayLike, failed: ArrayLike, confidence: float) -> Interval:
    """Returns the rate of frames that stand for unequally many, with Wilson's interval.

    Args:
        weights: [n] frames that each label stands for.
        failed: [n] 1 for a failure, else 0.
        confidence: of the interval.
    """
    w, y = np.asarray(weights, float), np.asarray(failed, float)
    if not w.size:
        return wilson(0.0, 0, confidence=confidence)
    rate = float(w @ y / w.sum())
    labels = float(w.sum() ** 2 / (w @ w))
    # Linearised variance of a ratio; where it says more than Kish's number of labels, that is not believed.
    variance = float((w**2 @ (y - rate) ** 2) / w.sum() ** 2)
    if variance > 0:
        labels = min(labels, rate * (1 - rate) / variance)
    return wilson(rate, labels, confidence=confidence)


def labels_to_halve(
    columns: Sequence[np.ndarray[Any, Any]], now: Interval, *, pool: float | None, confidence: float
) -> int | None:
    """Returns how many labels more would halve an interval, if they are dealt as those before.

    Args:
        columns: shares, labels and failures of the strata.
        now: the interval.
        pool: frames from which the shares were estimated; None if they are known.
        confidence: of the interval.

    Returns:
        A number of labels; None if no number would be enough, because frames are too few.
    """
    shares, labels, failures = columns
    wanted = float(now.width) / 2

    def width(times: float) -> float:
        return float(
            stratified(shares, labels * times, failures * times, pool=pool, confidence=confidence).width
        )

    low, high = 1.0, _MOST_TIMES
    if width(high) > wanted:
        return None
    for _step in range(30):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if width(middle) > wanted else (low, middle)
    return int(np.ceil((high - 1) * labels.sum()))
