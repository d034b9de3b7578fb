"""Makes a task from any per-sample loss, for users who attach a head to a model of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from misfire_runtime.errors import ConfigError
from misfire_train.signals import Score
from misfire_train.tasks.base import OutputKind, Task

LossFunction = Callable[[Tensor, Tensor], Tensor]
_KINDS: dict[str, OutputKind] = {
    "logits": "logits",
    "values": "values",
    "heatmaps": "heatmaps",
    "segmentation": "segmentation",
}


class CustomTask(Task):
    """Computes losses and failures by the caller's functions; `custom_task` makes it."""

    name = "custom"
    shifts = False

    def __init__(
        self,
        loss: LossFunction,
        *,
        training: LossFunction | None = None,
        failed: LossFunction | None = None,
        failure_threshold: float | None = None,
        output_name: str = "values",
        default_free_score: str | None = None,
        scores: Sequence[type[Score]] = (),
    ) -> None:
        self._loss, self._training, self._failed = loss, training, failed
        # A failure function decides by itself; a threshold would override it.
        self.failure_threshold = None if failed is not None else failure_threshold
        self.output_name, self.output_kind = output_name, _KINDS.get(output_name, "other")
        self.own_scores = tuple(scores)
        free = tuple(score.name for score in self.own_scores if score.free)
        self.default_scores = free
        self.default_free_score = default_free_score or (free[0] if free else None)

    def sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, [N].

        Raises ConfigError if its shape is wrong or it is below zero.
        """
        losses = self._loss(outputs, targets)
        if losses.shape != (len(outputs),):
            raise ConfigError(
                f"the custom loss gave {tuple(losses.shape)} for {len(outputs)} samples; one each, [N]"
            )
        if bool((losses < 0).any()):
            raise ConfigError(
                "the custom loss is below zero; losses must be at least 0 (shift or exponentiate it)"
            )
        return losses

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the caller's training loss, or the mean sample loss."""
        if self._training is not None:
            return self._training(outputs, targets)
        return self.sample_loss(outputs, targets).mean()

    @property
    def answer_decides(self) -> bool:
        """Returns whether the caller defined failures, and set no threshold since."""
        return self._failed is not None and self.failure_threshold is None

    def wrong(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the caller's failures, bool [N]."""
        assert self._failed is not None
        return self._failed(outputs, targets)


def custom_task(
    sample_loss: LossFunction,
    *,
    failure_threshold: float | None = None,
    failed: LossFunction | None = None,
    training_loss: LossFunction | None = None,
    output_name: str = "values",
    default_free_score: str | None = None,
    scores: Sequence[type[Score]] = (),
) -> Task:
    """Returns a task of your own from any per-sample loss.

    A task with more of its own (labels, units, drawings) is a subclass of `misfire_train.tasks.Task` instead.

    Args:
        sample_loss: (outputs, targets) -> [N], at least 0.
        failure_threshold: the loss above which a sample has failed.
        failed: (outputs, targets) -> bool [N]; give this or failure_threshold.
        training_loss: (outputs, targets) -> scalar. Default: the mean sample loss.
        output_name: of the answer in an exported graph.
        default_free_score: the free score that others have to beat. Default: the first free one of `scores`.
        scores: classes of your own scores. A bundle carries the free ones by default.

    Raises:
        ConfigError: at the first batch whose losses are not [N] or are below zero.

    >>> import torch
    >>> l1 = custom_task(lambda out, true: (out - true).abs().mean(1), failure_threshold=0.5)
    >>> l1.failed(torch.zeros(2, 1), torch.tensor([[0.1], [0.9]])).tolist()
    [False, True]
    """
    return CustomTask(
        sample_loss,
        training=training_loss,
        failed=failed,
        failure_threshold=failure_threshold,
        output_name=output_name,
        default_free_score=default_free_score,
        scores=scores,
    )


def unknown_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Raises ConfigError: a file records that a task was custom, but not its loss."""
    raise ConfigError("the loss of a custom task is not recorded: make the task again with custom_task(...)")
