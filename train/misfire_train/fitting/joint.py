"""Trains a head along with the task network, as Yoo & Kweon do: on its training losses.

Until `detach_epoch` the head's gradients flow into the network; after it (epoch > detach_epoch, from 0)
features are detached. It is kept for comparison: training losses vanish as the network memorises, and the
gradients cost accuracy. The default recipe does neither.
"""

from __future__ import annotations

from torch import Tensor, nn

from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.fitting.backbone import Progressed
from misfire_train.heads import HeadRecipe, LossHead
from misfire_train.heads.data import collect
from misfire_train.heads.fitted import Fitted
from misfire_train.heads.training import candidate_heads, check_head
from misfire_train.objectives import OBJECTIVES, ratio_eps
from misfire_train.signals import Probe, Signals
from misfire_train.tasks import Task


class JointHead:
    """Is a gap or conv head inside the training loop. weight: lambda of its loss beside the task's."""

    def __init__(self, head: LossHead, recipe: HeadRecipe, *, weight: float, detach_epoch: int) -> None:
        self.head, self.recipe, self.weight, self.detach_epoch = head, recipe, weight, detach_epoch

    @classmethod
    def attach(
        cls, probe: Probe, recipe: HeadRecipe, *, contract: InputContract, weight: float, epochs: int
    ) -> JointHead:
        """Returns a fresh head for this network; by default it detaches after three fifths of the epochs."""
        # Three fifths, as in the published code: 120 of 200 epochs.
        detach = recipe.detach_epoch if recipe.detach_epoch is not None else int(0.6 * epochs)
        head = candidate_heads(probe, recipe, contract=contract)[0]
        return cls(head, recipe, weight=weight, detach_epoch=detach)

    def parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that the network's optimiser takes over."""
        return list(self.head.parameters())

    def loss(self, signals: Signals, losses: Tensor, *, epoch: int) -> Tensor:
        """Returns weight * objective(predicted, true losses of this batch), a scalar."""
        if epoch > self.detach_epoch:
            signals = detached(signals)
        self.head.to(losses.device).train()
        predicted = self.head.pool(self.head.predict(self.head.extract(signals)))
        options = {} if self.recipe.objective == "log-loss-regression" else {"pairs": "all"}
        if self.recipe.objective in ("learning-loss-pp", "log-loss-regression"):
            options["eps"] = ratio_eps(losses) or 1e-12  # type: ignore[assignment]
        return self.weight * OBJECTIVES[self.recipe.objective](predicted, losses.detach(), **options)

    def finish(
        self, probe: Probe, *, task: Task, holdout: Examples, contract: InputContract, state: Progressed
    ) -> Fitted:
        """Returns the head as it is now, checked on held-out images."""
        self.head.cpu().eval().requires_grad_(False)
        self.head.recipe = self.recipe.name
        check = collect(probe, self.head, holdout, task=task, contract=contract)
        return Fitted(self.head, check_head(self.head, check, self.recipe, samples=0, steps=state.epoch))


def detached(signals: Signals) -> Signals:
    """Returns the same numbers without gradients into the network."""
    features = {name: maps.detach() for name, maps in signals.features.items()}
    return Signals(
        signals.outputs.detach(), signals.last_input.detach(), features, signals.weight, signals.bias
    )
