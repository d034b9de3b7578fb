"""Implements `misfire retrain BUNDLE --head-only`: the failure head learns from the field, the network stays.

bundle + snapshot --train and holdout side, random stream--> FieldFrames --refit_bundle--> delta, next bundle

The test side is not read, and whatever belongs to a frozen test set is left out or refused, as by every
retraining. A sample counts as one of the random stream if its offer says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from misfire_export.delta.reading import HeadGraph, task_of
from misfire_export.delta.refit import FieldFrames, RoundOptions, refit_bundle
from misfire_fleet.actor import current_actor
from misfire_fleet.datasets.freezing import frozen_among
from misfire_fleet.datasets.snapshots import Snapshots
from misfire_fleet.datasets.splits import keys_of
from misfire_fleet.retrain.snapshot import SnapshotUploads, refuse_frozen, snapshot_uploads
from misfire_fleet.retrain.uploads import Uploads, uploads_of
from misfire_fleet.store import Store
from misfire_fleet.store.curated.lineage import Link, record
from misfire_fleet.store.records import SampleFilter, StoredSample
from misfire_fleet.store.schema import snapshots
from misfire_runtime.bundle import Bundle
from misfire_runtime.delta import Delta, write_delta
from misfire_runtime.delta.delta import require_writable
from misfire_runtime.delta.writing import require_delta_folder
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.tasks import Task

MAX_STREAM = 2000
"""Unlabelled frames of the random stream that quantiles are measured on: the newest."""


@dataclass(frozen=True)
class _Names:
    classes: tuple[str, ...]


@dataclass(frozen=True)
class BundleLearner:
    """Says how labels and pixels are read for a bundle, as a run does."""

    task: Task
    contract: InputContract
    record: _Names

    @classmethod
    def of(cls, bundle: Bundle) -> BundleLearner:
        """Returns the bundle's. Raises ConfigError if it does not name its classes."""
        manifest = bundle.manifest
        task = task_of(manifest)
        if (task.by_class or task.independent) and not manifest.classes:
            raise ConfigError(
                f"{bundle.path} does not name its classes, so labels cannot be read for it: export it with "
                "--classes"
            )
        return cls(task, manifest.input, _Names(manifest.classes))


