"""Estimates what a campaign would send and find before anything is sent.

sketches of all frames, or the random stream at its known rate --> frames that it would take, by block of time
--prediction interval--> samples ahead;  sizes of samples --> bytes;  labels of the stream's frames that it
would take, or the bundle's calibrated operating points --> failures

Where there is nothing to estimate from, it says so and gives no number. `notes` names what the numbers leave
out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from misfire_fleet.campaigns.budget import BudgetKeeper
from misfire_fleet.campaigns.intervals import CONFIDENCE, Range, mean_of, predicted
from misfire_fleet.campaigns.ledger import near_of
from misfire_fleet.campaigns.recorded import (
    Beats,
    Drawn,
    calibration_pairs,
    first_heard,
    published_manifest,
    read_beats,
    read_stream,
    score_of,
    sizes,
)
from misfire_fleet.campaigns.selecting import Thresholds, wants
from misfire_fleet.campaigns.spec import CampaignSpec
from misfire_fleet.campaigns.vehicles import VehicleFacts, facts, means
from misfire_fleet.errors import StoreError
from misfire_fleet.store import Store
from misfire_fleet.truth.report import FieldTruth, Query, weighted
from misfire_runtime.bundle import Manifest
from misfire_runtime.clock import wall_time
from misfire_runtime.errors import MessageError
from misfire_runtime.messages import unpack_embedding

_DAY_S = 86_400.0
_EACH = (1 + CONFIDENCE) / 2
"""Confidence of each factor of a product, so that the product has CONFIDENCE."""
_BLOCKS = 8
"""If fewer than four days are recorded: of less than a day each."""
_FEW_LABELS = 10


@dataclass(frozen=True)
class Horizon:
    """Says how far ahead to look, and how far back. now: seconds since 1970; None is the present."""

    days: float = 7.0
    back_days: float = 7.0
    now: float | None = None


@dataclass(frozen=True)
class DryRun:
    """Holds what a campaign would cost and find; a Range is None if there is nothing to estimate it from.

    Attributes:
        campaign: its name.
        days: that the estimate is for; less than asked if the campaign ends before.
        back_days: that it is made from.
        vehicles: that the campaign means and can reach.
        heard: of them, with a heartbeat or a sample in that time.
        samples, bytes, failures: with 95 % intervals.
        counted_from: "sketches" or "random stream".
        failures_from: "labels" of the random stream, "operating points" of the bundle, or "".
        labels: of frames that the campaign would have taken.
        full_after_days: when a limit is reached; None if it is not.
        refused: why there is no estimate; "" if there is one.
        notes: what the numbers leave out.
    """

    campaign: str
    days: float
    back_days: float
    vehicles: int
    heard: int
    samples: Range | None = None
    bytes: Range | None = None
    failures: Range | None = None
    counted_from: str = ""
    failures_from: str = ""
    labels: int = 0
    full_after_days: float | None = None
    refused: str = ""
    notes: tuple[str, ...] = ()
    at: float = field(default_factory=wall_time)

    def to_dict(self) -> dict[str, Any]:
        """Returns an object for JSON."""
        return {**asdict(self), "text": self.text}

    @property
    def text(self) -> str:
        """Returns the estimate in sentences."""
        if self.refused or self.samples is None:
            return "\n".join([f"no estimate: {self.refused}", *self.notes])
        found = f"would send {_count(self.samples)} samples"
        if self.bytes is not None:
            found = f"would send {_gigabytes(self.bytes)}, {_count(self.samples)} samples,"
        found += f" in {self.days:g} days"
        if self.failures is not None:
            source = {"labels": f"{self.labels} labels of the random stream"}
            made = source.get(self.failures_from, "the bundle's calibrated operating points")
            found += f" and find about {_count(self.failures)} failures (by {made})"
        lines = [found + f"; counted from the {self.counted_from} of the last {self.back_days:.3g} days"]
        if self.full_after_days is not None:
            lines.append(f"full after about {self.full_after_days:.2g} days")
        return "\n".join([*lines, *self.notes])


class _Refused(Exception):  # noqa: N818  (never leaves this module)
    """Ends an estimate with the reason."""


def estimate(store: Store, spec: CampaignSpec, horizon: Horizon | None = None) -> DryRun:
    """Returns what a campaign would send and find.

    Args:
        store: of the fleet.
        spec: the campaign; it need not be kept.
        horizon: how far ahead and back.

    Raises:
        SampleGoneError, ConfigError: the sample that it is near is gone, or has no embedding.
    """
    horizon = horizon or Horizon()
    now = wall_time() if horizon.now is None else horizon.now
    days = horizon.days
    if spec.until is not None:
        days = max(0.0, min(days, (spec.until.timestamp() - now) / _DAY_S))
    made = _Estimate(store, spec, days=days, back_days=horizon.back_days, now=now)
    try:
        return made.result()
    except _Refused as refused:
        return made.refusal(str(refused))


class _Estimate:
    def __init__(
        self, store: Store, spec: CampaignSpec, *, days: float, back_days: float, now: float
    ) -> None:
        self.store, self.spec, self.days, self.now = store, spec, days, now
        self.near = near_of(store, spec)
        self.notes: list[str] = []
        self.meant = self._meant(facts(store))
        self.names = [vehicle.name for vehicle in self.meant]
        self.back_days = back_days
        self.blocks = _BLOCKS
        self.beats = Beats()
        self.stream: list[Drawn] = []
        self.hits: list[Drawn] = []
        self._manifests: dict[str, Manifest | None] = {}

    def refusal(self, reason: str) -> DryRun:
        return DryRun(
            self.spec.name,
            self.days,
            self.back_days,
            len(self.meant),
            self._heard(),
            refused=reason,
            notes=tuple(self.notes),
        )

    def result(self) -> DryRun:
        if not self.meant:
            raise _Refused("no known vehicle is meant by it, or none that can run it")
        if self.days <= 0:
            raise _Refused("its time is over")
        self._read()
        thresholds = self._thresholds()
        decide = wants(self.spec.what, thresholds=thresholds, near=self.near)
        self.hits = [frame for frame in self.stream if decide(frame.offer)]
        by_score = self.spec.what.by_score and not self.spec.what.rules and self.near is None
        sketched = by_score and bool(self.beats.frames) and not self.spec.what.budget
        samples, source = self._samples(thresholds, sketched=sketched)
        size = self._size()
        failures, failures_from, labels = self._failure_share(thresholds, alone=by_score)
        samples, failing, full = self._limited(samples, size)
        found = None if failures is None else failing.times(failures)
        if found is not None:
            # How many of them fail is chance, too.
            found = Range(
                found.value, max(0.0, found.low - 2 * found.low**0.5), found.high + 2 * found.high**0.5
            )
        return DryRun(
            self.spec.name,
            self.days,
            self.back_days,
            len(self.meant),
            self._heard(),
            samples=samples,
            bytes=None if size is None else self._bytes(samples, size),
            failures=found,
            counted_from=source,
            failures_from=failures_from,
            labels=labels,
            full_after_days=full,
            notes=tuple(self.notes),
        )

    def _meant(self, vehicles: Sequence[VehicleFacts]) -> list[VehicleFacts]:
        found = [vehicle for vehicle in vehicles if means(self.spec.who, vehicle)]
        needed = set(self.spec.privacy)
        able = [vehicle for vehicle in found if vehicle.privacy is None or needed <= vehicle.privacy]
        if len(able) < len(found):
            self.notes.append(
                f"{len(found) - len(able)} of {len(found)} vehicles are left out: their newest sample is "
                f"without {', '.join(sorted(needed))}"
            )
        return able

    def _heard(self) -> int:
        heard = {vehicle for (_block, vehicle), frames in self.beats.frames.items() if frames > 0}
        return len(heard | {str(frame.offer.get("vehicle")) for frame in self.stream})

    def _read(self) -> None:
        since = self.now - self.back_days * _DAY_S
        begun = first_heard(self.store, self.names, since)
        self.stream, unknown = read_stream(self.store, self.names, since=since, until=self.now)
        times = [frame.captured_at for frame in self.stream] + ([] if begun is None else [begun])
        if not times:
            raise _Refused(
                f"no heartbeat and no frame of the random stream of these vehicles in the last "
                f"{self.back_days:g} days"
            )
        # A fleet that began later than that sent nothing before: those blocks of time say nothing.
        since = max(since, min(times))
        self.back_days = (self.now - since) / _DAY_S
        if self.back_days < 1 / 24:
            raise _Refused("less than an hour is recorded")
        self.blocks = round(self.back_days) if self.back_days >= 4 else _BLOCKS
        if self.back_days < 4:
            self.notes.append(
                f"only {self.back_days:.2g} days are recorded, so how much days differ is not known"
            )
        if unknown:
            self.notes.append(
                f"{unknown} frames of the random stream do not say their rate, and are left out"
            )
        if begun is not None:
            self.beats = read_beats(self.store, self.names, since=since, until=self.now, blocks=self.blocks)
        if self.beats.share < 1:
            self.notes.append(f"every {1 / self.beats.share:.0f}th heartbeat was read, chosen at random")
        if self.beats.bad:
            self.notes.append(f"{self.beats.bad} heartbeats or sketches cannot be read")
        self._compare()

    def _compare(self) -> None:
        """Notes if the random stream and the sketches do not speak of the same frames."""
        frames = sum(self.beats.frames.values())
        drawn = sum(frame.weight for frame in self.stream)
        # Three standard deviations of the stream's own noise, and a tenth for what is under way.
        noise = 3 * sum(frame.weight**2 for frame in self.stream) ** 0.5
        if frames and self.stream and abs(drawn - frames) > noise + 0.1 * frames:
            self.notes.append(
                f"the random stream stands for {drawn:,.0f} frames, and the sketches hold {frames:,.0f}: "
                "some samples or heartbeats are missing"
            )

    def _thresholds(self) -> Thresholds:
        what = self.spec.what
        if not what.by_score:
            return Thresholds()
        if what.budget:
            of_vehicle = BudgetKeeper(self.store).thresholds(what.score or "", self.meant)
            if not of_vehicle:
                raise _Refused("the fleet's budget sets no threshold: none is set, or there are no sketches")
            return Thresholds(score=self._scores(), of_vehicle=of_vehicle)
        scores = self._scores()
        return Thresholds(score=scores, above={b: self._least(b, score) for b, score in scores.items()})

    def _scores(self) -> dict[str, str]:
        """Returns the score that the campaign looks at, by bundle."""
        names = self.beats.names()
        for frame in self.stream:
            names.setdefault(str(frame.offer.get("bundle")), set()).update(frame.offer.get("scores") or {})
        found: dict[str, str] = {}
        for bundle, known in names.items():
            try:
                found[bundle] = score_of(self.store, bundle, known, self.spec.what.score)
            except StoreError as error:
                if self.spec.what.score is None:
                    raise _Refused(str(error)) from error
        if not found:
            raise _Refused(f"no bundle of these vehicles has a score {self.spec.what.score}")
        return found

    def _manifest(self, bundle: str) -> Manifest | None:
        if bundle not in self._manifests:
            self._manifests[bundle] = published_manifest(self.store, bundle)
        return self._manifests[bundle]

    def _least(self, bundle: str, score: str) -> float:
        """Returns the score at or above which a frame of a bundle is taken."""
        what = self.spec.what
        if what.above is not None:
            return what.above
        if what.level is not None:
            return self._at_level(bundle, score, what.level)
        assert what.top is not None
        found = self.beats.merged(bundle, score)
        if found is not None and found.total:
            values, counts = found.table()
            above = counts[::-1].cumsum() / counts.sum()
            return float(values[::-1][np.searchsorted(above, what.top)])
        drawn = [f for f in self.stream if f.offer.get("bundle") == bundle and score in f.offer["scores"]]
        if not drawn:
            return np.inf
        return float(np.quantile([frame.offer["scores"][score] for frame in drawn], 1 - what.top))

    def _at_level(self, bundle: str, score: str, level: float) -> float:
        manifest = self._manifest(bundle)
        for spec in manifest.scores if manifest is not None else ():
            if spec.name == score:
                table = spec.calibration.quantiles
                return float(np.interp(level, table.levels, table.values))
        values, levels = calibration_pairs(self.store, bundle, score)
        if not values or levels[-1] < level:
            self.notes.append(f"{bundle}: no sample is at level {level:g} of {score}, so none is counted")
            return np.inf
        return float(values[int(np.searchsorted(np.maximum.accumulate(levels), level))])

    def _samples(self, thresholds: Thresholds, *, sketched: bool) -> tuple[Range, str]:
        """Returns the frames that the campaign would take, and what tells it."""
        ahead = self.days * self.blocks / self.back_days
        if sketched:
            by_block = [self._sketched(block, thresholds) for block in range(self.blocks)]
            drawn = sum(by_block) * self.beats.share if self.beats.share < 1 else None
            found = predicted(
                by_block, ahead=ahead, drawn=drawn, weight=1 / self.beats.share, confidence=_EACH
            )
            return self._cooled(found), "sketches"
        if not self.stream:
            raise _Refused(
                "a rule, a slice or a likeness is estimated from the random stream, of which these vehicles "
                f"sent nothing in the last {self.back_days:.2g} days"
            )
        since = self.now - self.back_days * _DAY_S
        totals = np.zeros(self.blocks)
        for frame in self.hits:
            block = int((frame.captured_at - since) / (self.now - since) * self.blocks)
            totals[min(self.blocks - 1, max(0, block))] += frame.weight
        weights = [frame.weight for frame in self.hits or self.stream]
        weight = sum(w * w for w in weights) / sum(weights)
        drawn = sum(frame.weight for frame in self.hits) / weight
        if not self.hits:
            self.notes.append(
                f"none of {len(self.stream)} frames of the random stream would have been taken: the interval "
                "says how many that still allows"
            )
        return self._cooled(
            predicted(list(totals), ahead=ahead, drawn=drawn, weight=weight, confidence=_EACH)
        ), "random stream"

    def _sketched(self, block: int, thresholds: Thresholds) -> float:
        what = self.spec.what
        if what.top is not None:
            # A target rate moves with the scores: it takes its share of whatever comes.
            return what.top * sum(n for (at, _vehicle), n in self.beats.frames.items() if at == block)
        return sum(
            self.beats.above(block, bundle, score, thresholds.above[bundle])
            for bundle, score in thresholds.score.items()
        )

    def _cooled(self, found: Range) -> Range:
        """Widens an estimate downwards by what a cool-down may leave out."""
        pause = self.spec.what.cool_down_s
        if pause <= 0:
            return found
        most = len(self.meant) * self.days * _DAY_S / pause
        cells = {(str(f.offer.get("vehicle")), int(f.captured_at // pause)) for f in self.hits}
        self.notes.append(
            "the cool-down leaves out neighbouring frames, of which a random stream shows few: the number "
            "may be anything down to the interval's lower end"
        )
        found = found.at_most(most)
        return Range(found.value, min(found.low, len(cells) * self.days / self.back_days / 2), found.high)

    def _size(self) -> Range | None:
        """Returns the mean size of the campaign's samples in bytes."""
        some = self.hits if len(self.hits) >= 10 else self.stream
        if len(some) >= 2:
            if some is not self.hits:
                self.notes.append("few frames of the stream are like those it takes: sizes are of all frames")
            return mean_of([f.size for f in some], [f.weight for f in some], confidence=_EACH)
        found = sizes(self.store, self.names)
        if len(found) < 2:
            self.notes.append("no sample of these vehicles is stored, so sizes are not known")
            return None
        self.notes.append("sizes are those of all stored samples of these vehicles")
        return mean_of(found, [1.0] * len(found), confidence=_EACH)

    def _bytes(self, samples: Range, size: Range) -> Range:
        found = samples.times(size)
        most = self.spec.how_much.bytes
        return found if most is None else found.at_most(float(most))

    def _limited(self, samples: Range, size: Range | None) -> tuple[Range, Range, float | None]:
        """Returns the samples within the campaign's limits, and when a limit is reached."""
        most, full = self.spec.how_much, None
        if most.per_cluster is not None:
            samples = self._varied(samples, most.per_cluster, most.similarity)
        limits = [] if most.samples is None else [float(most.samples)]
        if most.bytes is not None and size is not None and size.value > 0:
            limits.append(most.bytes / size.value)
        if limits:
            limit = min(limits)
            if samples.value > limit:
                full = self.days * limit / samples.value
            # Of bytes, the number of samples that fill them is known as well as their size.
            loose = limit if most.samples == limit or size is None else limit * size.high / max(size.low, 1)
            samples = Range(min(samples.value, limit), min(samples.low, limit), min(samples.high, loose))
        return samples, samples, full

    def _varied(self, samples: Range, copies: int, similarity: float) -> Range:
        """Lowers the lower end by what a quota per near-duplicate cluster may decline."""
        clusters: list[tuple[np.ndarray[Any, Any], float]] = []
        for frame in self.hits[:2000]:
            unit = _unit(frame.offer.get("embedding"))
            if unit is None:
                continue
            for at, (centre, weight) in enumerate(clusters):
                if centre.shape == unit.shape and float(centre @ unit) >= similarity:
                    clusters[at] = (centre, weight + frame.weight)
                    break
            else:
                clusters.append((unit, frame.weight))
        scale = self.days / self.back_days
        least = sum(min(float(copies), weight * scale) for _centre, weight in clusters)
        self.notes.append(
            "the quota per cluster declines near-duplicates: the stream's frames show "
            f"{len(clusters)} clusters; the lower end counts only those"
        )
        return Range(samples.value, min(samples.low, least / 2), samples.high)

    def _failure_share(self, thresholds: Thresholds, *, alone: bool) -> tuple[Range | None, str, int]:
        """Returns the share of failures among the campaign's samples, what tells it, and labels."""
        known = self._judged()
        taken = [(frame, known[frame.id]) for frame in self.hits if frame.id in known]
        if len(taken) >= _FEW_LABELS:
            weights = [frame.weight / probability for frame, (_failed, probability) in taken]
            failed = [float(failed) for _frame, (failed, _probability) in taken]
            found = weighted(weights, failed, _EACH)
            return Range(float(found.rate), float(found.low), float(found.high)), "labels", len(taken)
        point = self._operating_point(thresholds) if alone else None
        few = f"{len(taken)} labels in the random stream are of frames that it would take"
        if point is not None:
            self.notes.append(f"{few}: failures are by the bundle's calibration, which is not of the field")
            return point, "operating points", len(taken)
        why = "the bundle that they run is not published here, or has no operating points"
        if not alone:
            why = "the bundle's calibration says nothing of a rule, a slice or a likeness"
        self.notes.append(f"failures cannot be estimated: {few}, of {_FEW_LABELS} needed, and {why}")
        return None, "", len(taken)

    def _judged(self) -> dict[str, tuple[bool, float]]:
        found: dict[str, tuple[bool, float]] = {}
        since = self.now - self.back_days * _DAY_S
        for bundle in sorted({str(frame.offer.get("bundle")) for frame in self.hits}):
            try:
                found |= FieldTruth(self.store, Query(bundle, since=since, until=self.now)).judged()
            except StoreError:
                continue
        return found

    def _operating_point(self, thresholds: Thresholds) -> Range | None:
        """Returns the precision at the threshold, of the bundle that most frames are of."""
        found: list[Range] = []
        for bundle, score in thresholds.score.items():
            manifest = self._manifest(bundle)
            specs = [] if manifest is None else [each for each in manifest.scores if each.name == score]
            points = [p for each in specs for p in each.operating_points if p.failure_precision is not None]
            if not points:
                return None
            least = thresholds.above.get(bundle)
            what = self.spec.what
            if what.top is not None:
                point = min(points, key=lambda p: abs(np.log(max(p.upload_rate, 1e-9) / (what.top or 1.0))))
            elif least is not None and np.isfinite(least):
                point = min(points, key=lambda p: abs(p.threshold - least))
            else:
                return None
            precision = point.failure_precision
            assert precision is not None
            found.append(Range(precision.value, precision.low, precision.high))
        if not found:
            return None
        low, high = min(each.low for each in found), max(each.high for each in found)
        return Range(sum(each.value for each in found) / len(found), low, high)


def _unit(text: object) -> np.ndarray[Any, Any] | None:
    if not isinstance(text, str):
        return None
    try:
        found = unpack_embedding(text)
    except MessageError:
        return None
    length = float(np.linalg.norm(found))
    return found / np.float32(length) if length > 0 else None


def _count(found: Range) -> str:
    return f"{_round(found.value)} [{_round(found.low)}, {_round(found.high)}]"


def _round(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _gigabytes(found: Range) -> str:
    unit, name = (1e9, "GB") if found.value >= 1e8 else (1e6, "MB")
    return f"{found.value / unit:.3g} {name} [{found.low / unit:.3g}, {found.high / unit:.3g}]"


def described(found: Mapping[str, Any] | None) -> str:
    """Returns the text of a kept dry run; "" if there is none."""
    return "" if found is None else str(found.get("text", ""))
