"""Judges masks by running the bundle again on the stored picture: an offer carries only the classes' shares.

sample, mask --decoded, Scorer--> answer --the task's rule--> failed
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from misfire_fleet.errors import SampleGoneError
from misfire_fleet.labels.content import Label
from misfire_fleet.retrain.targets import Reading, read_target
from misfire_fleet.store import Store
from misfire_fleet.store.records import StoredSample
from misfire_fleet.truth.judging import UnjudgedError
from misfire_runtime.errors import ConfigError, ImageError
from misfire_runtime.preprocess import decode_image
from misfire_train.judge.bundle_judging import open_bundle


class MaskJudge:
    """Runs a segmenter's bundle on pictures of a store. A context manager.

    Raises:
        ConfigError: the bundle does not record the loss above which a frame fails.
        BundleError, EngineError: it cannot be opened or run.
    """

    def __init__(self, store: Store, bundle: Path) -> None:
        self._store = store
        self._subject = open_bundle(bundle)
        manifest = self._subject.manifest
        recorded = manifest.extra.get("calibration", {}).get("failure_threshold")
        task = self._subject.task
        self._task = task if recorded is None else task.with_threshold(float(recorded))
        if not self._task.knows_failures:
            self.close()
            raise ConfigError(f"{manifest.label} does not record the loss above which a frame fails")
        self._reading = Reading(self._task, manifest.classes, manifest.input)

    def failed(self, sample: StoredSample, label: Label) -> bool:
        """Returns whether the bundle fails on a picture. Raises UnjudgedError if it cannot be shown to it."""
        try:
            image = decode_image(self._store.read_blob(sample.id), name=f"sample {sample.id[:16]}")
        except (ImageError, SampleGoneError) as error:
            raise UnjudgedError("no picture that the bundle could be run on") from error
        size = (sample.width, sample.height)
        try:
            target = read_target(label, self._reading, size=size, where=f"sample {sample.id[:16]}")
        except ConfigError as error:
            raise UnjudgedError("a mask of other classes, or of another size") from error
        scored = self._subject.scorer.score(image)
        outputs = torch.from_numpy(np.asarray(scored.outputs[self._subject.output])).float()
        targets = self._task.collate(self._task.stack([target]))
        return bool(self._task.failed(self._task.condense(outputs), targets))

    def __enter__(self) -> MaskJudge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the engine."""
        self._subject.close()
