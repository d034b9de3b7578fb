"""Logs a retraining to MLflow: parameters, numbers before and after, and lineage as tags.

One run of MLflow for each run of misfire: it is looked for by its id, so logging twice adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from misfire_fleet.errors import StoreUnavailableError
from misfire_runtime.errors import MissingExtraError

if TYPE_CHECKING:
    from misfire_train.retraining import Retrained

EXPERIMENT = "misfire"
_RUN_ID = "misfire.run_id"
_MOST_PARAMS = 100
"""Parameters per request: MLflow's servers take at most this many."""
_LONGEST = 500
"""Characters of a value: longer ones are refused by some of MLflow's databases."""


class Tracking:
    """Logs to one MLflow server or folder; made before the training, so that a wrong URI is found then.

    Args:
        uri: `http(s)://HOST`, `sqlite:///FILE`, or a folder, as MLflow's `--backend-store-uri`.

    Raises:
        MissingExtraError: MLflow is not installed.
        StoreUnavailableError: MLflow does not answer, or refuses.
    """

    def __init__(self, uri: str) -> None:
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "--mlflow needs mlflow, which is not installed: "
                "pip install 'misfire[mlflow]' -c constraints.txt"
            ) from error
        self._uri = uri
        self._error: type[Exception] = MlflowException
        with _Translated(self):
            self._client: Any = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(EXPERIMENT)
            self._experiment = (
                found.experiment_id if found is not None else self._client.create_experiment(EXPERIMENT)
            )

    def log(self, retrained: Retrained, *, snapshot: str | None, bundle: str | None) -> str:
        """Logs a finished retraining; returns the id of MLflow's run.

        Args:
            retrained: the new run, and its numbers before and after.
            snapshot: name of the snapshot that it was trained on.
            bundle: name of the bundle's folder.

        Raises:
            StoreUnavailableError: MLflow does not answer; the run of misfire is complete.
        """
        record = retrained.run.record
        with _Translated(self):
            same = self._client.search_runs(
                [self._experiment], filter_string=f"tags.`{_RUN_ID}` = '{record.run_id}'", max_results=1
            )
            if same and same[0].info.status == "FINISHED":
                return str(same[0].info.run_id)
            if same:
                run_id = same[0].info.run_id
            else:
                tags = {_RUN_ID: record.run_id, "mlflow.runName": retrained.run.path.name}
                run_id = self._client.create_run(self._experiment, tags=tags).info.run_id
            self._log_batches(run_id, retrained, {"misfire.snapshot": snapshot, "misfire.bundle": bundle})
            self._client.set_terminated(run_id)
            return str(run_id)

    def _log_batches(self, run_id: str, retrained: Retrained, lineage: Mapping[str, str | None]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        record = retrained.run.record
        lineage = dict(lineage) | {
            "misfire.parent_run_id": record.parent_run_id,
            "misfire.snapshot_sha256": record.snapshot,
            "misfire.dataset": record.dataset.name,
            "misfire.dataset_sha256": record.dataset.sha256,
            "misfire.git_commit": record.git_commit,
        }
        tags = [RunTag(key, str(value)) for key, value in lineage.items() if value is not None]
        numbers = {f"before.{name}": value for name, value in retrained.before.items()}
        numbers |= {f"after.{name}": value for name, value in retrained.after.items()}
        metrics = [Metric(name, float(value), 0, 0) for name, value in numbers.items()]
        params = [Param(name, value[:_LONGEST]) for name, value in _flat(record.config)]
        self._client.log_batch(run_id, metrics=metrics, tags=tags)
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(run_id, params=params[start : start + _MOST_PARAMS])

    def translate(self, error: BaseException) -> Exception | None:
        """Returns the error to raise instead of one of MLflow's, or None if it is none."""
        # requests' errors are OSErrors.
        if not isinstance(error, (self._error, OSError)):
            return None
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return StoreUnavailableError(f"MLflow at {_without_password(self._uri)}: {first[:300]}")


class _Translated:
    """Turns MLflow's errors into one of ours."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        ours = None if error is None else self._tracking.translate(error)
        if ours is not None:
            raise ours from error


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted name, value) of nested tables."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _without_password(uri: str) -> str:
    scheme, slashes, rest = uri.partition("://")
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}" if slashes else uri
