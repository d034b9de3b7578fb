"""The score `temporal` on its way through the vehicle: late, complete, in any trigger, never silent."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from vehicle_support import make

from misfire_runtime.boxes import BoxRule
from misfire_runtime.bundle import Bundle, OutputSpec
from misfire_runtime.config.tables import parse_config
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract, decode_image
from misfire_runtime.sources import Frame
from misfire_runtime.testing import FakeEngine, ListSource, MemoryStore, make_bundle
from misfire_runtime.vehicle import delay
from misfire_runtime.vehicle.pipeline import Vehicle
from misfire_runtime.vehicle.telemetry import health

RULE = '[triggers.flicker]\nkind = "rule"\nwhen = "temporal > 0.5"\n'
QUIET = "[random]\nrate = 0.0\n"
BREAKS = (20, 61)


class Detector(FakeEngine):
    """Sees one car in every frame but those of `gone`; the frame's number is in its first pixel."""

    def __init__(self, gone: Sequence[int] = BREAKS) -> None:
        super().__init__({"entropy": 0.25})
        self._gone = gone

    def infer(self, image: Any) -> dict[str, Any]:
        found = super().infer(image)
        boxes = np.zeros((1, 4, 6), np.float32)
        number = self.calls - 1
        # A new car every 40 frames: a track reports one event.
        x = 20.0 if number // 40 % 2 else 60.0
        if number not in self._gone:
            boxes[0, 0] = (x, 30, x + 20, 50, 0.9, 0)
        return found | {"detections": boxes}


def detector_bundle(folder: Path) -> Bundle:
    bundle = make_bundle(folder, classes=("car", "truck"), size=96)
    outputs = [output for output in bundle.manifest.outputs if output.kind != "logits"]
    boxes = OutputSpec(name="detections", kind="boxes", shape=(-1, 4, 6))
    manifest = bundle.manifest.model_copy(
        update={
            "outputs": (boxes, *outputs),
            "detection": BoxRule(),
            "task": "detection",
            "input": InputContract(height=96, width=96),
        }
    )
    return replace(bundle, manifest=manifest)


