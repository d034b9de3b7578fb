"""What a network is asked to do, and what it means to fail at it.

A Task turns (outputs, targets) of a batch into a training loss, a loss per sample, a loss per unit (joint,
tile) where the failure lives, a yes or no per sample, and one accuracy. Losses are 0 or higher; high is bad.

| task           | outputs            | targets                   | sample loss, mean over units           |
|----------------|--------------------|---------------------------|----------------------------------------|
| classification | logits [N,K]       | int64 [N]                 | cross-entropy; failed: argmax is wrong |
| regression     | values [N,J]       | float32 [N,J]             | half squared error                     |
| keypoints      | heatmaps [N,J,h,w] | float32 [N,J,3]           | heatmap error of visible joints        |
| segmentation   | logits [N,K,h,w]   | uint8 [N,H,W], 255 ignore | cross-entropy of labelled pixels       |

The last three fail above a loss threshold. None is built in: it is stated by whoever trains, or read off
held-out losses (misfire_train.failures), and the judge names it beside every number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from misfire_runtime.errors import ConfigError
from misfire_train.tasks.heatmaps import decode_heatmaps, render_targets

LossFunction = Callable[[Tensor, Tensor], Tensor]
IGNORE = 255
FAILED_SHARE = 0.2
"""Share of clean held-out samples that count as failures where nobody stated a threshold."""


@dataclass(frozen=True)
class Task:
    """One task. All functions take (outputs, targets) on one device.

    training_loss: a scalar.  sample_loss: [N], at least 0, without gradient scaling by the batch.
    unit_losses: [N,U], NaN where a sample has no such unit (an invisible joint, a tile without labels).
    failed: bool [N].  failure_threshold: above which a sample's loss is a failure; None where the answer
    itself decides (classification), and where nobody has said yet.
    accuracy: a scalar in 0..1 for reports (R2, clipped at 0, for regression).
    default_free_score: the free score to beat (methods: misfire_train.scores), None where a task has none.
    """

    name: str
    output_name: str
    training_loss: LossFunction
    sample_loss: LossFunction
    unit_losses: LossFunction
    accuracy: LossFunction
    default_free_score: str | None
    failure_threshold: float | None = None
    failed_function: LossFunction | None = None

    def failed(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """bool [N]: which samples the network got wrong."""
        if self.failed_function is not None:
            return self.failed_function(outputs, targets)
        if self.failure_threshold is None:
            raise ConfigError(f"{self.name}: say above which loss a sample has failed (with_threshold)")
        return self.sample_loss(outputs, targets) > self.failure_threshold

    @property
    def knows_failures(self) -> bool:
        """Whether `failed` can be answered."""
        return self.failed_function is not None or self.failure_threshold is not None

    def with_threshold(self, threshold: float) -> Task:
        """The same task, failing above this loss."""
        return replace(self, failure_threshold=float(threshold), failed_function=None)

    def with_worst(self, losses: Tensor, *, share: float = FAILED_SHARE) -> Task:
        """The same task, failing above the loss [N] that `share` of these samples exceed.

        losses: of clean samples that the network never fitted, and never of a test half: what counts as a
        failure there must not depend on what happened there.

        >>> get_task("regression").with_worst(torch.arange(11.0)).failure_threshold
        8.0
        """
        if not len(losses):
            raise ConfigError(f"{self.name}: no held-out loss to read a failure threshold off")
        return self.with_threshold(float(torch.quantile(losses.double(), 1 - share)))


def get_task(name: str) -> Task:
    """A built-in task by name. Raises ConfigError with the names that exist.

    >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    >>> get_task("classification").failed(logits, torch.tensor([0, 1])).tolist()
    [False, True]
    """
    task = _BUILT_IN.get(name)
    if task is None:
        raise ConfigError(
            f"there is no task {name!r}; there are {', '.join(_BUILT_IN)}, and custom_task(...)"
        )
    return task


def custom_task(
    sample_loss: LossFunction,
    *,
    failure_threshold: float | None = None,
    failed: LossFunction | None = None,
    training_loss: LossFunction | None = None,
    output_name: str = "values",
    default_free_score: str | None = None,
) -> Task:
    """A task of your own from any per-sample loss: sample_loss(outputs, targets) -> [N], at least 0.

    One of failure_threshold and failed says what a failure is. Trains on the mean sample loss unless told.
    Raises ConfigError at the first batch whose losses are not [N] or below zero.

    >>> l1 = custom_task(lambda out, true: (out - true).abs().mean(1), failure_threshold=0.5)
    >>> l1.failed(torch.zeros(2, 1), torch.tensor([[0.1], [0.9]])).tolist()
    [False, True]
    """

    def checked(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = sample_loss(outputs, targets)
        if losses.shape != (len(outputs),):
            raise ConfigError(
                f"the custom loss gave {tuple(losses.shape)} for {len(outputs)} samples; one each, [N]"
            )
        if bool((losses < 0).any()):
            raise ConfigError(
                "the custom loss is below zero; losses must be at least 0 (shift or exponentiate it)"
            )
        return losses

    return Task(
        name="custom",
        output_name=output_name,
        training_loss=training_loss or (lambda outputs, targets: checked(outputs, targets).mean()),
        sample_loss=checked,
        unit_losses=lambda outputs, targets: checked(outputs, targets)[:, None],
        accuracy=lambda outputs, targets: 1 / (1 + checked(outputs, targets).mean()),
        default_free_score=default_free_score,
        failure_threshold=failure_threshold,
        failed_function=failed,
    )


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def _half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square()


def _r_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    spread = (targets - targets.mean(0)).square().sum()
    return (1 - (outputs - targets).square().sum() / spread.clamp_min(1e-12)).clamp(0, 1)


def joint_losses(heatmaps: Tensor, targets: Tensor) -> Tensor:
    """Heatmap error of each joint, [N,J], NaN where it is not visible.

    Squared difference to the joint's Gaussian over the Gaussian's own energy: an empty heatmap gets 1.
    """
    wanted, visible = render_targets(targets, size=(heatmaps.shape[2], heatmaps.shape[3]))
    error = (heatmaps - wanted).square().sum((2, 3)) / wanted.square().sum((2, 3)).clamp_min(1e-6)
    return torch.where(visible, error, torch.full_like(error, torch.nan))


def mean_of_units(losses: Tensor) -> Tensor:
    """[N,U] to the mean over the units that are there (not NaN), [N]; 0 where there is none."""
    present = ~losses.isnan()
    return torch.where(present, losses, torch.zeros_like(losses)).sum(1) / present.sum(1).clamp_min(1)


def joints_found(heatmaps: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(found, visible), bool [N,J]. Found as in PCK@0.1: within a tenth of the figure's larger side."""
    found, visible = decode_heatmaps(heatmaps)[..., :2], targets[..., 2] > 0
    distance = (found - targets[..., :2]).square().sum(2).sqrt()
    shown = torch.where(visible[..., None], targets[..., :2], torch.nan)
    low = torch.nan_to_num(shown, nan=torch.inf).amin(1)
    high = torch.nan_to_num(shown, nan=-torch.inf).amax(1)
    side = (high - low).amax(1, keepdim=True).clamp_min(1.0)
    return (distance <= 0.1 * side) & visible, visible


