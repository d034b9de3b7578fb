"""Shows what a vehicle sees: every scored frame with the model's answer and the score over time.

ScoredFrame --privacy--> picture --draw_view--> with a strip of the score --> FILE.mp4, or a window

The privacy stage applies here as well: a video is a picture on a disk. A screen or a disk that fails ends the
show, never the run. It runs on the frame path, so `--show` is for looking, not for a vehicle in service.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import deque
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.drawing import (
    DOUBTFUL,
    SURE,
    UNSURE,
    Rgb,
    blend_mask,
    colour_of,
    doubt_colour,
    draw_bars,
    draw_boxes,
    draw_joints,
    score_strip,
    text_scale,
    text_width,
    write,
)
from misfire_runtime.engines.answers import within
from misfire_runtime.errors import ConfigError, PrivacyError
from misfire_runtime.placement import Placement
from misfire_runtime.preprocess import Image, InputContract, resize_image
from misfire_runtime.samples.privacy import Privacy
from misfire_runtime.triggers.scored_frame import ScoredFrame

_LOG = logging.getLogger(__name__)
WINDOW = "window"
SUFFIXES = (".mp4", ".mkv")
MIN_WIDTH, MAX_WIDTH, MAX_HEIGHT = 640, 1280, 960
STRIP_HEIGHT = 96
ROOM = 240
"""Frames in the strip: 8 s at 30 frames per second."""
NAMED_BOXES = 12
"""With more boxes, labels would cover the picture: then only the most doubtful are labelled."""
TILE_DOUBT = 0.2
"""Mean entropy of a tile, of its maximum, from which it is drawn in yellow; from twice this in orange."""
_TIME_BASE = Fraction(1, 1000)
_STILL_S = 0.5
"""How long a picture without a time is shown, such as one of a folder."""
_LONGEST_GAP_S = 60.0
# The first that this FFmpeg has: H.264 plays in every browser.
_CODECS = ("libx264", "libopenh264", "mpeg4")


class Screen(Protocol):
    """Shows pictures of one size."""

    def put(self, image: NDArray[np.uint8], time_s: float) -> None:
        """Shows a picture at a time of the film."""
        ...

    def close(self) -> None:
        """Completes the film, or closes the window."""
        ...


class Show:
    """Draws the frames of all sources, each on a screen of its own."""

    def __init__(self, target: str, *, privacy: Privacy | None = None, several: bool = False) -> None:
        """Checks where to show.

        Args:
            target: a file (.mp4, .mkv), or "window".
            privacy: changes every picture before it is shown; None changes nothing.
            several: there is more than one source, so each has a file with its name.

        Raises:
            ConfigError: the file has another ending or cannot be written, or there are no windows here.
        """
        self._target, self._several, self._privacy = target, several, privacy
        self._lanes: dict[str, _Lane] = {}
        self._over = False
        if target == WINDOW:
            _check_windows()
        else:
            _check_file(Path(target))

    def see(self, seen: ScoredFrame) -> None:
        """Shows a frame; does nothing once the show is over."""
        if self._over:
            return
        try:
            lane = self._lanes.get(seen.source)
            if lane is None:
                lane = self._lanes[seen.source] = _Lane(self._path(seen.source))
            lane.show(seen, self._view(seen))
        except _ClosedError:
            self._end()
        except Exception as error:  # noqa: BLE001  (what only looks must never end what runs)
            _LOG.error("show_ended", extra={"fields": {"problem": str(error).strip()[:200]}})
            self._end()

    def close(self) -> None:
        """Completes all films."""
        if not self._over:
            self._end()

    def _end(self) -> None:
        self._over = True
        for lane in self._lanes.values():
            try:
                lane.close()
            except Exception as error:  # noqa: BLE001  (as above)
                _LOG.error("show_ended", extra={"fields": {"problem": str(error).strip()[:200]}})

    def _path(self, source: str) -> Path | None:
        if self._target == WINDOW:
            return None
        path = Path(self._target)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", source)[-64:]
        return path.with_name(f"{path.stem}-{name}{path.suffix}") if self._several else path

    def _view(self, seen: ScoredFrame) -> View | None:
        """Returns what may be shown of a frame; None if nothing may."""
        image, scored = seen.image, seen.scored
        view = View(image, scored.prediction, mask=scored.mask, tiles=scored.tiles, bars=scored.bars)
        if self._privacy is None:
            return view
        try:
            shown, _labels, _changed = self._privacy.apply(image, source=seen.source)
            region = self._privacy.region(image, source=seen.source)
        except PrivacyError:
            return None
        return replace(view, image=shown) if region is None else view.cropped(shown, region)


@dataclass(frozen=True)
class View:
    """Holds a picture and the model's answer to it, in its pixels.

    image: [H,W,3] uint8 RGB.  prediction: as an offer carries it.  mask: [H,W] classes, 255 where none.
    tiles: boxes [T,4] and doubts [T] of a mask's tiles.  bars: names and shares of classes.
    """

    image: Image
    prediction: dict[str, Any]
    mask: NDArray[np.uint8] | None = None
    tiles: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    bars: tuple[tuple[str, float], ...] = ()

    def cropped(self, image: Image, region: tuple[int, int, int, int]) -> View:
        """Returns the view of a part, x0, y0, x1, y1, whose picture is `image`."""
        x0, y0, x1, y1 = region
        height, width = self.image.shape[:2]
        tiles = self.tiles
        if tiles is not None:
            limits = np.array([x1 - x0, y1 - y0] * 2, np.float32)
            moved = np.clip(tiles[0] - np.array([x0, y0] * 2, np.float32), 0, limits)
            tiles = np.asarray(moved, np.float32), tiles[1]
        return View(
            image,
            within(self.prediction, region, size=(width, height)),
            mask=None if self.mask is None else self.mask[y0:y1, x0:x1],
            tiles=tiles,
            bars=self.bars,
        )


class _ClosedError(Exception):
    """The user closed the window."""


class _Lane:
    """Draws the frames of one source, at the size of the first."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._screen: Screen | None = None
        self._size = (0, 0)
        self._levels: deque[float] = deque(maxlen=ROOM)
        self._marks: deque[Rgb | None] = deque(maxlen=ROOM)
        self._last_s: float | None = None
        self._origin_s = 0.0

    def show(self, seen: ScoredFrame, view: View | None) -> None:
        height, width = (seen.image if view is None else view.image).shape[:2]
        if self._screen is None:
            self._size = canvas_size(width, height)
            self._screen = _Window(seen.source) if self._path is None else _Film(self._path)
        name = seen.scored.default_score
        known = name in seen.scored.scores
        self._levels.append(seen.scored.percentile(name) if known else float("nan"))
        self._marks.append(_mark(seen))
        canvas: NDArray[np.uint8] = np.zeros((self._size[1], self._size[0], 3), np.uint8)
        if view is not None:
            canvas = draw_view(view, size=self._size, classes=seen.scored.classes)
        else:
            write(canvas, "withheld: the privacy stage cannot work", (8, 24), scale=text_scale(canvas))
        _frame_choice(canvas, seen)
        words = "" if view is None else in_words(view.prediction)
        strip = score_strip(
            self._size[0],
            STRIP_HEIGHT,
            levels=self._levels,
            marks=self._marks,
            room=ROOM,
            title=f"{seen.bundle}  {seen.source} {seen.frame.index}  {words}",
            value=f"{name} {seen.scored.scores[name]:.3g} ({100 * self._levels[-1]:.1f} %)" if known else "",
        )
        self._screen.put(np.concatenate([canvas, strip]), self._time_s(seen))

    def close(self) -> None:
        if self._screen is not None:
            self._screen.close()

    def _time_s(self, seen: ScoredFrame) -> float:
        """Returns the time of the film: it rises, also where a recording begins again."""
        still = seen.frame.pts_s is None and seen.frame.original is not None
        if self._last_s is None:
            self._last_s, self._origin_s = 0.0, seen.time_s
            return 0.0
        now = self._last_s + _STILL_S if still else seen.time_s - self._origin_s
        # A recording that began again, or a clock that was set: the film goes on at its pace.
        if not self._last_s < now < self._last_s + _LONGEST_GAP_S:
            now = self._last_s + 0.04
            self._origin_s = seen.time_s - now
        self._last_s = now
        return now


