"""Implements segmentation: one of K classes for each pixel.

outputs: logits [N,K,h,w].  targets: uint8 [N,H,W], 255 for a pixel without a label.
Loss: cross-entropy, mean over labelled pixels. Coarser logits are resized to the targets.
A failure is a loss above a threshold, which is stated, or read off held-out losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import Image, InputContract, resize_image
from misfire_train.data.readers.mask_images import IGNORE, read_mask, resize_mask
from misfire_train.drawing import SIDE, TRUE, Drawing, Legend, colour_of, data_url, enlarged, rgb
from misfire_train.errors import DatasetError
from misfire_train.tasks.answers.planes import shift_planes
from misfire_train.tasks.answers.shapes import require_classes
from misfire_train.tasks.answers.softmax import jensen_shannon, softmax_entropy
from misfire_train.tasks.answers.statistics import TILES, log_odds, tile_statistics
from misfire_train.tasks.base import Base, LabelPlace, Task, Variation

_PLACES = 1024
"""Pixels of a frame whose labels are compared on import; more only cost time."""


class Segmentation(Task):
    """Assigns one of K classes to each pixel."""

    name = "segmentation"
    output_name = "segmentation"
    output_kind = "segmentation"
    form = "segmentation"
    default_model = "unet-small"
    ranks, looks = (4, 3), "[N,K,H,W] logits and [N,H,W]"
    by_class = True
    by_frame = False
    mirrors = True
    foreign = True
    mean_bases = ("energy", "max_logit")
    default_free_score = "entropy"
    default_scores = ("entropy", "energy")
    # EGL++ compares every pixel with sixty neighbours' labels.
    score_batch = 16

    def parse_label(self, text: str, place: LabelPlace) -> NDArray[Any]:
        """Returns the mask in an image file, at the network's size.

        Its path is relative to the label file.
        """
        try:
            mask = read_mask(place.folder / text, size=place.size, classes=len(place.classes))
        except DatasetError as error:
            raise ConfigError(str(error)) from error
        return resize_mask(mask, height=place.contract.height, width=place.contract.width)

    def require_fit(self, outputs: Tensor, targets: Tensor) -> None:
        """Raises ConfigError on labels that are no classes of the model, and on probabilities."""
        require_classes(self.name, outputs, targets[targets != IGNORE])

    def move(self, targets: Tensor, variation: Variation) -> Tensor:
        """Returns the masks mirrored and shifted; pixels that came in from outside have no label."""
        masks = torch.where(variation.mirrored[:, None, None], targets.flip(2), targets)
        if not variation.limit:
            return masks
        moves = torch.stack((variation.down, variation.right))
        planes = shift_planes(
            masks[:, None].float(), moves, pad=variation.limit, mode="constant", value=IGNORE
        )
        return planes[:, 0].to(targets.dtype)

    def sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean cross-entropy of labelled pixels, [N]."""
        losses, valid = pixel_losses(outputs, targets)
        return (losses * valid).sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean over all labelled pixels of the batch."""
        losses, valid = pixel_losses(outputs, targets)
        return (losses * valid).sum() / valid.sum().clamp_min(1)

    def present(self, targets: NDArray[Any]) -> NDArray[np.bool_]:
        """Returns the classes of each mask, [N,K] up to the highest one."""
        counts = [np.bincount(np.ravel(mask), minlength=IGNORE + 1)[:IGNORE] > 0 for mask in targets]
        shown = np.array(counts, bool).reshape(len(counts), IGNORE)
        return shown[:, : 1 + max([0, *np.flatnonzero(shown.any(0))])]

    def unit_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean loss of each tile, [N,T], NaN if nothing in it has a label."""
        return tile_losses(outputs, targets)

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the share of labelled pixels whose largest logit is the label."""
        valid = targets != IGNORE
        right = (pixel_answers(outputs, targets) == targets.long()) & valid
        return right.sum() / valid.sum().clamp_min(1)

    def unit_statistics(self, outputs: Tensor) -> Tensor:
        """Returns statistics of the softmax over each tile, [N,T,D]."""
        return tile_statistics(outputs)

    def bases(self) -> Mapping[str, Base]:
        """Returns the log-entropy, the energy, the log of 1 - max p and the largest logit of each tile.

        Which of them holds on other roads depends on the network: logits, if its probabilities saturate.
        """
        return {
            "entropy": lambda out: torch.log(_tiles_of(softmax_entropy(out)).clamp_min(1e-9)),
            # A high energy means a confident answer, so its sign changes.
            "energy": lambda out: -_tiles_of(torch.logsumexp(out, 1)),
            "msp": lambda out: torch.log(_tiles_of(torch.sigmoid(log_odds(out))[:, 0]).clamp_min(1e-9)),
            "max_logit": lambda out: -_tiles_of(out.amax(1)),
        }

    def unmirror(
        self, outputs: Tensor, *, swap: Sequence[tuple[int, int]] = (), signs: Sequence[float] = ()
    ) -> Tensor:
        """Returns the maps mirrored back."""
        return outputs.flip(3)

    def disagreement(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns the Jensen-Shannon divergence in nats, mean over pixels, [N]."""
        return jensen_shannon(first, second).flatten(1).mean(1)

    def draw(
        self,
        image: Image,
        outputs: Tensor,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
    ) -> Drawing:
        """Returns what the network saw, with wrong pixels in the colour of the answer and true outlines."""
        answers, labels = pixel_answers(outputs, torch.as_tensor(target)[None])[0].numpy(), np.asarray(target)
        wrong = (answers != labels) & (labels != IGNORE)
        canvas, _ = enlarged(resize_image(image, contract))
        size = (canvas.shape[1], canvas.shape[0])
        palette = np.array([rgb(colour_of(k)) for k in range(int(answers.max()) + 1)], np.uint8)
        fill = cv2.resize(palette[answers], size, interpolation=cv2.INTER_NEAREST)
        mask = cv2.resize(wrong.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)[:, :, None]
        canvas = np.where(mask > 0, (0.35 * canvas + 0.65 * fill).astype(np.uint8), canvas)
        large = cv2.resize(labels.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        for label in np.unique(labels):
            outlines, _ = cv2.findContours(
                (large == label).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(canvas, outlines, -1, TRUE, 1)
        share = 1 - wrong.sum() / max(1, int((labels != IGNORE).sum()))
        return Drawing(data_url(canvas), predicted=f"{100 * share:.0f} % of pixels right")

    def draw_label(
        self,
        image: Image,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
        side: int = SIDE,
    ) -> tuple[Image, str]:
        """Returns what the network sees, tinted by class; pixels without a label stay as they are."""
        labels = np.asarray(target)
        canvas, _ = enlarged(resize_image(image, contract), side)
        palette = np.array([rgb(colour_of(k)) for k in range(IGNORE + 1)], np.uint8)
        large = cv2.resize(
            labels.astype(np.uint8), (canvas.shape[1], canvas.shape[0]), interpolation=cv2.INTER_NEAREST
        )
        tinted = (0.5 * canvas + 0.5 * palette[large]).astype(np.uint8)
        known = (labels != IGNORE).mean()
        words = "" if known == 1 else f"{100 * known:.0f} % of pixels labelled"
        return np.where((large != IGNORE)[:, :, None], tinted, canvas), words

    def class_colours(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Returns one colour for each name."""
        return tuple(colour_of(number) for number in range(len(classes)))

    def legend(self, classes: Sequence[str]) -> Legend | None:
        """Returns the colours of the classes."""
        colours = tuple((name, colour_of(number)) for number, name in enumerate(classes))
        return Legend("White: true outlines. Filled: wrong pixels, in the colour of the answer.", colours)

    def labels_and_answers(
        self, outputs: Tensor, targets: Tensor
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns (labels, likeliest classes) of evenly spaced pixels, [N,P] each."""
        labels, said = targets.long().flatten(1), pixel_answers(outputs, targets).flatten(1)
        step = max(1, labels.shape[1] // _PLACES)
        return labels[:, ::step].numpy(), said[:, ::step].numpy()


def pixel_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy of each pixel and whether it has a label, [N,H,W] at the targets' size."""
    if logits.shape[2:] != targets.shape[1:]:
        size = (targets.shape[1], targets.shape[2])
        logits = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
    labels = targets.long()
    losses = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    return losses, labels != IGNORE


def tile_losses(logits: Tensor, targets: Tensor, *, rows: int = 4, columns: int = 4) -> Tensor:
    """Returns the mean pixel loss of each tile of a grid, [N, rows*columns] row by row.

    A tile without any label has NaN.
    """
    losses, valid = pixel_losses(logits, targets)
    grid = (min(rows, losses.shape[1]), min(columns, losses.shape[2]))
    share = functional.adaptive_avg_pool2d(valid.to(losses.dtype)[:, None], grid).flatten(1)
    total = functional.adaptive_avg_pool2d((losses * valid)[:, None], grid).flatten(1)
    # Pooling divides by all pixels of a tile, so the quotient is the mean over those that have a label.
    return torch.where(share > 0, total / share.clamp_min(1e-9), torch.full_like(total, torch.nan))


def pixel_answers(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the likeliest class of each pixel at the targets' size, int64 [N,H,W]."""
    if logits.shape[2:] != targets.shape[1:]:
        size = (targets.shape[1], targets.shape[2])
        logits = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits.argmax(1)


def _tiles_of(values: Tensor) -> Tensor:
    grid = (min(TILES[0], values.shape[1]), min(TILES[1], values.shape[2]))
    return functional.adaptive_avg_pool2d(values[:, None], grid).flatten(1)
