"""A failure score for any network, in a notebook: attach to layers by name, fit on held-out data, score.

model + layer names --attach--> Attached --fit(train, holdout)--> score(images) -> [N]; the model stays as it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.failures import settle_failures
from misfire_train.head_data import LabelledSet, TensorSet, augmented
from misfire_train.head_training import HeadReport, fit_head, require_enough
from misfire_train.heads import HeadRecipe, LossHead, recipe_named
from misfire_train.scores.fitting import evaluating
from misfire_train.signals import Probe, Score, ScoredModel
from misfire_train.tasks import Task, get_task
from misfire_train.train_config import FailureTable

Labelled = Examples | tuple[Tensor, Any]


class Attached:
    """A network with a place for a failure score. The network keeps its mode, its weights and its statistics.

    probe: what captures the layers.  score: the fitted head, a `Score`; ConfigError before `fit`.
    report: what its training showed.  task: after `fit`, one that knows what a failure is: where nobody has
    said so, a loss among the worst fifth of the clean holdout.
    """

    def __init__(self, probe: Probe, recipe: HeadRecipe, *, task: Task) -> None:
        self.probe, self.recipe, self.task, self._given = probe, recipe, task, task
        self.report: HeadReport | None = None
        self._head: LossHead | None = None

    @property
    def score(self) -> Score:
        """The fitted head."""
        if self._head is None:
            raise ConfigError("the head is not fitted yet: call fit(train=..., holdout=...)")
        return self._head

    def fit(
        self,
        *,
        train: Labelled,
        holdout: Labelled,
        contract: InputContract | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        copies: int | None = None,
        seed: int = 0,
    ) -> HeadReport:
        """Fits the head on losses of `holdout`, which the network must never have been trained on.

        train, holdout: (images [N,C,H,W], targets), or Examples with their contract.
        augment: for tensors, makes a worse version of a batch [n,C,H,W]; Examples use the corruption library.
        copies: how many worse versions.  Returns the report; `collapsed` says if nothing was learned.
        """
        recipe = self.recipe if copies is None else replace(self.recipe, copies=copies)
        known, unseen = _as_set(train), _as_set(holdout)
        versions: Sequence[LabelledSet] | None = None
        if isinstance(unseen, TensorSet):
            contract = contract or _contract_of(unseen)
            versions = augmented(unseen, augment, copies=recipe.copies) if augment is not None else []
        if contract is None:
            raise ConfigError("examples need contract=..., the InputContract of the network")
        require_enough(unseen)
        self.task, _ = settle_failures(
            self.probe, self._given, unseen, contract=contract, table=FailureTable()
        )
        fitted = fit_head(
            self.probe,
            task=self.task,
            recipe=recipe,
            train=known,
            holdout=unseen,
            contract=contract,
            copies=versions,
            seed=seed,
        )
        self._head, self.report = fitted.head, fitted.report
        return fitted.report

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[N,C,H,W] to scores [N]; higher = likelier to fail. The network's mode is restored."""
        with evaluating(self.probe):
            value: Tensor = self.score(self.probe(images))
        return value

    def scored_model(self) -> ScoredModel:
        """Network and score as one module, ready for export."""
        return ScoredModel(self.probe, [self.score], output_name=self.task.output_name)


def attach(
    model: nn.Module,
    *,
    layers: Sequence[str],
    last_layer: str | None = None,
    objective: str = "learning-loss-pp",
    task: str | Task = "classification",
    steps: int | None = None,
) -> Attached:
    """Attaches a loss-predicting head to `model`, which stays bit-identical.

    layers: names as in `model.named_modules()`, whose outputs the head may read.
    last_layer: the last Linear or 1x1 convolution, found where it is not named.
    objective: a recipe (misfire_train.heads.RECIPES).
    Raises ConfigError on an unknown recipe or layer.

    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
    ...                       nn.Flatten(), nn.Linear(8, 3))
    >>> images, labels = torch.randn(200, 1, 8, 8), torch.randint(0, 3, (200,))
    >>> attached = attach(model, layers=["1"], steps=20)
    >>> report = attached.fit(train=(images[:100], labels[:100]), holdout=(images[100:], labels[100:]))
    >>> attached(images[:5]).shape, report.samples
    (torch.Size([5]), 100)
    """
    recipe = replace(recipe_named(objective), joint=False)
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    try:
        probe = Probe(model, last_layer=last_layer or find_last_layer(model), features=layers)
    except ValueError as error:
        raise ConfigError(f"attach: {error}") from error
    return Attached(probe, recipe, task=get_task(task) if isinstance(task, str) else task)


def find_last_layer(model: nn.Module) -> str:
    """The name of the last nn.Linear or 1x1 nn.Conv2d. Raises ConfigError where there is none."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
    ]
    if not found:
        raise ConfigError("attach: the model has no Linear and no 1x1 convolution; name last_layer")
    return str(found[-1])


def _as_set(given: Labelled) -> Examples | TensorSet:
    return given if isinstance(given, Examples) else TensorSet.of(*given)


def _contract_of(given: TensorSet) -> InputContract:
    channels, height, width = given.images.shape[1:]
    if channels not in (1, 3):
        raise ConfigError(f"images have {channels} channels; expected 1 or 3")
    return InputContract(height=height, width=width, color="gray" if channels == 1 else "rgb")
