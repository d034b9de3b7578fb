"""Does the model say the same of the mirrored image? Two passes, no labels, no fitting.

`FlipConsistency` is a `PassScore`, so `scores.compute` makes the second pass once. For a graph,
`FlipScoredModel` traces both passes: it costs twice the model, and is for machines that can afford it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from misfire_train.errors import ScoreError
from misfire_train.scores.passes import PassScore
from misfire_train.signals import Score, ScoredModel, Signals
from misfire_train.tasks.heatmaps import peak_cells


class FlipConsistency(PassScore):
    """How far the answer to the mirrored image lies from the mirrored answer.

    classification, segmentation: Jensen-Shannon divergence in nats, 0 to ln 2, averaged over pixels.
    keypoints: mean distance of the decoded joints, in cells. swap: pairs of joints that trade places (left
    and right).  regression: mean squared difference; signs: [J] of +1 or -1, the factor of each output under
    mirroring, is needed there.
    """

    name = "flip_consistency"
    extra = "flip"

    def __init__(
        self,
        *,
        task: str = "classification",
        swap: Iterable[tuple[int, int]] = (),
        signs: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if task == "regression" and not signs:
            raise ScoreError(
                "flip_consistency of a regressor needs signs=[...], what mirroring does to each output"
            )
        self.task, self.swap, self.signs = task, tuple(swap), tuple(signs)
        self.definition = "disagreement of the answers to the image and to its mirror image (two passes)"

    def combine(self, signals: Signals, mirrored: Signals) -> Tensor:
        """[N] from the plain pass and the pass over the mirrored image."""
        plain, other = signals.outputs, mirrored.outputs
        if self.task == "regression":
            factor = torch.tensor(self.signs, dtype=plain.dtype, device=plain.device)
            return (plain - other * factor).square().flatten(1).mean(1)
        if self.task == "keypoints":
            back = other.flip(3)[:, self._order(other.shape[1])]
            return (peak_cells(plain)[0] - peak_cells(back)[0]).square().sum(2).sqrt().mean(1)
        back = other.flip(3) if other.ndim == 4 else other
        divergence = jensen_shannon(plain, back)
        return divergence if divergence.ndim == 1 else divergence.flatten(1).mean(1)

    def _order(self, joints: int) -> list[int]:
        order = list(range(joints))
        for left, right in self.swap:
            order[left], order[right] = right, left
        return order


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Divergence in nats of two softmax distributions over dim 1.

    >>> round(jensen_shannon(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])).item(), 4)
    0.6931
    """
    log_a = torch.log_softmax(first, 1).clamp_min(-100)
    log_b = torch.log_softmax(second, 1).clamp_min(-100)
    a, b = torch.exp(log_a), torch.exp(log_b)
    log_m = torch.log(((a + b) / 2).clamp_min(1e-38))
    return ((a * (log_a - log_m)).sum(1) + (b * (log_b - log_m)).sum(1)).clamp_min(0) / 2


class FlipScoredModel(ScoredModel):
    """A ScoredModel with a second pass over the mirrored image, for the scores that want it."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """As ScoredModel, two passes."""
        signals: Signals = self.probe(image)
        mirrored: Signals = self.probe(image.flip(3))
        result = {self.output_name: signals.outputs}
        for score in self.scores:
            if isinstance(score, FlipConsistency):
                result[f"score.{score.name}"] = score.combine(signals, mirrored).float()
            else:
                assert isinstance(score, Score)
                result[f"score.{score.name}"] = score(signals).float()
        result["embedding"] = signals.embedding.float()
        return result