class _Film:
    """Writes a video file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In fragments: a run that is killed leaves a film that can be played.
        options = {"flush_packets": "1"}
        if path.suffix.lower() == ".mp4":
            options["movflags"] = "frag_keyframe+empty_moov"
        self._container = av.open(str(path), "w", options=options)
        self._stream: Any = None

    def put(self, image: NDArray[np.uint8], time_s: float) -> None:
        """See Screen."""
        if self._stream is None:
            self._stream = self._container.add_stream(_codec(), rate=30)
            self._stream.width, self._stream.height = image.shape[1], image.shape[0]
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = _TIME_BASE
            # Short groups of pictures: each is written when it is complete. No B-frames: the first is at 0.
            self._stream.codec_context.gop_size, self._stream.codec_context.max_b_frames = 30, 0
            # A vehicle's processor has other work: the fastest that still looks right.
            self._stream.options = {"preset": "veryfast", "crf": "22"}
        picture = av.VideoFrame.from_ndarray(image, format="rgb24")
        picture.pts, picture.time_base = round(time_s * 1000), _TIME_BASE
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """See Screen."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


class _Window:
    """Shows pictures in a window of OpenCV; closing it, or the key q, ends the show."""

    def __init__(self, name: str) -> None:
        self._name = f"misfire: {name}"
        self._open = False

    def put(self, image: NDArray[np.uint8], time_s: float) -> None:
        """See Screen."""
        if self._open and cv2.getWindowProperty(self._name, cv2.WND_PROP_VISIBLE) < 1:
            raise _ClosedError
        cv2.imshow(self._name, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self._open = True
        # Without this call a window is never painted.
        if cv2.waitKey(1) & 0xFF == ord("q"):
            raise _ClosedError

    def close(self) -> None:
        """See Screen."""
        cv2.destroyAllWindows()


def canvas_size(width: int, height: int) -> tuple[int, int]:
    """Returns the size at which pictures are shown: large enough for letters, and even for video."""
    factor = min(max(1.0, MIN_WIDTH / width), MAX_HEIGHT / height)
    factor = min(factor, MAX_WIDTH / width)
    # A very narrow picture is shown beside black: letters need the width.
    shown_w, shown_h = max(MIN_WIDTH // 2, round(width * factor)), max(64, round(height * factor))
    return shown_w // 2 * 2, shown_h // 2 * 2


def draw_view(view: View, *, size: tuple[int, int], classes: tuple[str, ...] = ()) -> NDArray[np.uint8]:
    """Returns a picture of another size with the model's answer drawn in.

    Args:
        view: the picture, and the answer in its pixels.
        size: width and height of the result; the picture keeps its shape.
        classes: the bundle's, for their colours.
    """
    image, prediction = view.image, view.prediction
    contract = InputContract(width=size[0], height=size[1], resize="letterbox")
    place = Placement.of(image.shape[1], image.shape[0], contract)
    if view.mask is not None:
        image = image.copy()
        blend_mask(image, view.mask)
    # A copy: a picture of this very size would be drawn into.
    canvas = resize_image(image, contract).copy()
    if view.tiles is not None:
        _draw_tiles(canvas, place, *view.tiles)
    boxes = prediction.get("boxes") or []
    if boxes:
        corners = place.to_network(np.array([box["box"] for box in boxes], np.float32))
        chances = [box.get("p") for box in boxes]
        draw_boxes(canvas, corners, labels=_labels(boxes), colours=[doubt_colour(p) for p in chances])
    points = prediction.get("points") or []
    if points:
        shares = np.array([[np.nan if v is None else v for v in point[:2]] for point in points], np.float32)
        draw_joints(canvas, place.to_network(shares * [image.shape[1], image.shape[0]]))
    places = {name: number for number, name in enumerate(classes)}
    colours = [colour_of(places.get(name, i)) for i, (name, _share) in enumerate(view.bars)]
    draw_bars(canvas, view.bars, colours=colours)
    return canvas


def _draw_tiles(
    canvas: NDArray[np.uint8], place: Placement, boxes: NDArray[np.float32], doubts: NDArray[np.float32]
) -> None:
    """Draws the tiles of a mask that are in doubt, the most doubtful on top."""
    order = [i for i in np.argsort(-doubts) if doubts[i] >= TILE_DOUBT]
    # Drawn inside of its edges: neighbours would cover each other's lines.
    inner = place.to_network(boxes[order]) + np.array([2, 2, -2, -2], np.float32)
    draw_boxes(
        canvas,
        inner,
        labels=[f"{100 * doubts[i]:.0f} %" for i in order],
        colours=[DOUBTFUL if doubts[i] >= 2 * TILE_DOUBT else UNSURE for i in order],
    )


def in_words(prediction: dict[str, Any]) -> str:
    """Returns an answer in a few words: `3 boxes`, `red 63 %`, `not finite`."""
    if "boxes" in prediction:
        count = len(prediction["boxes"]) + prediction["more"]
        return "1 box" if count == 1 else f"{count} boxes"
    if "confidence" in prediction:
        return f"{prediction.get('class')} {100 * prediction['confidence']:.0f} %"
    if "values" in prediction:
        return ", ".join(f"{value:.3g}" for value in prediction["values"][:4])
    if "points" in prediction:
        return f"{len(prediction['points'])} joints"
    return "not finite" if "not_finite" in prediction else ""


def _labels(boxes: list[dict[str, Any]]) -> list[str]:
    """Returns a label per box: class and P(TP), else the score; of many boxes for the most doubtful only."""
    order = sorted(range(len(boxes)), key=lambda i: boxes[i].get("p", boxes[i]["score"]))
    labelled = set(order[:NAMED_BOXES])
    return (
        [
            f"{box['class'][:20]} {100 * box['p']:.0f} %"
            if "p" in box
            else f"{box['class'][:20]} {box['score']:.2f}"
            for box in boxes
        ]
        if len(boxes) <= NAMED_BOXES
        else [
            "" if i not in labelled else f"{100 * box['p']:.0f} %" if "p" in box else f"{box['score']:.2f}"
            for i, box in enumerate(boxes)
        ]
    )


def _mark(seen: ScoredFrame) -> Rgb | None:
    if seen.choice is None:
        return None
    return SURE if seen.choice.trigger.random else DOUBTFUL


def _frame_choice(canvas: NDArray[np.uint8], seen: ScoredFrame) -> None:
    """Marks a frame that is kept by a border, and names its trigger."""
    colour = _mark(seen)
    if colour is None or seen.choice is None:
        return
    cv2.rectangle(canvas, (0, 0), (canvas.shape[1] - 1, canvas.shape[0] - 1), colour, 6)
    scale, name = text_scale(canvas), seen.choice.trigger.name
    place = (max(8, canvas.shape[1] - text_width(name, scale=scale) - 12), round(14 + 20 * scale))
    write(canvas, name, place, scale=scale, colour=colour)


def _check_windows() -> None:
    # Qt ends the whole process if there is no display, so it is asked for first.
    displayed = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    try:
        if displayed:
            cv2.namedWindow("misfire")
            cv2.destroyWindow("misfire")
            return
        why = "there is no display"
    except cv2.error:
        why = "this OpenCV was built without windows"
    raise ConfigError(f"--show window: {why}; write a video instead: --show FILE.mp4")


def _check_file(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"--show {path}: expected a file with the ending {' or '.join(SUFFIXES)}, or 'window'"
        )
    was_there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        if not was_there:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"--show {path}: cannot be written ({error.strerror})") from error


def _codec() -> str:
    """Returns the name of the best encoder that this FFmpeg has."""
    for name in _CODECS:
        try:
            av.codec.Codec(name, "w")
        except (ValueError, av.error.FFmpegError):
            continue
        return name
    raise OSError("this FFmpeg has no encoder for video")
