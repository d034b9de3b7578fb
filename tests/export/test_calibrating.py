"""What is said of thresholds and predicted losses comes from other frames; the gate holds out corruptions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from misfire_export.errors import ExportError
from misfire_export.measure.calibrate import calibrate, operating_points, report
from misfire_export.measure.folds import deal
from misfire_export.measure.run import Measurement
from misfire_export.measure.trigger import Shifts, choose_trigger
from misfire_train.data import Examples
from misfire_train.fitting.refit import Refit, refit_of_run
from misfire_train.metrics import fit_loss_curve
from misfire_train.runs import Run


def measurement(
    scores: dict[str, NDArray[np.float64]],
    failed: NDArray[np.bool_],
    *,
    loss: NDArray[np.float64] | None = None,
    groups: tuple[str, ...] | None = None,
) -> Measurement:
    ids = tuple(f"frame-{i}" for i in range(len(failed)))
    return Measurement(
        scores=scores,
        loss=failed.astype(np.float64) if loss is None else loss,
        failed=failed,
        groups=groups or ids,
        ids=ids,
        accuracy=0.0,
        threshold=None,
    )


def test_folds_keep_drives_whole_where_there_are_enough() -> None:
    groups = [f"drive-{i % 12}" for i in range(240)]
    folds = deal(groups)
    assert folds.whole and sorted(np.bincount(folds.members)) == [40, 40, 40, 60, 60]
    for name in set(groups):
        assert (
            len({int(fold) for fold, group in zip(folds.members, groups, strict=True) if group == name}) == 1
        )
    few = deal(["one"] * 30 + ["two"] * 20)
    assert not few.whole and set(np.bincount(few.members)) == {10}
    assert "frames" in few.about and "groups" in folds.about


def test_a_loss_curve_is_judged_on_frames_that_did_not_set_it() -> None:
    """One drive's losses are ten times the others', which predict them without knowing that."""
    rng = np.random.default_rng(0)
    groups = tuple(f"drive-{i // 40}" for i in range(200))
    score = rng.normal(size=200)
    loss = np.exp(score) * np.where(np.arange(200) < 40, 10.0, 1.0)
    measured = measurement({"learned": score}, loss > 2, loss=loss, groups=groups)
    folds = deal(groups)
    found = report("learned", measured, folds=folds, predicts_loss=True)["reliability"]
    assert "5 folds of whole groups" in found["cross_fitted"]
    shipped = calibrate("learned", measured, engine="e", precision="fp32", predicts_loss=True)
    assert shipped.loss_scale is not None and shipped.expected_loss is not None
    in_sample = shipped.loss_scale * np.exp(score)
    assert in_sample.mean() == pytest.approx(loss.mean()), "on its own frames c has no bias by construction"
    predicted = np.zeros(200)
    for inside, others in folds:
        curve = fit_loss_curve(score[others], loss[others])
        assert curve is not None
        predicted[inside] = curve.predict(score[inside])
    assert found["bias"] == pytest.approx(predicted.mean() / loss.mean())
    assert abs(found["bias"] - 1) > 0.01
    assert 0 <= found["within"] <= found["consistent"] <= 10
    # The vehicle reads off its table what the curve says.
    whole = fit_loss_curve(score, loss)
    assert whole is not None
    for value in (-9.0, -0.3, 0.0, 0.7, 9.0):
        assert shipped.expected_loss.expected(value) == pytest.approx(whole.predict([value])[0])


def test_operating_points_count_what_other_frames_thresholds_flag() -> None:
    """One drive scores higher throughout: the others' thresholds flag more of it than the rate asked for."""
    rng = np.random.default_rng(1)
    groups = tuple(f"drive-{i // 40}" for i in range(200))
    score = rng.normal(size=200) + np.where(np.arange(200) < 40, 3.0, 0.0)
    failed = rng.random(200) < 0.3
    points = operating_points(
        "learned", measurement({"learned": score}, failed, groups=groups), folds=deal(groups), rates=(0.1,)
    )
    threshold = np.sort(score)[-20]
    assert points[0].threshold == pytest.approx(threshold), "what ships is set on all frames"
    assert points[0].upload_rate > 0.15, "in sample it would be 0.1 exactly"


def test_frames_that_no_threshold_flags_are_no_division_by_zero() -> None:
    score = np.repeat(np.arange(5.0), 10)
    failed = np.arange(50) % 7 == 0
    groups = tuple(f"g{i}" for i in np.repeat(np.arange(5), 10))
    for point in operating_points("s", measurement({"s": score}, failed, groups=groups), folds=deal(groups)):
        assert (
            0 <= point.failure_precision.low <= point.failure_precision.value <= point.failure_precision.high
        )


