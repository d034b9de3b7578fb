"""A run can be watched: a film with boxes, masks, joints and the score, that privacy also applies to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from vehicle_support import parse_config

from misfire_runtime import cli
from misfire_runtime.bundle import OutputSpec, hash_files, read_manifest, write_manifest
from misfire_runtime.drawing import (
    DOUBTFUL,
    blend_mask,
    colour_of,
    doubt_colour,
    draw_bars,
    draw_boxes,
    draw_joints,
    score_strip,
)
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import encode_png
from misfire_runtime.testing import ListSource, MemoryStore, make_bundle
from misfire_runtime.vehicle import screens
from misfire_runtime.vehicle.pipeline import Vehicle
from misfire_runtime.vehicle.show import STRIP_HEIGHT, Show
from misfire_runtime.vehicle.view import View, canvas_size, draw_view, in_words
from proving_ground.detectors import lamps, write_detection_bundle

LAMP = (100, 30, 124, 54)


def film(path: Path) -> tuple[list[NDArray[np.uint8]], list[float]]:
    """The pictures of a video and their times."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [
        float(frame.time or 0) for frame in frames
    ]


def near(image: NDArray[np.uint8], colour: tuple[int, int, int], *, by: int = 70) -> NDArray[np.bool_]:
    """Where a picture has a colour, as far as the codec kept it."""
    return np.abs(image.astype(int) - colour).max(2) < by


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detection_bundle(tmp_path_factory.mktemp("finder") / "b").path


def watched(
    tmp_path: Path, scorer: Scorer, *sources: Any, config: str = "", target: str = "a.mp4"
) -> list[Path]:
    """Runs sources with a show; returns the files that it made."""
    settings = parse_config('vehicle = "car-1"\n[random]\nrate = 0.0\n' + config)
    vehicle = Vehicle(
        settings, scorer=scorer, store=MemoryStore(), sources=sources, state_dir=tmp_path / "state"
    )
    shown = Show(str(tmp_path / target), privacy=vehicle.privacy, several=len(sources) > 1)
    vehicle.on_frame = shown.see
    vehicle.run(threading.Event())
    vehicle.close()
    shown.close()
    return sorted(tmp_path.glob(f"{Path(target).stem}*{Path(target).suffix}"))


