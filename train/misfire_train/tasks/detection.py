"""Implements object detection: the boxes and classes of the objects in each frame.

outputs: candidates [N,P,K+8] of a network, or final boxes [N,M,6]; targets: [G,6] of each frame, padded to
[N,G,6]. `misfire_train.boxes.columns` has the columns.  Loss: LRP of the frame, smoothed, in 0..1.
A failure is a missed object, or a false box whose score would raise an alarm.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.boxes import BoxRule
from misfire_runtime.errors import ConfigError
from misfire_runtime.placement import Placement
from misfire_runtime.preprocess import Image, InputContract, resize_image
from misfire_train.boxes.candidates import Candidates, final_boxes, finals, find_candidates
from misfire_train.boxes.columns import BOX, CELL_X, CLASS, FINAL, IGNORE, STRIDE, class_count, is_final
from misfire_train.boxes.geometry import cut_boxes, iou_matrix
from misfire_train.boxes.losses import f1, frame_errors, frame_failed, frame_loss
from misfire_train.boxes.matching import Match, match_frames
from misfire_train.boxes.mosaic import Mosaics, join_boxes
from misfire_train.boxes.parts import LOOSE, Parts, find_parts
from misfire_train.boxes.training_loss import training_loss
from misfire_train.drawing import (
    RIGHT,
    SIDE,
    TRUE,
    WRONG,
    Drawing,
    Legend,
    box_colour,
    data_url,
    enlarged,
    labelled_boxes,
    pixel,
)
from misfire_train.signals import Signals
from misfire_train.tasks.base import LabelPlace, Task, Variation
from misfire_train.train_config import TrainConfig

IGNORED = (150, 150, 150)
# Most frames have fewer objects; a bar of its own for each number would say nothing.
_BANDS = ((0, "none"), (2, "1 to 2"), (5, "3 to 5"))


class Detection(Task):
    """Finds the objects of a frame.

    Args:
        rule: threshold, suppression and matching.
        relevant: classes whose missed objects make a frame a failure; empty means all.
    """

    name = "detection"
    output_name = "detections"
    output_kind = "boxes"
    form = "detection"
    default_model = "detector-small"
    ranks, looks = (3, 3), "[N,P,K+8] candidates or [N,M,6] boxes, and [N,G,6]"
    by_frame = False
    empty_label = True
    accuracy_name = "F1"
    mirrors = True
    zooms = True
    joins = True
    default_free_score = "expected_errors"
    default_scores = ("expected_errors", "expected_lrp", "entropy_sum", "box_count", "silence")
    # Candidates of a batch are larger than a vector of logits.
    score_batch = 32

    def __init__(self, rule: BoxRule | None = None, *, relevant: Sequence[int] = ()) -> None:
        self.rule = rule or BoxRule()
        self.relevant = tuple(relevant)

    @property
    def training_defaults(self) -> Mapping[str, Any]:
        """Returns small batches and many epochs of mirrored, zoomed and joined pictures."""
        return {
            "training.epochs": 20,
            "training.batch": 8,
            # The few frames that would stop it are no judge: training always runs to the end.
            "training.patience": 20,
            "training.flip": True,
            "training.zoom": 0.4,
            "training.mosaic": 0.5,
            "training.ema": 0.99,
            "training.precision": "bf16" if half_pays() else "fp32",
            # Frames are few: more copies would teach the head these drives, not drives.
            "head.copies": 4,
        }

    @property
    def box_rule(self) -> BoxRule | None:
        """Returns the rule."""
        return self.rule

    def configured(self, config: TrainConfig, classes: Sequence[str]) -> Detection:
        """Returns the task with the configured rule. Raises ConfigError on a class that the data lacks."""
        return self.with_rule(config.detection, classes)

    def with_rule(self, rule: BoxRule, classes: Sequence[str]) -> Detection:
        """Returns the task with this rule. Raises ConfigError on a class of the rule that is not there."""
        unknown = [name for name in rule.classes if name not in classes]
        if unknown:
            raise ConfigError(
                f"detection.classes: there is no class {unknown[0]!r}; there are {', '.join(classes)}"
            )
        changed = copy.copy(self)
        changed.rule, changed.relevant = rule, tuple(list(classes).index(name) for name in rule.classes)
        return changed

    # Labels and targets

    def parse_label(self, text: str, place: LabelPlace) -> NDArray[Any]:
        """Returns the objects [G,6] of `class,x0,y0,x1,y1` words in pixels of the stored picture.

        An empty text means that there is no object. A class may be a number or a name without spaces.
        """
        rows = [_parsed(word, place.classes) for word in text.split()]
        boxes = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
        if place.size is None:
            raise ConfigError(f"{self.name}: boxes need the size of the stored picture, which is unknown")
        found = np.zeros((len(rows), FINAL), np.float32)
        found[:, :4] = Placement.of(*place.size, place.contract).to_network(boxes)
        found[:, CLASS] = [row[4] for row in rows]
        return found

    def stack(self, targets: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Returns an array of arrays [G,6], one for each frame."""
        stacked = np.empty(len(targets), object)
        for position, rows in enumerate(targets):
            stacked[position] = np.asarray(rows, np.float32).reshape(-1, FINAL)
        return stacked

    def renumber(self, targets: NDArray[Any], index: Sequence[int]) -> NDArray[Any]:
        """Returns boxes that count the classes of another network; regions of no class stay."""
        numbers = np.asarray(index, np.float32)
        rows = [np.array(each, np.float32) for each in targets]
        for boxes in rows:
            of_class = boxes[:, CLASS] >= 0
            boxes[of_class, CLASS] = numbers[boxes[of_class, CLASS].astype(int)]
        return self.stack(rows)

    def collate(self, targets: Any) -> Tensor:
        """Returns [N,G,6], padded with rows of class -1 to the most objects of a frame, at least one."""
        if isinstance(targets, Tensor):
            return targets
        rows = [np.asarray(each, np.float32).reshape(-1, FINAL) for each in targets]
        most = max([1, *(len(each) for each in rows)])
        padded = torch.zeros(len(rows), most, FINAL)
        padded[..., CLASS] = -1
        for position, each in enumerate(rows):
            padded[position, : len(each)] = torch.from_numpy(each)
        return padded

    def require_fit(self, outputs: Tensor, targets: Tensor) -> None:
        """Raises ConfigError on columns that are not those of boxes, or classes beyond the network's."""
        if targets.shape[2] != FINAL or outputs.shape[2] < FINAL or FINAL < outputs.shape[2] < BOX + 5:
            shown = ", ".join(f"[{','.join(map(str, t.shape))}]" for t in (outputs, targets))
            raise ConfigError(f"{self.name}: got {shown}; needs {self.looks}")
        if is_final(outputs):
            return
        highest, count = int(targets[..., CLASS].max()), class_count(outputs)
        if highest >= count:
            raise ConfigError(
                f"{self.name}: a label has class {highest}, and the network has {count} classes"
            )

    # Training

    def move(self, targets: Tensor, variation: Variation) -> Tensor:
        """Returns boxes mirrored, shifted, zoomed, and cut at the picture's border.

        One of which little is left is ignored from now on; one that is gone becomes padding.
        """
        moved = targets.clone()
        left, right = targets[..., 0], targets[..., 2]
        mirrored = variation.mirrored[:, None]
        moved[..., 0] = torch.where(mirrored, variation.width - right, left)
        moved[..., 2] = torch.where(mirrored, variation.width - left, right)
        shift = torch.stack((variation.right, variation.down, variation.right, variation.down), 1)
        moved[..., :4] += shift[:, None].to(moved.dtype)
        if variation.zoom is not None:
            factor, still = variation.zoom[:, None, :1], variation.zoom[:, None, [1, 2, 1, 2]]
            moved[..., :4] = still + factor * (moved[..., :4] - still)
        return cut_boxes(moved, moved.new_tensor((0.0, 0.0, variation.width, variation.height)))

    def join(self, targets: NDArray[Any], mosaics: Mosaics) -> NDArray[Any]:
        """Returns the boxes of mosaics, cut at the edges of their pictures."""
        padded = self.collate(list(targets.ravel()))
        padded = padded.view(*targets.shape, *padded.shape[1:])
        joined = join_boxes(padded, mosaics).numpy()
        return self.stack([rows[(rows[:, CLASS] >= 0) | (rows[:, IGNORE] > 0)] for rows in joined])

    def sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the smoothed LRP of each frame at the deployed threshold, [N], in 0..1."""
        losses = [frame_loss(match, self.rule) for match in self._matches(outputs, targets)]
        return torch.tensor(losses, dtype=torch.float32)

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of classes, boxes and spread of a dense answer whose cells are known."""
        return training_loss(outputs, targets, self.rule)

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns F1 at the deployed threshold, over all frames together."""
        return torch.tensor(f1(self._matches(outputs, targets)))

    def shares(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what each frame adds to F1: twice its right boxes, and the same plus its errors."""
        matches = self._matches(outputs, targets)
        right = torch.tensor([2.0 * int(m.right.sum()) for m in matches], dtype=torch.float64)
        return right, right + torch.tensor([frame_errors(m) for m in matches], dtype=torch.float64)

    def condense(self, outputs: Tensor) -> Tensor:
        """Returns the final boxes [N,M,6]."""
        return outputs if is_final(outputs) else finals(outputs, self.rule)

    def counts(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Returns errors, missed objects, false boxes and objects of each frame, [N]."""
        matches = self._matches(outputs, targets)
        columns = {
            "errors": [frame_errors(m) for m in matches],
            "missed": [int(m.missed.sum()) for m in matches],
            "false": [int(m.false.sum()) for m in matches],
            "objects": [int(m.real.sum()) for m in matches],
        }
        return {name: torch.tensor(values) for name, values in columns.items()}

    def _matches(self, outputs: Tensor, targets: Tensor) -> list[Match]:
        return match_frames(outputs, targets, self.rule)

    # Failures

    @property
    def answer_decides(self) -> bool:
        """Returns True unless a threshold of the loss was stated."""
        return self.failure_threshold is None

    @property
    def failure_text(self) -> str:
        """Returns what counts as a failure."""
        what = f"an object of {', '.join(self.rule.classes)}" if self.rule.classes else "an object"
        return (
            f"{what} of at least {self.rule.min_side:g} px is missed, or a false box scores at least "
            f"{self.rule.alarm:g}"
        )

    def wrong(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns bool [N]: a relevant object was missed, or a false box has the score of an alarm."""
        matches = self._matches(outputs, targets)
        return torch.tensor([frame_failed(m, self.rule, relevant=self.relevant) for m in matches])

    # Scores

    def candidates(self, signals: Signals) -> Candidates:
        """Returns the candidates of a pass, found once for all scores."""
        return signals.once(("candidates", self.rule), lambda: find_candidates(signals.outputs, self.rule))

    def final(self, signals: Signals) -> tuple[Tensor, Tensor]:
        """Returns the final boxes of a pass [N,M,6], and their places among the candidates, [N,M]."""
        return signals.once(("final", self.rule), lambda: final_boxes(self.candidates(signals), self.rule))

    def lighten(self, signals: Signals) -> Signals:
        """Returns the signals of the best candidates alone."""
        index = self.candidates(signals).index
        rows = index[..., None].expand(-1, -1, signals.outputs.shape[2])
        phi = signals.last_input
        pooled = signals.flat
        if phi.ndim > 2:
            places = index[:, None].expand(-1, phi.shape[1], -1)
            phi = torch.gather(phi.flatten(2), 2, places)[..., None]
        outputs = torch.gather(signals.outputs, 1, rows)
        return replace(signals, outputs=outputs, last_input=phi, pooled=pooled, _derived={})

    def unmirror(
        self, outputs: Tensor, *, swap: Sequence[tuple[int, int]] = (), signs: Sequence[float] = ()
    ) -> Tensor:
        """Returns the candidates of mirrored pictures with their places mirrored back.

        Raises ConfigError if the detector's cells are unknown: then so is the picture's width.
        """
        if is_final(outputs) or not bool(outputs[..., STRIDE].any()):
            raise ConfigError(f"{self.name}: only a detector with known cells can be mirrored")
        width = (outputs[..., CELL_X] + outputs[..., STRIDE] / 2).amax()
        back = outputs.clone()
        back[..., 0], back[..., 2] = width - outputs[..., 2], width - outputs[..., 0]
        back[..., CELL_X] = width - outputs[..., CELL_X]
        return back

    def disagreement(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns the boxes of either answer that the other lacks, by score, plus differences of scores, [N].

        A box counts its score if no box of its class overlaps it by at least tau in the other answer.
        """
        one, two = self.condense(first), self.condense(second)
        fits = (iou_matrix(one[..., :BOX], two[..., :BOX]) >= self.rule.matching) & (
            one[..., None, 5] == two[:, None, :, 5]
        )
        fits &= (one[..., None, 4] > 0) & (two[:, None, :, 4] > 0)
        distance = (one[..., None, 4] - two[:, None, :, 4]).abs()
        # A box without a partner counts its whole score; each matched pair is seen from both sides.
        nearest = torch.where(fits, distance, torch.inf)
        own = torch.where(fits.any(2), nearest.amin(2) / 2, one[..., 4]).sum(1)
        other = torch.where(fits.any(1), nearest.amin(1) / 2, two[..., 4]).sum(1)
        return own + other

    def present(self, targets: NDArray[Any]) -> NDArray[np.bool_]:
        """Returns the classes of the objects in each frame, [N,K] up to the highest one."""
        found = [{int(number) for number in rows[:, CLASS] if number >= 0} for rows in targets]
        shown = np.zeros((len(found), 1 + max([0, *(max(each, default=0) for each in found)])), bool)
        for row, each in enumerate(found):
            shown[row, list(each)] = True
        return shown

    # The judge's report

    def slices(self, targets: NDArray[Any], classes: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Returns frames by the number of their objects."""
        counts = [int((rows[:, 5] == 0).sum()) for rows in targets]
        return {"objects": np.array([_band(count) for count in counts])}

    def loose(self, outputs: Tensor) -> Tensor:
        """Returns final boxes [N,M,6] down to low scores, which average precision needs."""
        if is_final(outputs):
            return outputs
        low = min(LOOSE, self.rule.score_threshold)
        return finals(outputs, self.rule.model_copy(update={"score_threshold": low}))

    def parts(
        self,
        answers: Tensor,
        targets: NDArray[Any],
        *,
        sizes: Sequence[tuple[int, int]],
        contract: InputContract,
        classes: Sequence[str],
    ) -> Parts:
        """Returns every object and false box, by class, size and distance to the border."""
        rows = [torch.as_tensor(np.asarray(each, np.float32).reshape(-1, FINAL)) for each in targets]
        return find_parts(answers, rows, self.rule, sizes=sizes, contract=contract, classes=classes)

    def draw(
        self,
        image: Image,
        outputs: Tensor,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
    ) -> Drawing:
        """Returns what the network saw, with missed objects and with right and false boxes drawn in."""
        match = self._matches(outputs, self.collate([target]))[0]
        canvas, factor = enlarged(resize_image(image, contract))
        for row, real, found in zip(target, match.real, match.found, strict=True):
            colour, width = (IGNORED, 1) if not real else (TRUE, 1) if found else (WRONG, 2)
            _rectangle(canvas, row[:4], factor, colour, width)
            if real and not found:
                _cross(canvas, row[:4], factor, colour)
        boxes = self.condense(outputs)[0].detach().cpu().numpy()
        for row, right, ignored in zip(boxes, match.right, match.ignored, strict=False):
            _rectangle(canvas, row[:4], factor, RIGHT if right else IGNORED if ignored else WRONG, 1)
        real = int(match.real.sum())
        return Drawing(
            data_url(canvas),
            truth=_words(match.classes[match.real], classes) or "nothing",
            predicted=f"{int(match.right.sum())} of {real} found, {int(match.false.sum())} false",
        )

    def draw_label(
        self,
        image: Image,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
        side: int = SIDE,
    ) -> tuple[Image, str]:
        """Returns the stored picture with the boxes of the target, and their counts."""
        boxes = np.asarray(target, np.float32).copy()
        place = Placement.of(image.shape[1], image.shape[0], contract)
        boxes[:, :BOX] = place.to_image(boxes[:, :BOX])
        return labelled_boxes(image, boxes, classes=classes, side=side)

    def class_colours(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Returns the colour of the boxes of each class."""
        return tuple(box_colour(number) for number in range(len(classes)))

    def legend(self, classes: Sequence[str]) -> Legend | None:
        """Returns what the boxes are."""
        return Legend(
            "White: objects as labelled. Green: their boxes. Red: false boxes; with a cross: missed objects. "
            "Grey: what does not count."
        )

    # Export

    def answer(self, signals: Signals) -> Tensor:
        """Returns the final boxes [N,M,6]."""
        return self.final(signals)[0]


def half_pays() -> bool:
    """Returns whether this machine computes in bfloat16 faster than in fp32."""
    # Older versions of torch cannot tell; fp32 is never wrong.
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.cuda.is_available() or bool(can.get("amx_bf16") or can.get("avx512_bf16"))


def _parsed(word: str, classes: Sequence[str]) -> tuple[float, float, float, float, int]:
    """Returns (x0, y0, x1, y1, class) of `class,x0,y0,x1,y1`. Raises ConfigError."""
    name, *numbers = word.split(",")
    try:
        x0, y0, x1, y1 = (float(number) for number in numbers)
    except ValueError:
        raise ConfigError(f"{word!r} is not class,x0,y0,x1,y1") from None
    if not (np.isfinite([x0, y0, x1, y1]).all() and x1 > x0 and y1 > y0):
        raise ConfigError(f"{word!r}: expected finite x0 < x1 and y0 < y1")
    if name in classes:
        return x0, y0, x1, y1, list(classes).index(name)
    if name.isdigit() and int(name) < len(classes):
        return x0, y0, x1, y1, int(name)
    raise ConfigError(f"{word!r}: there is no class {name!r}; there are {', '.join(classes)}")


def _band(count: int) -> str:
    return next((name for most, name in _BANDS if count <= most), "6 and more")


def _words(labels: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Returns "2 car, 1 bike"."""
    known, counts = np.unique(labels, return_counts=True)
    names = [classes[k] if 0 <= k < len(classes) else str(k) for k in known]
    return ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))


def _rectangle(
    canvas: Image, box: NDArray[Any], factor: float, colour: tuple[int, int, int], width: int
) -> None:
    # Edges are continuous, and `pixel` takes centres of pixels.
    start, end = pixel(box[:2] - 0.5, factor), pixel(box[2:4] - 0.5, factor)
    cv2.rectangle(canvas, start, end, colour, width, cv2.LINE_AA)


def _cross(canvas: Image, box: NDArray[Any], factor: float, colour: tuple[int, int, int]) -> None:
    start, end = pixel(box[:2] - 0.5, factor), pixel(box[2:4] - 0.5, factor)
    cv2.line(canvas, start, end, colour, 1, cv2.LINE_AA)
    cv2.line(canvas, (start[0], end[1]), (end[0], start[1]), colour, 1, cv2.LINE_AA)