def _joint_accuracy(heatmaps: Tensor, targets: Tensor) -> Tensor:
    found, visible = joints_found(heatmaps, targets)
    return found.sum() / visible.sum().clamp_min(1)


def pixel_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each pixel and whether it has a label, both [N,H,W] at the targets' size."""
    if logits.shape[2:] != targets.shape[1:]:
        size = (targets.shape[1], targets.shape[2])
        logits = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
    labels = targets.long()
    losses = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    return losses, labels != IGNORE


def tile_losses(logits: Tensor, targets: Tensor, *, rows: int = 4, columns: int = 4) -> Tensor:
    """Mean pixel loss of each tile of a grid, [N, rows*columns] row by row, NaN where nothing has a label."""
    losses, valid = pixel_losses(logits, targets)
    grid = (min(rows, losses.shape[1]), min(columns, losses.shape[2]))
    share = functional.adaptive_avg_pool2d(valid.to(losses.dtype)[:, None], grid).flatten(1)
    total = functional.adaptive_avg_pool2d((losses * valid)[:, None], grid).flatten(1)
    return torch.where(share > 0, total / share.clamp_min(1e-9), torch.full_like(total, torch.nan))


def _frame_losses(logits: Tensor, targets: Tensor) -> Tensor:
    losses, valid = pixel_losses(logits, targets)
    return (losses * valid).sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)


def _pixel_mean(logits: Tensor, targets: Tensor) -> Tensor:
    losses, valid = pixel_losses(logits, targets)
    return (losses * valid).sum() / valid.sum().clamp_min(1)


def pixel_answers(logits: Tensor, targets: Tensor) -> Tensor:
    """The likeliest class of each pixel at the targets' size, int64 [N,H,W]."""
    if logits.shape[2:] != targets.shape[1:]:
        size = (targets.shape[1], targets.shape[2])
        logits = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits.argmax(1)


def _pixel_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    valid = targets != IGNORE
    return ((pixel_answers(logits, targets) == targets.long()) & valid).sum() / valid.sum().clamp_min(1)


_BUILT_IN = {
    task.name: task
    for task in (
        Task(
            name="classification",
            output_name="logits",
            training_loss=functional.cross_entropy,
            sample_loss=_cross_entropy,
            unit_losses=lambda outputs, targets: _cross_entropy(outputs, targets)[:, None],
            accuracy=lambda outputs, targets: (outputs.argmax(1) == targets).float().mean(),
            default_free_score="msp",
            failed_function=lambda outputs, targets: outputs.argmax(1) != targets,
        ),
        Task(
            name="regression",
            output_name="values",
            training_loss=lambda outputs, targets: _half_squares(outputs, targets).mean(),
            sample_loss=lambda outputs, targets: _half_squares(outputs, targets).mean(1),
            unit_losses=_half_squares,
            accuracy=_r_squared,
            default_free_score=None,
        ),
        Task(
            name="keypoints",
            output_name="heatmaps",
            training_loss=lambda outputs, targets: mean_of_units(joint_losses(outputs, targets)).mean(),
            sample_loss=lambda outputs, targets: mean_of_units(joint_losses(outputs, targets)),
            unit_losses=joint_losses,
            accuracy=_joint_accuracy,
            default_free_score="self_residual",
        ),
        Task(
            name="segmentation",
            output_name="segmentation",
            training_loss=_pixel_mean,
            sample_loss=_frame_losses,
            unit_losses=tile_losses,
            accuracy=_pixel_accuracy,
            default_free_score="entropy",
        ),
    )
}