def test_the_command_makes_a_film_of_a_folder(tmp_path: Path, finder: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(encode_png(lamps(LAMP, seed=number)))
    arguments = ["run", "--bundle", str(finder), "--source", str(folder), "--spool", str(tmp_path / "spool")]
    cli.app([*arguments, "--show", str(tmp_path / "made" / "a.mp4")], standalone_mode=False)
    pictures, times = film(tmp_path / "made" / "a.mp4")
    assert len(pictures) == 4 and times == pytest.approx([0, 0.5, 1.0, 1.5], abs=0.01)
    width, height = canvas_size(192, 96)
    assert pictures[0].shape == (height + STRIP_HEIGHT, width, 3)
    # The boxes of the finder are doubtful: orange lines around the lamp, and none far from it.
    scale = width / 192
    x0, y0, x1, y1 = (round(side * scale) for side in LAMP)
    orange = near(pictures[0], DOUBTFUL)
    around = orange[y0 - 8 : y1 + 8, x0 - 8 : x1 + 8].sum()
    assert around > 2 * (x1 - x0)
    assert orange[20 : height - 20, 20 : width - 20].sum() - around < around


def test_a_film_follows_the_recording_s_times_and_goes_on_where_it_begins_again(
    tmp_path: Path, finder: Path
) -> None:
    from misfire_runtime.sources.frame import Frame

    class Timed(ListSource):
        def frames(self, stop: threading.Event, *, start: int = 0) -> Any:
            for index, pts in enumerate([5.0, 5.1, 5.3, 0.0, 0.2, 9000.0]):
                yield Frame(lamps(), self.name, index, self.name, pts_s=pts)

    (path,) = watched(tmp_path, Scorer.load(bundle_at(finder)), Timed([]))
    _pictures, times = film(path)
    assert times == pytest.approx([0, 0.1, 0.3, 0.34, 0.54, 0.58], abs=0.01)


def test_every_source_has_its_film(tmp_path: Path, finder: Path) -> None:
    sources = [ListSource([lamps(LAMP)] * 2, name="front"), ListSource([lamps()] * 3, name="re/ar")]
    paths = watched(tmp_path, Scorer.load(bundle_at(finder)), *sources)
    assert [path.name for path in paths] == ["a-front.mp4", "a-re_ar.mp4"]
    assert [len(film(path)[0]) for path in paths] == [2, 3]


def test_privacy_applies_to_the_film(tmp_path: Path, finder: Path) -> None:
    config = """
        [[privacy.masks]]
        box = [0.5, 0.0, 0.5, 1.0]
        [[privacy.crops]]
        box = [0.25, 0.0, 0.75, 1.0]
        """
    (path,) = watched(tmp_path, Scorer.load(bundle_at(finder)), ListSource([lamps(LAMP)]), config=config)
    (picture,), _times = film(path)
    width, height = canvas_size(144, 96)
    assert picture.shape[:2] == (height + STRIP_HEIGHT, width)
    # The lamp is under the mask; only its box is still drawn, 48 pixels further left than in the picture.
    shown = picture[:height]
    assert not near(shown, (255, 255, 255), by=60).any()
    scale = width / 144
    left, right = round((LAMP[0] - 48) * scale), round((LAMP[2] - 48) * scale)
    columns = np.flatnonzero(near(shown[round(35 * scale) : round(50 * scale)], DOUBTFUL).any(0))
    assert abs(columns.min() - left) < 8 and abs(columns.max() - right) < 8


def test_what_may_not_leave_is_not_shown(tmp_path: Path, finder: Path) -> None:
    config = f'[[privacy.blur]]\nmodel = "{tmp_path / "absent.onnx"}"\n'
    (path,) = watched(tmp_path, Scorer.load(bundle_at(finder)), ListSource([lamps(LAMP)]), config=config)
    (picture,), _times = film(path)
    assert picture[40 : canvas_size(192, 96)[1]].max() < 30


def test_a_disk_that_fails_ends_the_show_and_not_the_run(
    tmp_path: Path, finder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(screens.Film, "put", fail)
    scorer = Scorer.load(bundle_at(finder))
    source = ListSource([lamps(LAMP)] * 5)
    watched(tmp_path, scorer, source)
    assert source.exhausted.is_set()
    assert [record.message for record in caplog.records].count("show_ended") == 1


def test_a_run_that_is_killed_leaves_a_film_that_plays(tmp_path: Path, finder: Path) -> None:
    scorer = Scorer.load(bundle_at(finder))
    vehicle = Vehicle(
        parse_config('vehicle = "car-1"\n'),
        scorer=scorer,
        store=MemoryStore(),
        sources=[ListSource([lamps(LAMP, seed=k) for k in range(100)])],
        state_dir=tmp_path / "state",
    )
    shown = Show(str(tmp_path / "a.mp4"))
    vehicle.on_frame = shown.see
    vehicle.run(threading.Event())
    vehicle.close()
    # Not closed, as after kill -9: what was written is there, but for the last picture.
    count = 0
    with av.open(str(tmp_path / "a.mp4")) as container, contextlib.suppress(av.error.InvalidDataError):
        for _frame in container.decode(video=0):
            count += 1
    assert count >= 30
    shown.close()


@pytest.mark.parametrize("target", ["a.gif", "a", "/proc/a.mp4"])
def test_where_nothing_can_be_shown_is_said_at_the_start(target: str) -> None:
    with pytest.raises(ConfigError, match=r"--show .*: (expected a file with the ending|cannot be written)"):
        Show(target)


def test_without_windows_a_file_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ConfigError, match=r"there is no display.*--show FILE\.mp4"):
        Show("window")
    monkeypatch.setenv("DISPLAY", ":99")
    with pytest.raises(ConfigError, match=r"built without windows.*--show FILE\.mp4"):
        Show("window")


class Answering:
    """An engine that answers with given outputs, for tasks whose graphs would be large."""

    name = provider = "fake"

    def __init__(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        self._outputs = outputs

    def infer(self, image: NDArray[Any], *, inputs: Any = None) -> dict[str, NDArray[Any]]:
        return dict(self._outputs) | {"score.entropy": np.float32([0.5])}

    def close(self) -> None:
        pass


def scorer_of(folder: Path, kind: str, output: NDArray[Any]) -> Scorer:
    """A scorer of another task: its bundle is a placeholder."""
    made = make_bundle(folder, classes=("road", "sky", "car"), size=32)
    manifest = read_manifest(made.path)
    spec = OutputSpec.model_validate({"name": "out", "kind": kind, "shape": (-1, *output.shape[1:])})
    outputs = (spec, *(each for each in manifest.outputs if each.kind == "score"))
    write_manifest(
        made.path, manifest.model_copy(update={"outputs": outputs, "files": hash_files(made.path)})
    )
    return Scorer(bundle_at(made.path), Answering({"out": output}))


def halves() -> NDArray[np.float32]:
    """Logits of a mask: road on the left, car on the right."""
    logits = np.zeros((1, 3, 16, 16), np.float32)
    logits[:, 0, :, :8] = logits[:, 2, :, 8:] = 5
    return logits


def peak() -> NDArray[np.float32]:
    heatmaps = np.zeros((1, 1, 16, 16), np.float32)
    heatmaps[0, 0, 4, 12] = 1
    return heatmaps


def coloured_halves(picture: NDArray[np.uint8]) -> bool:
    left, right = picture[200:400, 100:300].mean((0, 1)), picture[200:400, 400:600].mean((0, 1))
    grey = 100 * 0.55
    road, car = (np.array(colour_of(k)) * 0.45 + grey for k in (0, 2))
    return bool(np.abs(left - road).max() < 15 and np.abs(right - car).max() < 15)


def one_joint(picture: NDArray[np.uint8]) -> bool:
    rows, columns = np.nonzero(near(picture[:600], (255, 210, 74)))
    # The peak at 12.5/16 and 4.5/16 of the picture.
    return bool(abs(columns.mean() - 640 * 12.5 / 16) < 3 and abs(rows.mean() - 640 * 4.5 / 16) < 3)


@pytest.mark.parametrize(
    ("kind", "output", "right"),
    [
        ("logits", np.float32([[0, 3, 1]]), lambda picture: near(picture[:80, :200], colour_of(1)).any()),
        ("values", np.float32([[1.5, 2.5]]), lambda picture: True),
        ("segmentation", halves(), coloured_halves),
        ("heatmaps", peak(), one_joint),
    ],
)
def test_every_task_is_shown(
    tmp_path: Path, kind: str, output: NDArray[Any], right: Callable[[NDArray[np.uint8]], bool]
) -> None:
    grey = np.full((64, 64, 3), 100, np.uint8)
    (path,) = watched(tmp_path, scorer_of(tmp_path / "b", kind, output), ListSource([grey]))
    (picture,), _times = film(path)
    assert right(picture)


def test_the_tiles_of_a_mask_that_are_in_doubt_are_marked(tmp_path: Path) -> None:
    logits = halves()
    # The lower right tile knows nothing.
    logits[0, :, 12:, 12:] = 0
    scorer = scorer_of(tmp_path / "b", "segmentation", logits)
    grey = np.full((64, 128, 3), 100, np.uint8)
    boxes, doubts = scorer.score(grey).tiles or (None, None)
    assert boxes is not None and doubts is not None
    assert doubts[-1] == pytest.approx(1, abs=1e-3) and doubts[:-1].max() < 0.2
    # The network's input is square and the picture is stretched to it.
    assert boxes[0].tolist() == [0, 0, 32, 16] and boxes[-1].tolist() == [96, 48, 128, 64]
    (path,) = watched(tmp_path, scorer, ListSource([grey]))
    (picture,), _times = film(path)
    orange = near(picture[: canvas_size(128, 64)[1]], DOUBTFUL, by=60)
    # 640 x 320: the tile is 480 to 640, 240 to 320.
    assert orange[240:250, 490:630].any() and not orange[:215].any() and not orange[:, :470].any()


def test_a_cropped_view_has_its_tiles_where_they_are() -> None:
    tiles = (np.float32([[0, 0, 32, 16], [32, 0, 64, 16]]), np.float32([0.9, 0.1]))
    view = View(np.zeros((64, 128, 3), np.uint8), {}, mask=np.zeros((64, 128), np.uint8), tiles=tiles)
    part = view.cropped(np.zeros((54, 100, 3), np.uint8), (20, 10, 120, 64))
    assert part.tiles is not None and part.tiles[0].tolist() == [[0, 0, 12, 6], [12, 0, 44, 6]]
    assert part.mask is not None and part.mask.shape == (54, 100)


def test_an_answer_that_is_not_finite_is_said_and_drawn_as_nothing(tmp_path: Path) -> None:
    scorer = scorer_of(tmp_path / "b", "logits", np.float32([[np.nan, 1, 2]]))
    grey = np.full((64, 64, 3), 100, np.uint8)
    (path,) = watched(tmp_path, scorer, ListSource([grey]))
    assert len(film(path)[0]) == 1
    assert in_words(scorer.score(grey).prediction) == "not finite"


def bundle_at(path: Path) -> Any:
    from misfire_runtime.bundle import Bundle

    return Bundle.open(path)


NUMBERS = st.floats(-1e9, 1e9)


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    corners=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=5),
    label=st.text(max_size=30),
)
def test_any_box_can_be_drawn_into_any_picture(
    width: int, height: int, corners: list[tuple[float, ...]], label: str
) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    boxes = np.array(corners, np.float64).reshape(-1, 4)
    draw_boxes(image, boxes, labels=[label] * len(boxes), colours=[DOUBTFUL] * len(boxes))
    draw_joints(image, boxes[:, :2])
    draw_joints(image, np.array([[np.nan, 1.0]]))
    draw_bars(image, [(label, 0.5), ("x", 7.0)])
    blend_mask(image, np.full((height, width), 255, np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (28, 28), (640, 380), (3840, 2160)])
def test_pictures_of_any_size_are_shown_at_one_that_fits(size: tuple[int, int]) -> None:
    width, height = canvas_size(*size)
    assert width % 2 == height % 2 == 0 and 320 <= width <= 1280 and 64 <= height <= 960
    shown = draw_view(View(np.zeros((size[1], size[0], 3), np.uint8), {}), size=(width, height))
    assert shown.shape == (height, width, 3)


def test_the_strip_has_the_newest_at_the_right_and_high_scores_at_the_top() -> None:
    strip = score_strip(400, 96, levels=[0.0, float("nan"), 1.0], marks=[None, None, DOUBTFUL], room=100)
    rows, columns = np.nonzero((strip == DOUBTFUL).all(2))
    assert columns.min() > 390 and rows.max() < 48


def test_a_box_without_a_chance_is_not_called_doubtful() -> None:
    assert doubt_colour(None) == doubt_colour(float("nan")) == doubt_colour(0.9)
    assert len({doubt_colour(0.1), doubt_colour(0.6), doubt_colour(0.9)}) == 3
