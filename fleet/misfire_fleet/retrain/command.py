"""Implements `misfire retrain`: makes the next run and bundle from the store's uploads and their labels.

store + snapshot or labels.csv --> Examples --retrain_run--> RUN2 --export_run--> bundle, and links of lineage
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_runtime.errors import ConfigError
from misfire_train.options import AsJson, DataFolder

if TYPE_CHECKING:
    from misfire_fleet.retrain.snapshot import SnapshotUploads
    from misfire_fleet.retrain.uploads import Uploads
    from misfire_fleet.store import Store
    from misfire_train.data import Dataset
    from misfire_train.progress import Reporter
    from misfire_train.retraining import Retrained
    from misfire_train.runs import Run
    from misfire_train.train_config import MixtureTable


@dataclass(frozen=True)
class Outcome:
    """Holds the result of a retraining, the uploads it used, and the folder of the exported bundle."""

    retrained: Retrained
    uploads: Uploads
    bundle: Path | None
    snapshot: str | None = None
    """Name of the snapshot that it was trained on; None: labels.csv."""
    deleted: int = 0
    """Samples of the snapshot that were deleted since."""

    @property
    def run(self) -> Run:
        """Returns the new run."""
        return self.retrained.run

    @property
    def before(self) -> dict[str, float]:
        """Returns the parent run's accuracies on the test half, `clean` and `shifted`, and its AUROCs."""
        return self.retrained.before

    @property
    def after(self) -> dict[str, float]:
        """Returns the same numbers of the new run."""
        return self.retrained.after

    def to_dict(self) -> dict[str, Any]:
        """Returns the object that --json prints."""
        names = ("value", "low", "high")
        return {
            "run": str(self.run.path),
            "run_id": self.run.record.run_id,
            "parent_run_id": self.run.record.parent_run_id,
            "bundle": None if self.bundle is None else str(self.bundle),
            "snapshot": self.snapshot,
            "snapshot_sha256": self.run.record.snapshot,
            "deleted": self.deleted,
            "uploads_stored": self.uploads.stored,
            "uploads_used": len(self.uploads.examples),
            "uploads_train": self.retrained.uploads["train"],
            "uploads_holdout": self.retrained.uploads["holdout"],
            "unlabelled": self.uploads.unlabelled,
            "skipped": self.uploads.skipped,
            "problems": list(self.uploads.problems),
            "accuracy_before_clean": self.before["clean"],
            "accuracy_after_clean": self.after["clean"],
            "accuracy_before_shifted": self.before["shifted"],
            "accuracy_after_shifted": self.after["shifted"],
            "difference": {
                view: dict(zip(names, values, strict=True))
                for view, values in self.retrained.difference.items()
            },
            "failure_auroc_before": {k: v for k, v in self.before.items() if k.startswith("auroc_")},
            "failure_auroc_after": {k: v for k, v in self.after.items() if k.startswith("auroc_")},
        }


def retrain_from_store(
    run: Run,
    store: Store,
    *,
    labels: Path | None = None,
    snapshot: str | None = None,
    dataset: Dataset,
    out: Path,
    bundle_out: Path | None = None,
    version: str = "2.0.0",
    reporter: Reporter | None = None,
    slice_by: str = "vehicle",
    **options: Any,
) -> Outcome:
    """Retrains on the store's labelled uploads and, with `bundle_out`, exports the new run.

    The store learns which run came of which snapshot, and which bundle of which run.

    Args:
        run: the run to continue from.
        store: the store with the uploads.
        labels: CSV with the columns id and label.
        snapshot: name of a snapshot, instead of `labels`: its train side is trained on, its holdout side is
            held out for the score, and its test side is not read.
        dataset: the data set of `run`.
        out: folder for the new run.
        bundle_out: empty or new folder for the bundle; None exports none.
        version: semantic version of the bundle.
        reporter: prints progress.
        slice_by: what uploads are sliced by, for the slice balance of the schedule's mixture.
        options: passed to `retrain_run` (schedule, resume, command).

    Raises:
        ConfigError: `bundle_out` is not empty, the labels are invalid, or there is not one source of labels.
        StoreError: no label belongs to a usable image, the snapshot was altered, or something to train on
            belongs to a frozen test set.
    """
    from misfire_fleet.retrain.origins import record_origins
    from misfire_fleet.retrain.snapshot import refuse_run
    from misfire_fleet.retrain.uploads import slices_of
    from misfire_train.retraining import retrain_run

    # Checked before the training, which may take hours, and not only by the export after it.
    if bundle_out is not None and bundle_out.exists() and any(bundle_out.iterdir()):
        raise ConfigError(f"{bundle_out} is not empty; choose another --bundle-out")
    refuse_run(store, run)
    given = _given(store, labels, snapshot, run=run)
    retrained = retrain_run(
        run,
        given.train.examples,
        held=None if given.holdout is None else given.holdout.examples,
        snapshot=given.sha256,
        slices=slices_of(store, given.train.examples.ids, by=slice_by),
        dataset=dataset,
        out=out,
        reporter=reporter,
        **options,
    )
    bundle = None
    if bundle_out is not None:
        from misfire_export.options import Options as ExportOptions
        from misfire_export.sources.frames import frames_of_run
        from misfire_export.sources.run import export_run

        bundle = export_run(
            retrained.run,
            frames_of_run(retrained.run, dataset),
            out=bundle_out,
            options=ExportOptions(
                f"retrained-{dataset.name.partition(':')[0]}", version, snapshot_id=given.sha256
            ),
        )
    record_origins(store, retrained.run, snapshot=given.name, bundle=bundle)
    return Outcome(retrained, given.all(), bundle_out, given.name, given.deleted)


