"""Compares the answer to an image with that to its mirror image. Two passes, no labels, no fitting.

`FlipConsistency` is a `PassScore`, so `scores.compute` makes the second pass once. For a graph,
`FlipScoredModel` traces both passes: it costs twice the model, and is for machines that can afford it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from misfire_train.errors import ScoreError
from misfire_train.scores.passes import PassScore
from misfire_train.scores.registry import MAPS, Recipe, register
from misfire_train.signals import Score, ScoredModel, Signals
from misfire_train.tasks import Task, as_task


@register(tasks=(*MAPS, "detection"), passes="two", source="this project")
class FlipConsistency(PassScore):
    """Scores the distance between the answer to the mirrored image and the mirrored answer.

    classification, segmentation: Jensen-Shannon divergence in nats, 0 to ln 2, averaged over pixels.
    keypoints: mean distance of the decoded joints, in cells. swap: pairs of joints that change places (left
    and right). regression: mean squared difference; it needs signs, [J] of +1 or -1, the factor of each
    output under mirroring. detection: scores of boxes without a partner, plus differences of scores.
    """

    name = "flip_consistency"
    extra = "flip"

    def __init__(
        self,
        *,
        task: str | Task = "classification",
        swap: Iterable[tuple[int, int]] = (),
        signs: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.task = as_task(task)
        if self.task.output_kind == "values" and not signs:
            raise ScoreError(
                "flip_consistency of a regressor needs signs=[...], what mirroring does to each output"
            )
        self.swap, self.signs = tuple(swap), tuple(signs)
        self.definition = "disagreement of the answers to the image and to its mirror image (two passes)"

    @classmethod
    def make(cls, recipe: Recipe) -> FlipConsistency:
        """Builds it for the task."""
        return cls(task=recipe.task, **recipe.options)

    def combine(self, signals: Signals, mirrored: Signals) -> Tensor:
        """Returns scores [N] from the plain pass and the pass over the mirrored image."""
        plain, other = signals.outputs, mirrored.outputs
        # The answer to the mirrored image is turned back before the two are compared.
        back = self.task.unmirror(other, swap=self.swap, signs=self.signs)
        return self.task.disagreement(plain, back)


class FlipScoredModel(ScoredModel):
    """Is a ScoredModel with a second pass over the mirrored image, for the scores that need it."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns the outputs of ScoredModel, from two passes."""
        signals: Signals = self.probe(image)
        mirrored: Signals = self.probe(image.flip(3))
        result = {self.output_name: signals.outputs if self.answer is None else self.answer(signals)}
        for score in self.scores:
            if isinstance(score, FlipConsistency):
                result[f"score.{score.name}"] = score.combine(signals, mirrored).float()
            else:
                assert isinstance(score, Score)
                result[f"score.{score.name}"] = score(signals).float()
        result["embedding"] = signals.embedding.float()
        return result
