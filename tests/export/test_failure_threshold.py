"""A bundle counts failures as its run does: above the threshold that run.json records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from misfire_export.options import Options
from misfire_export.sources.frames import Frames
from misfire_export.sources.run import export_run
from misfire_train.data import Examples
from misfire_train.runs import FailureRecord, Run

pytestmark = pytest.mark.slow


def losses_of(run: Run, examples: Examples) -> Tensor:
    images = examples.batch(range(len(examples)), run.contract)
    return run.task.sample_loss(run.model(images), torch.as_tensor(examples.targets))


def test_the_recorded_threshold_goes_into_the_bundle(
    digits_run: Run, digits_parts: dict[str, Examples], out: Path
) -> None:
    threshold = float(torch.quantile(losses_of(digits_run, digits_parts["holdout"]), 0.7))
    failure = FailureRecord(threshold=threshold, source="stated in the configuration")
    run = replace(digits_run, record=digits_run.record.model_copy(update={"failure": failure}))
    calibration = digits_parts["calibration"]
    # Stacked learns failures by the same rule; it refuses a holdout with fewer than ten of them.
    bundle = export_run(
        run,
        Frames(calibration, digits_parts["train"], digits_parts["holdout"]),
        out=out,
        options=Options(
            "digits",
            "1.0.0",
            scores=("msp", "stacked"),
            score_options={"stacked": {"components": ("msp", "energy")}},
            default_score="msp",
        ),
    )
    report = bundle.manifest.extra["calibration"]
    failures = int((losses_of(run, calibration) > threshold).sum())
    assert report["failure_threshold"] == threshold
    assert abs(report["failures"] - failures) <= 1
    assert 0 < report["failures"] < report["frames"]