def _given(store: Store, labels: Path | None, snapshot: str | None, *, run: Run) -> SnapshotUploads:
    """Returns what to train on. Raises ConfigError unless there is one source of labels."""
    from misfire_fleet.retrain.snapshot import SnapshotUploads, refuse_frozen, snapshot_uploads
    from misfire_fleet.retrain.uploads import labelled_uploads

    if (labels is None) == (snapshot is None):
        raise ConfigError("say where the labels are: --snapshot NAME, or --labels FILE, and not both")
    if snapshot is not None:
        return snapshot_uploads(store, snapshot, run=run)
    uploads = labelled_uploads(store, labels, run=run)  # type: ignore[arg-type]
    refuse_frozen(store, uploads.examples.ids, what=str(labels))
    return SnapshotUploads(None, None, uploads, None, 0)


def retrain(
    *,
    run: Annotated[
        Path,
        typer.Argument(help="Continue from the run in this folder; with --head-only, from this bundle."),
    ],
    out: Annotated[Path, typer.Option(help="Write the new run to this folder; with --head-only, the delta.")],
    head_only: Annotated[
        bool,
        typer.Option(
            "--head-only",
            help="Leave a bundle's network as it is, fit only its failure head again, and write a delta.",
        ),
    ] = False,
    snapshot: Annotated[
        str | None,
        typer.Option(help="Train on the train side of this snapshot; its holdout is held out for the score."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Read labels from this CSV with the columns id and label, instead of --snapshot."),
    ] = None,
    uploads: Annotated[
        Path | None, typer.Option(help="Read uploads from the store in this folder: fleet.sqlite and blobs/.")
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="Read uploads from this database: postgresql://USER@HOST/NAME.")
    ] = None,
    blobs: Annotated[
        str | None, typer.Option(help="Read the blobs of --database from this folder or s3://BUCKET/PREFIX.")
    ] = None,
    data: DataFolder = None,
    bundle_out: Annotated[
        Path | None, typer.Option(help="Write the new bundle to this folder. Default: no bundle.")
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(
            help="Semantic version of the new bundle. Default: 2.0.0; with --head-only, the next one."
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Maximum number of epochs. Default: half of the current run's, at least 4."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed. Default: that of the current run.")] = None,
    replay: Annotated[
        float | None, typer.Option(help="Share of an epoch that is old data. Default: the run's, 0.67.")
    ] = None,
    class_balance: Annotated[
        float | None,
        typer.Option(
            help="Show rare classes more often: 0 (no) to 1 (all classes equally). Default: the run's."
        ),
    ] = None,
    slice_balance: Annotated[
        float | None, typer.Option(help="Show rare slices of uploads more often: 0 to 1. Default: the run's.")
    ] = None,
    slice_by: Annotated[
        str,
        typer.Option(
            help="Slice uploads by vehicle, day, class, or a key of their context, such as weather."
        ),
    ] = "vehicle",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where an interrupted run stopped.")
    ] = False,
    mlflow: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Log parameters, numbers and lineage to this MLflow server."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Retrain on what the fleet uploaded, and print what that changed on the frozen test half."""
    if head_only:
        unused = {"--labels": labels, "--epochs": epochs, "--mlflow": mlflow, "--resume": resume or None}
        for name, value in unused.items():
            if value is not None:
                raise ConfigError(f"{name} does not go with --head-only: no network is trained")
        with _open_store(uploads, database, blobs) as store:
            _retrain_head(
                run,
                store,
                snapshot=snapshot,
                out=out,
                bundle_out=bundle_out,
                version=version,
                seed=seed or 0,
                as_json=as_json,
            )
        return
    from misfire_fleet.retrain.tracking import Tracking
    from misfire_train.data import load_dataset
    from misfire_train.progress import Reporter
    from misfire_train.provenance import command_line
    from misfire_train.retraining import Schedule
    from misfire_train.runs import load_run

    # Before the training, which may take hours: a server that is not there is found at once.
    tracking = None if mlflow is None else Tracking(mlflow)
    current = load_run(run)
    mixture = changed_mixture(
        current, replay=replay, class_balance=class_balance, slice_balance=slice_balance
    )
    dataset = load_dataset(current.record.dataset.name, root=data or data_of(current))
    with _open_store(uploads, database, blobs) as store:
        outcome = retrain_from_store(
            current,
            store,
            labels=labels,
            snapshot=snapshot,
            dataset=dataset,
            out=out,
            bundle_out=bundle_out,
            version=version or "2.0.0",
            schedule=Schedule(epochs=epochs, seed=seed, mixture=mixture),
            slice_by=slice_by,
            resume=resume,
            command=command_line(),
            reporter=Reporter(),
        )
    typer.echo(json.dumps(outcome.to_dict()) if as_json else describe(outcome))
    if tracking is not None:
        folder = None if outcome.bundle is None else outcome.bundle.name
        tracking.log(outcome.retrained, snapshot=outcome.snapshot, bundle=folder)


def changed_mixture(run: Run, **stated: float | None) -> MixtureTable:
    """Returns the run's mixture with the values that are stated. Raises ConfigError on an invalid one."""
    from misfire_runtime.toml import TomlFile
    from misfire_train.train_config import MixtureTable

    values = run.config.mixture.model_dump()
    values |= {name: value for name, value in stated.items() if value is not None}
    return TomlFile({}, "", "options").check(MixtureTable, values)


def _retrain_head(bundle: Path, store: Store, *, as_json: bool, **options: Any) -> None:
    from misfire_fleet.retrain.head_only import describe_round, retrain_head

    found = retrain_head(bundle, store, **options)
    typer.echo(json.dumps(found.to_dict()) if as_json else describe_round(found))


def describe(outcome: Outcome) -> str:
    """Returns the outcome as a table for people."""
    numbers = outcome.to_dict()
    lines = [
        f"run {numbers['run_id']} in {numbers['run']}, child of {numbers['parent_run_id']}",
        f"uploads: {numbers['uploads_stored']} stored, {numbers['uploads_used']} labelled and used "
        f"({numbers['uploads_train']} trained on, {numbers['uploads_holdout']} held out for the score), "
        f"{numbers['unlabelled']} without a label",
    ]
    skipped = outcome.uploads.skipped.items()
    lines += [f"skipped, {name.replace('_', ' ')}: {count}" for name, count in skipped if count]
    heading = f"{outcome.run.task.accuracy_name} on the test half"
    lines.append(f"{heading:<28}{'before':>9}{'after':>9}   difference (95 % interval)")
    for view, (value, low, high) in outcome.retrained.difference.items():
        before, after = outcome.before[view], outcome.after[view]
        lines.append(
            f"{view:<28}{100 * before:>8.2f}%{100 * after:>8.2f}%   "
            f"{100 * value:+.2f} ({100 * low:+.2f} .. {100 * high:+.2f})"
        )
    if outcome.bundle is not None:
        lines.append(f"bundle: {outcome.bundle}")
    return "\n".join(lines)


def data_of(run: Run) -> Path | None:
    """Returns the data folder of the run's training, if that folder still exists."""
    named = run.record.config.get("data")
    return Path(named) if named and Path(named).is_dir() else None


def _open_store(uploads: Path | None, database: str | None, blobs: str | None) -> Store:
    """Opens an existing store, and never creates one. Raises ConfigError."""
    from misfire_fleet.store import Store

    if database is None:
        if uploads is None:
            raise ConfigError("say where the uploads are: --uploads FLEET_DIR, or --database with --blobs")
        if not (uploads / "fleet.sqlite").is_file():
            raise ConfigError(f"{uploads} is not a fleet folder: it has no fleet.sqlite")
        return Store.open_folder(uploads)
    if blobs is None and uploads is None:
        raise ConfigError("--database needs --blobs, the folder or URL of its pictures")
    return Store.open(database, blobs if blobs is not None else uploads / "blobs")  # type: ignore[operator]