@dataclass(frozen=True)
class HeadRound:
    """Holds the result of a head-only round.

    bundle: the next bundle's folder, None if it was not asked for.  deleted: samples of the snapshot that
    were deleted since.
    """

    delta: Delta
    uploads: Uploads
    bundle: Path | None
    snapshot: str
    deleted: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the object that --json prints."""
        about = self.delta.about
        return {
            "delta": str(self.delta.path),
            "delta_bytes": self.delta.bytes,
            "base": about.base.label,
            "result": about.result.label,
            "bundle": None if self.bundle is None else str(self.bundle),
            "tensors": len(about.tensors),
            "snapshot_name": self.snapshot,
            "deleted": self.deleted,
            "skipped": self.uploads.skipped,
            "problems": list(self.uploads.problems),
            **about.report,
        }


def retrain_head(
    bundle: Path,
    store: Store,
    *,
    snapshot: str | None,
    out: Path,
    bundle_out: Path | None = None,
    version: str | None = None,
    seed: int = 0,
) -> HeadRound:
    """Fits the head of a bundle again on a snapshot, and writes the delta and perhaps the next bundle.

    Args:
        bundle: folder of the bundle.
        store: the store with the snapshot.
        snapshot: its name. The head is fitted on the train side and judged on the holdout side.
        out: folder for the delta.
        bundle_out: folder for the next bundle; None writes none.
        version: of the next bundle. Default: the bundle's with the last number one higher.
        seed: of folds and batches.

    Raises:
        ConfigError: no snapshot is given, or the labels do not fit the bundle.
        BundleError: the bundle is damaged, or a folder is in use.
        ExportError: the bundle has no head that can be fitted again, or there are too few frames.
        StoreError: the snapshot was altered, or something to fit on belongs to a frozen test set.
    """
    if snapshot is None:
        raise ConfigError("a head-only round needs a snapshot: --snapshot NAME (misfire fleet snapshot)")
    # Checked before anything is read, which may take minutes.
    require_delta_folder(out)
    if bundle_out is not None:
        require_writable(bundle_out)
    base = Bundle.open(bundle)
    HeadGraph.open(base)
    learner = BundleLearner.of(base)
    _refuse_earlier(store, base)
    given = snapshot_uploads(store, snapshot, run=learner)
    frames = _frames(store, given, snapshot, learner)
    options = RoundOptions(version or next_version(base.manifest.version), given.sha256, seed=seed)
    if options.version == base.manifest.version:
        raise ConfigError(f"--version {options.version}: that is the version of {base.manifest.label} itself")
    refitted = refit_bundle(base, frames, options)
    with ExitStack() as stack:
        folder = bundle_out
        if folder is None:
            around = stack.enter_context(tempfile.TemporaryDirectory(prefix="misfire-head-"))
            folder = Path(around) / "bundle"
        delta = write_delta(base, refitted, out=out, bundle_out=folder)
    _record(store, base, delta, given)
    return HeadRound(delta, given.all(), bundle_out, snapshot, given.deleted)


def next_version(version: str) -> str:
    """Returns the version with its third number one higher, without what follows it.

    >>> next_version("1.2.9-rc1")
    '1.2.10'
    """
    major, minor, rest = version.split(".", 2)
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return f"{major}.{minor}.{int(digits) + 1}"


def describe_round(found: HeadRound) -> str:
    """Returns the outcome as lines for people."""
    report, about = found.delta.about.report, found.delta.about
    labelled, left, held = report["labelled"], report["left_out"], report["held_out"]
    tensors = len(about.tensors)
    lines = [
        f"{about.base.label} -> {about.result.label}: {found.delta.bytes} bytes in {found.delta.path}",
        f"fitted on {labelled['fitted_on']} labelled frames ({labelled['of_the_random_stream']} of the "
        f"random stream), held out {labelled['held_out']} ({labelled['held_out_of_the_random_stream']})",
        f"the network is unchanged: the same answers bit for bit on {report['network_compared_on']} frames; "
        + (f"{tensors} tensors of {about.score} are new" if tensors else f"{about.score} is unchanged, too"),
    ]
    if left["gain"] is not None and left["auroc_before"] is not None:
        lines.append(
            f"failure AUROC on {left['by']} left out ({left['failures']} failures in {left['frames']} "
            f"frames): {100 * left['auroc_before']:.1f} before, {100 * left['gain']:+.1f} "
            f"(standard error {100 * left['error']:.1f})"
        )
    if "auroc_after" in held:
        lines.append(
            f"failure AUROC on the holdout ({held['failures']} failures in {held['frames']} frames): "
            f"{100 * held['auroc_before']:.1f} before, {100 * held['auroc_after']:.1f} after "
            f"({100 * held['low']:+.1f} .. {100 * held['high']:+.1f})"
        )
    lines.append(f"calibrated on {report['stream_frames']} frames of the random stream")
    lines += [f"note: {note}" for note in report["notes"]]
    if found.bundle is not None:
        lines.append(f"bundle: {found.bundle}")
    return "\n".join(lines)


def _frames(store: Store, given: SnapshotUploads, snapshot: str, learner: BundleLearner) -> FieldFrames:
    fit = given.train.examples
    held = None if given.holdout is None else given.holdout.examples
    random = _random(store, [*fit.ids, *(held.ids if held is not None else ())])
    return FieldFrames(
        fit=fit,
        fit_random=_places(fit, random),
        held=held,
        held_random=np.empty(0, bool) if held is None else _places(held, random),
        stream=_stream(store, snapshot, set(fit.groups), learner),
    )


def _places(examples: Examples, random: Mapping[str, bool]) -> NDArray[np.bool_]:
    return np.array([random.get(each, False) for each in examples.ids], bool)


def _random(store: Store, ids: list[str]) -> dict[str, bool]:
    return {sample.id: sample.random for sample in store.among(ids)}


def _stream(store: Store, snapshot: str, fitted: set[str], learner: BundleLearner) -> Examples | None:
    """Returns unlabelled frames of the random stream, of groups that are neither fitted on nor frozen."""
    by = Snapshots(store).read(snapshot)[0].query.group_by

    def group(sample: StoredSample) -> str:
        offer = sample.offer.model_dump_json()
        return keys_of(sample.vehicle, sample.captured_at, offer, needed=(by,))[by]

    found = store.newest(MAX_STREAM, SampleFilter(random=True, labelled=False))
    frozen = frozen_among(store, [sample.id for sample in found])
    usable = [
        sample.id
        for sample in found
        if sample.media_type.startswith("image/")
        and not sample.unreadable
        and sample.id not in frozen
        and group(sample) not in fitted
    ]
    if not usable:
        return None
    # Only the pictures are read; a number stands where a label would be.
    zero = np.asarray(0, np.int64)
    return uploads_of(
        store, usable, target=lambda _: zero, group=group, run=learner, what="the random stream"
    ).examples


def _refuse_earlier(store: Store, bundle: Bundle) -> None:
    """Raises StoreError if the bundle came of a snapshot that trained on what is a frozen test set now."""
    sha256 = bundle.manifest.lineage.snapshot_id
    if sha256 is None:
        return
    with store.database.read() as connection:
        name = connection.scalar(select(snapshots.c.name).where(snapshots.c.sha256 == sha256))
    if name is None:
        return
    members = Snapshots(store).read(name)[0].members
    ids = [member.id for member in members if member.side != "test"]
    refuse_frozen(store, ids, what=f"{bundle.manifest.label}, which came of snapshot {name}")


def _record(store: Store, base: Bundle, delta: Delta, given: SnapshotUploads) -> None:
    """Records that the next bundle came of the snapshot, and of the run whose network it has."""
    child = delta.about.result.label
    detail = {"head_only": True, "base": base.manifest.label, "created_at": delta.about.created_at}
    links = [Link("bundle", child, "run", base.manifest.lineage.run_id, detail=detail)]
    if given.name is not None:
        links.append(
            Link("bundle", child, "snapshot", given.name, detail=detail | {"snapshot_sha256": given.sha256})
        )
    record(store.deletion, links, actor=current_actor())
