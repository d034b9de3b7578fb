"""Engines tell what they run on, refuse what does not fit, and scores that are no numbers are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from misfire_runtime.bundle import (
    MANIFEST,
    MODEL,
    Bundle,
    QuantileTable,
    hash_files,
    read_manifest,
    write_manifest,
)
from misfire_runtime.engines.base import EngineOptions, engine_cache
from misfire_runtime.engines.load import load_engine
from misfire_runtime.engines.onnx import OnnxRuntimeEngine
from misfire_runtime.engines.scoring import Scorer, percentile, quantile
from misfire_runtime.errors import BundleError, EngineError
from misfire_runtime.preprocess import decode_image, to_tensor
from proving_ground import pictures


def remade(path: Path, **changes: Any) -> Bundle:
    """The bundle with another manifest, its hashes right."""
    manifest = read_manifest(path)
    write_manifest(path, manifest.model_copy(update={**changes, "files": hash_files(path)}))
    return Bundle.open(path)


def test_scores_equal_the_graph_run_by_hand(bundle: Bundle) -> None:
    import onnxruntime as ort

    image = decode_image(pictures.jpeg())
    session = ort.InferenceSession(str(bundle.model_path), providers=["CPUExecutionProvider"])
    names = ["score.entropy", "score.msp", "logits", "embedding"]
    entropy, msp, logits, embedding = session.run(names, {"image": to_tensor(image, bundle.manifest.input)})
    scored = Scorer.load(bundle).score(image)
    assert scored.scores == {"entropy": float(entropy[0]), "msp": float(msp[0])}
    assert scored.prediction["class"] == bundle.manifest.classes[int(logits[0].argmax())]
    assert scored.prediction["confidence"] == pytest.approx(1 - float(msp[0]), abs=1e-3)
    assert scored.embedding is not None and np.array_equal(scored.embedding, embedding[0])
    assert 0 <= scored.percentile("entropy") <= 1


def test_the_provider_is_what_the_session_says(bundle: Bundle) -> None:
    engine = load_engine(bundle)
    assert (engine.provider, engine.name) == ("CPUExecutionProvider", "onnxruntime-cpu")
    with pytest.raises(
        EngineError, match=r"provider cuda is not in this ONNX Runtime; it has .*CPUExecution"
    ):
        load_engine(bundle, options=EngineOptions(provider="cuda"))


def test_a_provider_that_is_listed_but_does_not_load_is_an_error(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime-gpu without CUDA's libraries: it lists the provider and silently falls back."""
    import onnxruntime as ort

    real = ort.InferenceSession
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(
        ort,
        "InferenceSession",
        lambda path, options, providers: real(path, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(EngineError, match="CUDAExecutionProvider did not load; the session fell back to CPU"):
        load_engine(bundle, options=EngineOptions(provider="cuda"))
    assert load_engine(bundle).provider == "CPUExecutionProvider"


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(make_bundle: Any, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "b")
    output = made.manifest.outputs[0].model_copy(update={"name": "boxes"})
    with pytest.raises(EngineError, match=r"no output boxes; it has embedding, logits, score\.entropy"):
        load_engine(remade(made.path, outputs=(output, *made.manifest.outputs[1:])))
    contract = made.manifest.input.model_copy(update={"name": "pixels"})
    with pytest.raises(EngineError, match="no input 'pixels'; it has image"):
        load_engine(remade(made.path, outputs=made.manifest.outputs, input=contract))
    contract = made.manifest.input.model_copy(update={"dtype": "uint8"})
    with pytest.raises(EngineError, match=r"is tensor\(float\); the manifest says tensor\(uint8\)"):
        load_engine(remade(made.path, input=contract))
    contract = made.manifest.input.model_copy(update={"height": 32})
    with pytest.raises(EngineError, match=r"small@1.0.0 on CPUExecutionProvider"):
        load_engine(remade(made.path, input=contract))


def test_a_bundle_that_was_changed_does_not_open(make_bundle: Any, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "b")
    model = made.path / MODEL
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"model\.onnx is not what the manifest says"):
        Bundle.open(made.path)
    text = json.loads((made.path / MANIFEST).read_text())
    text["schema_version"] = 99
    (made.path / MANIFEST).write_text(json.dumps(text))
    with pytest.raises(BundleError, match="schema_version"):
        Bundle.open(made.path)


def test_a_score_that_is_no_number_is_refused_and_the_others_stand(make_bundle: Any, tmp_path: Path) -> None:
    scorer = Scorer.load(make_bundle(tmp_path / "b", poison="entropy"))
    dark, bright = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    assert set(scorer.score(dark).scores) == {"entropy", "msp"}
    scored = scorer.score(bright)
    assert set(scored.scores) == {"msp"} and scored.refused == ("entropy",)
    with pytest.raises(KeyError):
        scored.percentile("entropy")


def test_native_tensorrt_is_an_engine_of_its_own_module(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TensorRTEngine(OnnxRuntimeEngine):
        def __init__(self, made: Bundle, *, options: EngineOptions) -> None:
            super().__init__(made, options=EngineOptions(provider="cpu", threads=options.threads))
            self.name = "tensorrt"

    module = ModuleType("misfire_runtime.engines.tensorrt")
    module.TensorRTEngine = TensorRTEngine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "misfire_runtime.engines.tensorrt", module)
    scorer = Scorer.load(bundle, options=EngineOptions(provider="tensorrt"))
    assert scorer.engine.name == "tensorrt"
    assert scorer.calibration_differs == "small@1.0.0 was calibrated on onnxruntime-cpu and runs on tensorrt"


def test_an_engine_cache_belongs_to_one_graph_runtime_and_gpu(make_bundle: Any, tmp_path: Path) -> None:
    one, two = make_bundle(tmp_path / "1"), make_bundle(tmp_path / "2", seed=5)
    folders = {
        engine_cache(one, runtime="trt-10", device="orin").name,
        engine_cache(two, runtime="trt-10", device="orin").name,
        engine_cache(one, runtime="trt-11", device="orin").name,
        engine_cache(one, runtime="trt-10", device="thor").name,
    }
    assert len(folders) == 4
    Bundle.open(one.path)


def test_percentile_and_quantile_are_each_others_inverse() -> None:
    table = QuantileTable(levels=(0.0, 0.5, 0.9, 1.0), values=(0.0, 1.0, 3.0, 10.0), count=50)
    for level in (0.0, 0.25, 0.5, 0.77, 0.9, 0.95, 1.0):
        assert percentile(table, quantile(table, level)) == pytest.approx(level)
    assert percentile(table, -5.0) == 0.0
    assert percentile(table, 50.0) == 1.0
    flat = QuantileTable(levels=(0.0, 0.2, 0.4, 1.0), values=(1.0, 1.0, 1.0, 2.0), count=50)
    assert percentile(flat, 1.0) == pytest.approx(0.2)


def test_keypoints_segmentation_and_values_are_summed_up_in_brief(bundle: Bundle) -> None:
    scorer = Scorer.load(bundle)
    heatmaps = np.zeros((1, 2, 4, 8), np.float32)
    heatmaps[0, 0, 1, 6] = 0.9
    scorer._kinds = {"heatmaps": "h"}
    assert scorer.brief({"h": heatmaps})["points"][0] == [0.8125, 0.375, 0.9]
    pixels = np.zeros((1, 3, 2, 2), np.float32)
    pixels[0, 1, 0] = 5.0
    scorer._kinds = {"segmentation": "s"}
    assert scorer.brief({"s": pixels}) == {"shares": {"road": 0.5, "sky": 0.5}}
    scorer._kinds = {"values": "v"}
    assert scorer.brief({"v": np.float32([[0.5, 0.25]])}) == {"values": [0.5, 0.25]}


@pytest.mark.parametrize("kind", ["logits", "values", "heatmaps", "segmentation"])
def test_an_answer_that_is_not_finite_says_so_instead_of_null(bundle: Bundle, kind: str) -> None:
    scorer = Scorer.load(bundle)
    scorer._kinds = {kind: "output"}
    output = np.zeros((1, 3, 4, 4) if kind in ("heatmaps", "segmentation") else (1, 3), np.float32)
    output.flat[0], output.flat[2] = np.nan, np.inf
    assert scorer.brief({"output": output}) == {"not_finite": 2}


def test_a_class_name_longer_than_an_offer_takes_is_cut(bundle: Bundle) -> None:
    scorer = Scorer.load(bundle)
    scorer._kinds, scorer.classes = {"logits": "output"}, ("x" * 300, "y")
    assert scorer.brief({"output": np.float32([[5.0, 1.0]])})["class"] == "x" * 256