def pictures(count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    # Alike, but not the same: equal pictures are one sample.
    return [
        np.full((48, 48, 3), 90, np.uint8) + rng.integers(0, 9, (48, 48, 3), np.uint8) for _ in range(count)
    ]


def vehicle(
    folder: Path, text: str, *, source: ListSource | None = None, engine: Any = None, **options: Any
) -> tuple[Vehicle, MemoryStore]:
    store = MemoryStore()
    made = Vehicle(
        parse_config(text + QUIET),
        scorer=Scorer(detector_bundle(folder / "bundle"), engine or Detector()),
        store=store,
        sources=[source or ListSource(pictures(100), rate=25)],
        state_dir=folder / "state",
        **options,
    )
    return made, store


def run(made: Vehicle) -> Any:
    report = made.run(threading.Event())
    made.close()
    return report


def test_a_rule_takes_the_frame_in_which_a_box_was_missed_and_says_what_happened(tmp_path: Path) -> None:
    made, store = vehicle(tmp_path, RULE)
    report = run(made)
    assert report.frames == 100 and report.problems == [] and report.finished
    assert [offer.frame for offer in store.offers] == list(BREAKS)
    first = store.offers[0]
    assert first.context["temporal"] == "a car seen for 20 frames vanished"
    assert first.scores["temporal"] == pytest.approx(0.9) and first.percentiles["temporal"] > 0.9
    assert first.position_s == 20 / 25
    assert made.statistics.sketches().keys() == {"entropy", "temporal"}


@pytest.mark.parametrize(
    "trigger",
    [
        'kind = "threshold"\nscore = "temporal"\nabove = 0.5',
        'kind = "percentile"\nscore = "temporal"\nlevel = 0.95',
        'kind = "target-rate"\nscore = "temporal"\nrate = 0.1\nwarm_up = 10',
        'kind = "rule"\nwhen = "percentile.temporal > 0.9 and entropy < 1"',
        'kind = "rule"\nwhen = "score[\'temporal\'] > 0"',
    ],
)
def test_every_trigger_takes_it_and_none_takes_frames_where_nothing_happened(
    trigger: str, tmp_path: Path
) -> None:
    made, store = vehicle(tmp_path, f"[triggers.flicker]\n{trigger}\n")
    run(made)
    frames = [offer.frame for offer in store.offers]
    # Frames in which one car replaces the other break no track: neither car comes back.
    assert frames == list(BREAKS)


def test_every_frame_is_decided_on_once_and_in_order(tmp_path: Path) -> None:
    made, store = vehicle(tmp_path, RULE + '[triggers.all]\nkind = "threshold"\nabove = -1.0\n')
    decided: list[int] = []
    select = made.selector.select

    def watched(frame: Any, **options: Any) -> Any:
        decided.append(frame.frame.index)
        return select(frame, **options)

    made.selector.select = watched  # type: ignore[method-assign]
    report = run(made)
    assert decided == list(range(100)) and report.spooled == 100
    # The first frame and the last two have no neighbours: their score is missing, not zero.
    missing = [offer.frame for offer in store.offers if "temporal" not in offer.scores]
    assert missing == [0, 98, 99]


def test_without_a_trigger_that_looks_at_it_nothing_waits(tmp_path: Path) -> None:
    made, store = vehicle(tmp_path, '[triggers.all]\nkind = "threshold"\nabove = -1.0\n')
    assert made._delay is None
    run(made)
    assert all("temporal" not in offer.scores for offer in store.offers)


@pytest.mark.parametrize(("rate", "why"), [(5.0, "5 frames per second"), (None, "no times")])
def test_frames_that_are_too_rare_are_reported_once_and_trigger_nothing(
    rate: float | None, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, store = vehicle(tmp_path, RULE, source=ListSource(pictures(100), rate=rate))
    with caplog.at_level(logging.WARNING, logger="misfire_runtime"):
        report = run(made)
    lines = [record for record in caplog.records if record.message == "temporal_not_available"]
    assert len(lines) == 1 and why in vars(lines[0])["fields"]["problem"]
    assert len(report.problems) == 1 and why in report.problems[0]
    assert health(made)["not_available"] == report.problems
    assert store.offers == []


def test_a_negated_rule_sees_a_missing_score_as_any_other_missing_value(tmp_path: Path) -> None:
    text = '[triggers.steady]\nkind = "rule"\nwhen = "has(temporal) and not temporal > 0.5"\n'
    made, store = vehicle(tmp_path, text)
    run(made)
    assert [offer.frame for offer in store.offers] == sorted({*range(1, 98)} - set(BREAKS))


def test_a_camera_that_stalls_does_not_keep_its_last_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delay, "MAX_WAIT_S", 0.1)
    camera = ListSource(pictures(10), live=True, period_s=0.02, silent_s=30)
    made, store = vehicle(
        tmp_path, RULE + '[triggers.all]\nkind = "threshold"\nabove = -1.0\n', source=camera
    )
    stop = threading.Event()
    thread = threading.Thread(target=made.run, args=(stop,))
    thread.start()
    try:
        camera.exhausted.wait(20)
        for _ in range(200):
            made.writer.flush({}, {})
            if len(store.samples) == made.statistics.frames > 0:
                break
            stop.wait(0.05)
        assert not stop.is_set() and len(store.samples) == made.statistics.frames > 0
    finally:
        stop.set()
        thread.join(20)
        made.close()


def test_an_interrupted_recording_reads_the_frames_that_waited_again(tmp_path: Path) -> None:
    class Recording(ListSource):
        def __init__(self) -> None:
            super().__init__(pictures(100), rate=25)
            self.identity = "drive"

    made, _store = vehicle(tmp_path, RULE, source=Recording())
    positions: list[int] = []
    made._on_tick = lambda v: positions.append(v._positions.get("drive", 0) - v.statistics.frames)
    monkey_tick = made._tick
    process = made._process

    def processed(frame: Frame, stop: threading.Event) -> None:
        process(frame, stop)
        monkey_tick()

    made._process = processed  # type: ignore[method-assign]
    run(made)
    # While two frames wait, a crash would begin again at the first of them.
    assert set(positions[3:-1]) == {-2}


def test_what_was_learned_survives_a_restart_and_another_configuration(tmp_path: Path) -> None:
    made, _store = vehicle(tmp_path, RULE)
    stop = threading.Event()
    process = made._process

    def processed(frame: Frame, stopping: threading.Event) -> None:
        if frame.index == 30:
            made.apply(parse_config(RULE + QUIET + "[limits]\nsamples_per_hour = 9\n"))
        process(frame, stopping)
        if frame.index == 60:
            stop.set()

    made._process = processed  # type: ignore[method-assign]
    made.run(stop)
    assert made._delay is not None and made.config.limits.samples_per_hour == 9
    level = made._delay._levels.level(0.5)
    made.close()
    again, _store = vehicle(tmp_path, RULE)
    assert again._delay is not None and level > 0.9
    assert again._delay._levels.level(0.5) == level
    again.close()


def test_a_damaged_memory_costs_what_it_held(tmp_path: Path) -> None:
    made, store = vehicle(tmp_path, RULE)
    assert made._delay is not None
    made._delay.relearn({"score:temporal": {"older": "nonsense"}})
    run(made)
    assert [offer.frame for offer in store.offers] == list(BREAKS)


def test_triggers_switch_it_on_and_off_while_the_vehicle_runs(tmp_path: Path) -> None:
    made, store = vehicle(tmp_path, RULE)
    process = made._process

    def processed(frame: Frame, stop: threading.Event) -> None:
        if frame.index == 50:
            made.apply(parse_config('[triggers.all]\nkind = "threshold"\nabove = -1.0\n' + QUIET))
        process(frame, stop)

    made._process = processed  # type: ignore[method-assign]
    report = run(made)
    assert report.frames == 100 and made._delay is None
    # 48 and 49 waited: they are decided on by the triggers of their time.
    assert [offer.frame for offer in store.offers] == [20, *range(50, 100)]


def test_answers_that_cannot_be_compared_are_refused_by_name(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    outputs = tuple(o for o in bundle.manifest.outputs if o.kind != "logits")
    values = OutputSpec(name="values", kind="values", shape=(-1, 2))
    manifest = bundle.manifest.model_copy(update={"outputs": (values, *outputs)})
    scorer = Scorer(replace(bundle, manifest=manifest), FakeEngine({"entropy": 0.1}))
    for trigger in (RULE, '[triggers.t]\nkind = "threshold"\nscore = "temporal"\nabove = 1\n'):
        with pytest.raises(ConfigError, match="temporal"):
            Vehicle(
                parse_config(trigger),
                scorer=scorer,
                store=MemoryStore(),
                sources=[ListSource([])],
                state_dir=tmp_path / "state",
            )


def test_a_classifier_is_compared_too(tmp_path: Path) -> None:
    class Classifier(FakeEngine):
        def infer(self, image: Any) -> dict[str, Any]:
            found = super().infer(image)
            found["logits"][0, 1 if self.calls == 31 else 0] = 5.0
            return found

    store = MemoryStore()
    made = Vehicle(
        parse_config(RULE + QUIET),
        scorer=Scorer(make_bundle(tmp_path / "b"), Classifier({"entropy": 0.1})),
        store=store,
        sources=[ListSource(pictures(60), rate=10)],
        state_dir=tmp_path / "state",
    )
    run(made)
    assert [(offer.frame, offer.context["temporal"]) for offer in store.offers] == [
        (30, "yes for one frame, no before and after")
    ]


def square_detector(side: int) -> onnx.ModelProto:
    """A graph that finds the box of all bright pixels: image -> detections [1,1,6], score.entropy."""
    node, info = helper.make_node, helper.make_tensor_value_info
    index = np.arange(side, dtype=np.float32)
    constants = {
        "half": np.float32(0.5),
        "end": np.float32(side),
        "index": index,
        "after": index + 1,
        "from_end": side - index,
        "sure": np.float32([[0.9]]),
        "class": np.float32([[0.0]]),
        "rgb": np.int64([1]),
        "rows": np.int64([1]),
        "columns": np.int64([2]),
        "last": np.int64([1]),
    }
    nodes = [
        node("ReduceMean", ["image", "rgb"], ["grey"], keepdims=0),
        node("Greater", ["grey", "half"], ["bright"]),
        node("Cast", ["bright"], ["mask"], to=TensorProto.FLOAT),
    ]
    for axis, other in (("x", "rows"), ("y", "columns")):
        nodes += [
            node("ReduceMax", ["mask", other], [f"{axis}_line"], keepdims=0),
            node("Mul", [f"{axis}_line", "after"], [f"{axis}_after"]),
            node("ReduceMax", [f"{axis}_after", "last"], [f"{axis}1"], keepdims=1),
            node("Mul", [f"{axis}_line", "from_end"], [f"{axis}_before"]),
            node("ReduceMax", [f"{axis}_before", "last"], [f"{axis}_first"], keepdims=1),
            node("Sub", ["end", f"{axis}_first"], [f"{axis}0"]),
        ]
    nodes += [
        node("ReduceMax", ["x_line", "last"], ["seen"], keepdims=1),
        node("Mul", ["seen", "sure"], ["score"]),
        node("Concat", ["x0", "y0", "x1", "y1", "score", "class"], ["row"], axis=1),
        node("Unsqueeze", ["row", "last"], ["detections"]),
        node("Squeeze", ["score", "last"], ["score.entropy"]),
    ]
    float_type = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "square",
        [info("image", float_type, ["N", 3, side, side])],
        [info("detections", float_type, ["N", 1, 6]), info("score.entropy", float_type, ["N"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def write_square(path: Path, *, dim: Sequence[int]) -> Path:
    """A film of a bright square that drives to the right; in the frames of `dim` it is too dark to find."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width = stream.height = 128
        stream.pix_fmt = "yuv420p"
        for number in range(60):
            picture = np.full((128, 128, 3), 20, np.uint8)
            picture[40:80, 10 + number : 50 + number] = 90 if number in dim else 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_a_detector_that_misses_a_dim_object_in_a_film_uploads_that_frame(tmp_path: Path, store: Any) -> None:
    bundle = detector_bundle(tmp_path / "bundle")
    onnx.save(square_detector(96), bundle.model_path)
    film = write_square(tmp_path / "drive.mp4", dim=(30, 31))
    made = make(bundle, store, tmp_path, film, RULE + QUIET)
    report = run(made)
    assert report.frames == 60 and report.problems == []
    (offer,) = store.offers
    assert offer.frame == 30 and offer.context["temporal"] == "a car seen for 30 frames vanished"
    picture = decode_image(store.samples[offer.id][0])
    assert 60 < picture[60, 60].mean() < 120
