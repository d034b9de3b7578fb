"""Shows what a vehicle sees: every scored frame with the model's answer and the score over time.

ScoredFrame --privacy--> picture --draw_view--> with a strip of the score --> FILE.mp4, or a window

The privacy stage applies here as well: a video is a picture on a disk. A screen or a disk that fails ends the
show, never the run. It runs on the frame path, so `--show` is for looking, not for a vehicle in service.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.drawing import DOUBTFUL, SURE, Rgb, score_strip, text_scale, text_width, write
from misfire_runtime.engines.scoring import Scored
from misfire_runtime.errors import PrivacyError
from misfire_runtime.preprocess import plain
from misfire_runtime.samples.privacy import Privacy
from misfire_runtime.triggers.scored_frame import ScoredFrame
from misfire_runtime.vehicle.screens import WINDOW, Film, Screen, Window, WindowClosedError, check_target
from misfire_runtime.vehicle.view import View, canvas_size, draw_view, in_words

_LOG = logging.getLogger(__name__)
STRIP_HEIGHT = 96
ROOM = 240
"""Frames in the strip: 8 s at 30 frames per second."""
_STILL_S = 0.5
"""How long a picture without a time is shown, such as one of a folder."""
_LONGEST_GAP_S = 60.0


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
        check_target(target)

    def see(self, seen: ScoredFrame) -> None:
        """Shows a frame; does nothing once the show is over."""
        if self._over:
            return
        try:
            lane = self._lanes.get(seen.source)
            if lane is None:
                lane = self._lanes[seen.source] = _Lane(self._path(seen.source))
            lane.show(seen, self._view(seen))
        except WindowClosedError:
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
        image, scored = plain(seen.image), seen.scored
        view = View(image, scored.prediction, mask=scored.mask, tiles=scored.tiles, bars=scored.bars)
        if self._privacy is None:
            return view
        try:
            shown, _labels, _changed = self._privacy.apply(image, source=seen.source)
            region = self._privacy.region(image, source=seen.source)
        except PrivacyError:
            return None
        return replace(view, image=shown) if region is None else view.cropped(shown, region)


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
            self._screen = Window(seen.source) if self._path is None else Film(self._path)
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
            value=_value(seen.scored, name, level=self._levels[-1]) if known else "",
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


def _value(scored: Scored, name: str, *, level: float) -> str:
    """Returns a score, its percentile, and the loss to expect, as far as the bundle knows it."""
    expected = scored.expected_loss(name)
    loss = "" if expected is None else f", expected loss {expected:.2g}"
    return f"{name} {scored.scores[name]:.3g} ({100 * level:.1f} %{loss})"


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
