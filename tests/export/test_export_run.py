"""A run becomes a bundle: one file, every output, parity, calibration, lineage; and what export refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from misfire_export.errors import CalibrationError, ExportError, OutputError, ParityError
from misfire_export.options import Options
from misfire_export.sources.frames import Frames, frames_of_run
from misfire_export.sources.run import build_scores, export_run
from misfire_runtime.bundle import Bundle
from misfire_runtime.cli import app
from misfire_runtime.engines.base import EngineOptions
from misfire_runtime.engines.load import load_engine
from misfire_runtime.preprocess import to_tensor
from misfire_train.data import Dataset, Examples
from misfire_train.fitting import frames as fit_frames
from misfire_train.judge import run_judging
from misfire_train.runs import Run
from misfire_train.scores import FitSet, fitting
from misfire_train.signals import Probe, Score, ScoredModel, Signals

pytestmark = pytest.mark.slow

OPTIONS = Options("digits", "1.0.0")


def session_of(bundle: Bundle) -> ort.InferenceSession:
    return ort.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])


def test_the_graph_is_one_file_with_task_scores_and_embedding(digits_bundle: Bundle) -> None:
    model = onnx.load(digits_bundle.model_path, load_external_data=False)
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in model.graph.initializer)
    assert sorted(p.name for p in digits_bundle.path.iterdir()) == [
        "golden.npz",
        "manifest.json",
        "model.onnx",
    ]
    names = [output.name for output in model.graph.output]
    assert names == ["logits", "score.learning_loss_pp", "score.entropy", "score.msp", "embedding"]
    assert [i.name for i in model.graph.input] == ["image"]


def test_the_graph_holds_no_trace_of_the_machine_that_made_it(digits_bundle: Bundle) -> None:
    raw = digits_bundle.model_path.read_bytes()
    assert b"/site-packages/" not in raw and b".py" not in raw
    assert str(Path.cwd()).encode() not in raw


def test_any_batch_size_gives_the_same_answers(digits_bundle: Bundle, digits: Dataset) -> None:
    session, contract = session_of(digits_bundle), digits_bundle.manifest.input
    images = digits.test.batch(range(7), contract).numpy()
    together = session.run(None, {"image": images})
    for i in range(7):
        alone = session.run(None, {"image": images[i : i + 1]})
        for whole, part in zip(together, alone, strict=True):
            np.testing.assert_allclose(part[0], whole[i], rtol=1e-4, atol=1e-5)


def test_scores_agree_with_torch_and_the_manifest_says_by_how_much(
    digits_bundle: Bundle, digits_run: Run, digits: Dataset
) -> None:
    parity = digits_bundle.manifest.parity
    assert parity is not None and parity.images == 64
    assert set(parity.max_abs) == {o.name for o in digits_bundle.manifest.outputs}
    assert 0 < max(parity.max_abs.values()) <= parity.tolerance == 1e-4
    images = digits.test.batch(range(20), digits_run.contract)
    signals = digits_run.probe(images)
    names = [o.name for o in digits_bundle.manifest.outputs]
    values = dict(zip(names, session_of(digits_bundle).run(names, {"image": images.numpy()}), strict=True))
    assert digits_run.head is not None
    expected = digits_run.head(signals).detach().numpy()
    np.testing.assert_allclose(values["score.learning_loss_pp"], expected, atol=1e-3)
    p = torch.softmax(signals.outputs, 1)
    entropy = -(p * p.log()).sum(1).detach().numpy()
    np.testing.assert_allclose(values["score.entropy"], entropy, atol=1e-5)
    norms = np.linalg.norm(values["embedding"], axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


def test_the_vehicles_engine_runs_the_bundle_on_a_picture(digits_bundle: Bundle, digits: Dataset) -> None:
    engine = load_engine(digits_bundle, options=EngineOptions(provider="cpu"))
    result = engine.infer(to_tensor(digits.test.images[0], digits_bundle.manifest.input))
    assert set(result) == {o.name for o in digits_bundle.manifest.outputs}
    assert {s.calibration.engine for s in digits_bundle.manifest.scores} == {engine.name}


def test_golden_inputs_give_their_recorded_answers(digits_bundle: Bundle) -> None:
    golden = np.load(digits_bundle.path / "golden.npz")
    names = [o.name for o in digits_bundle.manifest.outputs]
    values = session_of(digits_bundle).run(names, {"image": golden["image"]})
    for name, value in zip(names, values, strict=True):
        np.testing.assert_allclose(golden[f"output.{name}"], value, atol=1e-5)


def test_lineage_leads_back_to_the_run(digits_bundle: Bundle, digits_run: Run) -> None:
    lineage = digits_bundle.manifest.lineage
    assert lineage.run_id == digits_run.record.run_id
    assert lineage.dataset_sha256 == digits_run.record.dataset.sha256


def test_percentiles_come_from_the_calibration_frames(
    digits_bundle: Bundle, digits_parts: dict[str, Examples]
) -> None:
    part = digits_parts["calibration"]
    images = part.batch(range(len(part)), digits_bundle.manifest.input).numpy()
    entropy = session_of(digits_bundle).run(["score.entropy"], {"image": images})[0]
    table = digits_bundle.manifest.score("entropy").calibration.quantiles
    assert table.count == len(part)
    np.testing.assert_allclose(table.values[table.levels.index(0.5)], np.median(entropy), atol=1e-5)


def test_operating_points_say_what_a_threshold_costs_and_finds(digits_bundle: Bundle) -> None:
    points = digits_bundle.manifest.score("learning_loss_pp").operating_points
    rates = [point.upload_rate for point in points]
    assert rates == sorted(rates) and len(points) >= 4
    for point in points:
        for share in (point.failure_recall, point.failure_precision):
            assert 0 <= share.low <= share.value <= share.high <= 1 and share.low < share.high
    recalls = [point.failure_recall.value for point in points]
    assert recalls == sorted(recalls)


def test_predicted_loss_is_on_the_scale_of_the_true_loss(digits_bundle: Bundle) -> None:
    calibration = digits_bundle.manifest.score("learning_loss_pp").calibration
    assert calibration.loss_scale is not None and calibration.loss_scale > 0
    reliability = digits_bundle.manifest.extra["scores"]["learning_loss_pp"]["reliability"]
    assert reliability["bias"] == pytest.approx(1.0, abs=0.1)
    entropy = digits_bundle.manifest.score("entropy").calibration
    # Any score has an expected loss; only a log-loss has a scale.
    assert entropy.loss_scale is None and entropy.expected_loss is not None
    assert list(entropy.expected_loss.losses) == sorted(entropy.expected_loss.losses)


def test_the_gate_decides_on_the_trigger_score_and_says_why(digits_bundle: Bundle) -> None:
    gate = digits_bundle.manifest.extra["gate"]
    assert digits_bundle.manifest.default_score == gate["winner"]
    assert gate["winner"] in gate["verdict"]


def test_a_bundle_names_a_score_for_every_upload_rate_that_its_frames_can_judge(
    digits_bundle: Bundle,
) -> None:
    manifest = digits_bundle.manifest
    judged = {choice["budget"]: choice for choice in manifest.extra["gate"]["budgets"]}
    assert {each.upload_rate: each.score for each in manifest.scores_by_rate} == {
        rate: choice["score"] for rate, choice in judged.items()
    }
    assert manifest.upload_rate is None
    for each in manifest.scores_by_rate:
        assert manifest.score_at(each.upload_rate) == each.score
        assert each.reason == judged[each.upload_rate]["why"]
        assert each.score in each.reason


def test_a_declared_upload_rate_decides_the_trigger(
    digits_run: Run, digits_parts: dict[str, Examples], out: Path
) -> None:
    options = replace(OPTIONS, upload_rate=0.2)
    bundle = export_run(digits_run, Frames(digits_parts["calibration"]), out=out, options=options)
    assert bundle.manifest.upload_rate == 0.2
    assert bundle.manifest.default_score == bundle.manifest.score_at(0.2)
    assert "declared budget of 0.2" in bundle.manifest.extra["gate"]["verdict"]


def test_too_small_a_calibration_set_says_how_many_frames_are_needed(
    digits_run: Run, digits_parts: dict[str, Examples], out: Path
) -> None:
    few = digits_parts["calibration"].take(range(20))
    with pytest.raises(CalibrationError, match="20 frames; at least 50"):
        export_run(digits_run, Frames(few), out=out, options=OPTIONS)
    assert not out.exists()


class Drifting(Score):
    """Differs between torch and the graph: tracing freezes what is not a tensor."""

    name = "drifting"
    definition = "counts its calls"

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, signals: Signals) -> Tensor:
        self.calls += 1
        return signals.outputs.sum(1) * 0 + float(self.calls)


def test_a_difference_from_torch_is_refused_naming_output_and_image(
    digits_run: Run, digits_parts: dict[str, Examples], out: Path
) -> None:
    broken = replace(digits_run, head=Drifting())
    with pytest.raises(ParityError, match=r"score\.drifting differs .* on image \S+"):
        export_run(
            broken,
            Frames(digits_parts["calibration"]),
            out=out,
            options=replace(OPTIONS, scores=["drifting", "msp"]),
        )
    assert not out.exists()


class Poisoned(Score):
    name = "poisoned"
    definition = "0 / 0 for every frame"

    def forward(self, signals: Signals) -> Tensor:
        zero = torch.relu(-signals.outputs.square().sum(1))
        return zero / zero


def test_nan_is_refused_naming_output_and_image(
    digits_run: Run, digits_parts: dict[str, Examples], out: Path
) -> None:
    with pytest.raises(OutputError, match=r"score\.poisoned is NaN or infinite for image \S+"):
        export_run(
            replace(digits_run, head=Poisoned()),
            Frames(digits_parts["calibration"]),
            out=out,
            options=replace(OPTIONS, scores=["poisoned", "msp"]),
        )


def test_sampling_scores_and_unknown_ones_are_refused(
    digits_run: Run, digits_parts: dict[str, Examples], out: Path
) -> None:
    for scores, text in ((["bald"], "cannot stand in a graph"), (["msp", "msp"], "once each")):
        with pytest.raises(ExportError, match=text):
            export_run(
                digits_run,
                Frames(digits_parts["calibration"]),
                out=out,
                options=replace(OPTIONS, scores=scores),
            )


def test_a_folder_that_is_no_bundle_is_left_alone(
    digits_run: Run, digits_parts: dict[str, Examples], out: Path
) -> None:
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    with pytest.raises(ExportError, match="not a bundle"):
        export_run(digits_run, Frames(digits_parts["calibration"]), out=out, options=OPTIONS)
    assert (out / "diary.txt").read_text() == "mine"


def test_an_older_bundle_is_replaced_and_the_command_prints_json(digits_run: Run, out: Path) -> None:
    runner = CliRunner()
    command = ["export", str(digits_run.path), "--out", str(out), "--scores", "entropy,msp", "--json"]
    for version in ("1.0.0", "1.0.1"):
        result = runner.invoke(app, [*command, "--version", version])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["version"] == version
    assert Bundle.open(out).manifest.version == "1.0.1"
    assert [p.name for p in out.parent.iterdir()] == ["bundle"]


def test_two_exports_of_one_run_are_the_same_graph(
    digits_run: Run, digits_parts: dict[str, Examples], tmp_path: Path
) -> None:
    graphs = []
    for i in range(2):
        bundle = export_run(
            digits_run,
            Frames(digits_parts["calibration"]),
            out=tmp_path / str(i),
            options=OPTIONS,
        )
        graphs.append({name: entry.sha256 for name, entry in bundle.manifest.files.items()})
    assert graphs[0] == graphs[1]


def test_scored_model_is_left_in_eval_mode_and_its_weights_untouched(
    digits_run: Run, digits_bundle: Bundle
) -> None:
    assert digits_bundle.path.exists()
    model = ScoredModel(digits_run.probe, [], output_name="logits")
    assert not digits_run.probe.training and model.output_name == "logits"
    assert all(not p.requires_grad for p in digits_run.probe.parameters())


def test_the_judge_and_the_export_fit_scores_on_the_same_frames(
    digits_run: Run, digits: Dataset, digits_parts: dict[str, Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the largest number of frames, too."""
    drawn: list[tuple[str, ...]] = []

    def gather(probe: Probe, examples: Examples, *rest: Any, **more: Any) -> FitSet:
        drawn.append(examples.ids)
        return fitting.gather(probe, examples, *rest, **more)

    monkeypatch.setattr(fit_frames, "gather", gather)
    monkeypatch.setattr(fit_frames, "MAX_FIT", 37)
    judging = run_judging.Judging(scores=("msp", "knn_distance"), limit=100, replicates=20)
    run_judging.judge_run(digits_run, digits, judging)
    judged = drawn[0]
    drawn.clear()
    frames = frames_of_run(digits_run, digits)
    build_scores(["msp", "knn_distance"], digits_run, frames, task=digits_run.task, options={})
    assert len(judged) == 37 and drawn == [judged]
