"""Implements keypoints: the places of J joints in each frame, as one heatmap for each joint.

outputs: heatmaps [N,J,h,w].  targets: float32 [N,J,3], x and y in the network's input pixels and whether the
joint is visible.  Loss: heatmap error, mean over visible joints.
A failure is a loss above a threshold, which is stated, or read off held-out losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import Image, InputContract, resize_image
from misfire_train.drawing import (
    RIGHT,
    SIDE,
    TRUE,
    WRONG,
    Drawing,
    Legend,
    colour_of,
    data_url,
    enlarged,
    pixel,
    rgb,
)
from misfire_train.tasks.answers.heatmaps import decode_heatmaps, peak_cells, render_targets
from misfire_train.tasks.answers.statistics import joint_residual, joint_statistics
from misfire_train.tasks.base import Base, LabelPlace, Task, Variation, mean_of_units, parse_numbers


class Keypoints(Task):
    """Finds the joints of a figure."""

    name = "keypoints"
    output_name = "heatmaps"
    output_kind = "heatmaps"
    form = "keypoints"
    default_model = "keypoint-small"
    ranks, looks = (4, 3), "[N,J,h,w] heatmaps and [N,J,3]"
    by_frame = False
    names_units = True
    mean_bases = ("mean_peak",)
    default_free_score = "self_residual"
    default_scores = ("mean_peak", "heatmap_entropy", "multi_peak_entropy", "self_residual")
    # Heatmaps of a batch are larger than a vector of logits.
    score_batch = 64

    def parse_label(self, text: str, place: LabelPlace) -> NDArray[Any]:
        """Returns the joints [J,3] of `x,y,visible` triples separated by spaces."""
        return parse_numbers(text, (len(place.classes), 3), task=self.name)

    def require_fit(self, outputs: Tensor, targets: Tensor) -> None:
        """Raises ConfigError on targets that are not one (x, y, visible) for each heatmap."""
        if targets.shape[1:] != (outputs.shape[1], 3):
            shown = ",".join(map(str, targets.shape))
            raise ConfigError(
                f"{self.name}: {outputs.shape[1]} heatmaps and targets [{shown}]; needs {self.looks}"
            )

    def move(self, targets: Tensor, variation: Variation) -> Tensor:
        """Returns the joints shifted.

        Pictures are never mirrored: left and right joints would change places.
        """
        moved = targets.clone()
        moved[..., 0] += variation.right[:, None]
        moved[..., 1] += variation.down[:, None]
        return moved

    def sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean loss of visible joints, [N]."""
        return mean_of_units(joint_losses(outputs, targets))

    def unit_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of each joint, [N,J], NaN if it is not visible."""
        return joint_losses(outputs, targets)

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the share of visible joints that were found (PCK@0.1)."""
        found, visible = joints_found(outputs, targets)
        return found.sum() / visible.sum().clamp_min(1)

    def unit_statistics(self, outputs: Tensor) -> Tensor:
        """Returns the statistics of each heatmap, [N,J,14]."""
        return joint_statistics(outputs)

    def bases(self) -> Mapping[str, Base]:
        """Returns the error against the map's own joint, and the height of its peak."""
        return {"self_residual": joint_residual, "mean_peak": lambda out: -out.flatten(2).amax(2)}

    def unmirror(
        self, outputs: Tensor, *, swap: Sequence[tuple[int, int]] = (), signs: Sequence[float] = ()
    ) -> Tensor:
        """Returns the maps mirrored back, with the joints of `swap` exchanged."""
        order = list(range(outputs.shape[1]))
        for left, right in swap:
            order[left], order[right] = right, left
        return outputs.flip(3)[:, order]

    def disagreement(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns the mean distance of decoded joints, in cells, [N]."""
        return (peak_cells(first)[0] - peak_cells(second)[0]).square().sum(2).sqrt().mean(1)

    def draw(
        self,
        image: Image,
        outputs: Tensor,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
    ) -> Drawing:
        """Returns what the network saw, with a line from each true place to the answer."""
        truth = torch.as_tensor(target)[None]
        found, visible = joints_found(outputs, truth)
        canvas, factor = enlarged(resize_image(image, contract))
        answers, places = decode_heatmaps(outputs)[0, :, :2].numpy(), truth[0, :, :2].numpy()
        for joint in visible[0].nonzero().flatten().tolist():
            start, end = pixel(places[joint], factor), pixel(answers[joint], factor)
            colour = RIGHT if found[0, joint] else WRONG
            cv2.line(canvas, start, end, colour, 2, cv2.LINE_AA)
            cv2.circle(canvas, start, 4, TRUE, 1, cv2.LINE_AA)
            cv2.circle(canvas, end, 3, colour, -1, cv2.LINE_AA)
        return Drawing(data_url(canvas), predicted=f"{int(found.sum())} of {int(visible.sum())} joints found")

    def draw_label(
        self,
        image: Image,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
        side: int = SIDE,
    ) -> tuple[Image, str]:
        """Returns what the network sees with a disc in the colour of each visible joint."""
        canvas, factor = enlarged(resize_image(image, contract), side)
        shown = [joint for joint, place in enumerate(target) if place[2] > 0]
        for joint in shown:
            place = pixel(target[joint, :2], factor)
            cv2.circle(canvas, place, 4, TRUE, -1, cv2.LINE_AA)
            cv2.circle(canvas, place, 3, rgb(colour_of(joint)), -1, cv2.LINE_AA)
        return canvas, f"{len(shown)} of {len(target)} joints visible"

    def class_colours(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Returns one colour for each name."""
        return tuple(colour_of(number) for number in range(len(classes)))

    def legend(self, classes: Sequence[str]) -> Legend | None:
        """Returns what the rings and lines are."""
        return Legend(
            "White rings: visible joints as labelled. Lines lead to the answers: green within a tenth of the "
            "figure's larger side, red beyond."
        )


def joint_losses(heatmaps: Tensor, targets: Tensor) -> Tensor:
    """Returns the heatmap error of each joint, [N,J], NaN if it is not visible.

    Squared difference to the joint's Gaussian over the Gaussian's own energy: an empty heatmap gets 1.
    """
    wanted, visible = render_targets(targets, size=(heatmaps.shape[2], heatmaps.shape[3]))
    # The floor is for joints outside the image, whose Gaussian has no energy; they are masked below.
    error = (heatmaps - wanted).square().sum((2, 3)) / wanted.square().sum((2, 3)).clamp_min(1e-6)
    return torch.where(visible, error, torch.full_like(error, torch.nan))


def joints_found(heatmaps: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (found, visible), bool [N,J].

    Found as in PCK@0.1: within a tenth of the figure's larger side.
    """
    found, visible = decode_heatmaps(heatmaps)[..., :2], targets[..., 2] > 0
    distance = (found - targets[..., :2]).square().sum(2).sqrt()
    shown = torch.where(visible[..., None], targets[..., :2], torch.nan)
    low = torch.nan_to_num(shown, nan=torch.inf).amin(1)
    high = torch.nan_to_num(shown, nan=-torch.inf).amax(1)
    # At least a pixel: a single visible joint has no extent.
    side = (high - low).amax(1, keepdim=True).clamp_min(1.0)
    return (distance <= 0.1 * side) & visible, visible