class Scripted:
    """What a graph would measure: the learned score is right on clean frames, under some corruptions not."""

    def __init__(self, frames: Examples, *, wrong_under: tuple[str, ...], order: tuple[str, ...]) -> None:
        self.frames, self.wrong_under, self.left = frames, wrong_under, list(order)

    def clean(self) -> Measurement:
        return self._made(0, wrong=False)

    def __call__(self, frames: Examples) -> Measurement:
        family = self.left.pop(0)
        assert frames.ids == self.frames.ids
        return self._made(len(self.left) + 1, wrong=family in self.wrong_under)

    def _made(self, seed: int, *, wrong: bool) -> Measurement:
        rng = np.random.default_rng(seed)
        failed = rng.random(len(self.frames)) < 0.35
        noise = rng.normal(size=(2, len(failed)))
        learned = noise[0] if wrong else failed + 0.3 * noise[0]
        ids, groups = self.frames.ids, tuple(f"drive-{i % 8}" for i in range(len(failed)))
        made = measurement({"learned": learned, "free": failed + noise[1]}, failed)
        return replace(made, ids=ids, groups=groups)


@pytest.fixture(scope="module")
def gate_frames(digits_parts: dict[str, Examples]) -> Examples:
    return digits_parts["calibration"]


def trigger(
    frames: Examples,
    shifts: tuple[str, ...],
    *,
    wrong_under: tuple[str, ...] = (),
    refit: Refit | None = None,
) -> tuple[str, dict[str, object]]:
    script = Scripted(frames, wrong_under=wrong_under, order=shifts)
    return choose_trigger(
        script.clean(),
        frames,
        measure=script,
        free={"free"},
        fallback="free",
        refit=refit,
        shifts=Shifts(shifts),
        seed=0,
    )


def test_a_learned_score_must_win_under_held_out_corruptions_too(gate_frames: Examples) -> None:
    winner, gate = trigger(gate_frames, ("noise", "fog"))
    assert winner == "learned" and "held-out corruptions" in str(gate["verdict"])
    assert gate["shifts"] == ["noise", "fog"] and gate["shifted_frames"] == len(gate_frames)
    winner, gate = trigger(gate_frames, ("noise", "fog"), wrong_under=("fog",))
    assert winner == "free" and "corruptions" in str(gate["verdict"])
    assert trigger(gate_frames, ())[0] == "learned", "on clean frames alone it would have been chosen"


def test_a_family_that_the_head_knows_is_judged_by_a_head_that_does_not(
    gate_frames: Examples, digits_run: Run, digits_parts: dict[str, Examples]
) -> None:
    refit = refit_of_run(
        digits_run, train=digits_parts["train"].take(range(200)), holdout=digits_parts["holdout"]
    )
    assert refit is not None and refit.possible and "fog" in refit.families
    seen: list[str] = []

    class Recording(Refit):
        def scores(self, family: str, frames: Examples) -> NDArray[np.float64]:
            seen.append(family)
            return np.random.default_rng(5).normal(size=len(frames))

    unfit = Recording(**{**refit.__dict__, "name": "learned"})
    winner, gate = trigger(gate_frames, ("noise", "fog"), refit=unfit)
    assert seen == ["noise", "fog"] == sorted(gate["refitted"], reverse=True)  # type: ignore[call-overload]
    assert winner == "free", "without the families it knew, the head is no better than chance there"


def test_a_refitted_head_really_lacks_the_family(
    gate_frames: Examples, digits_run: Run, digits_parts: dict[str, Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    from misfire_train.fitting import refit as module

    fitted, families = module.fit_head, []

    def spy(*arguments: object, **options: object) -> object:
        families.append(options["recipe"].families)  # type: ignore[attr-defined]
        options["recipe"] = replace(options["recipe"], steps=5)  # type: ignore[type-var]
        return fitted(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "fit_head", spy)
    refit = refit_of_run(
        digits_run, train=digits_parts["train"].take(range(200)), holdout=digits_parts["holdout"]
    )
    assert refit is not None
    values = refit.scores("fog", gate_frames)
    assert values.shape == (len(gate_frames),) and np.isfinite(values).all() and values.std() > 0
    assert "fog" not in families[0] and "noise" in families[0]


def test_without_its_frames_a_head_is_not_judged_on_what_it_knows_and_the_report_says_so(
    gate_frames: Examples, digits_run: Run
) -> None:
    refit = refit_of_run(digits_run, train=None, holdout=None)
    assert refit is not None
    winner, gate = trigger(gate_frames, ("noise", "fog"), refit=replace(refit, name="learned"))
    assert winner == "learned" and gate["shifts"] == []
    assert any("cannot be fitted again" in str(note) for note in gate["notes"])  # type: ignore[attr-defined]


def test_an_unknown_corruption_is_refused() -> None:
    with pytest.raises(ExportError, match="no corruption 'hail'"):
        Shifts(("hail",)).require_known()
    with pytest.raises(ExportError, match="severities are 1 to 5"):
        Shifts(severity=9).require_known()
