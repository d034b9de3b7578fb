"""Attaches a failure score to any network, as in a notebook: by layer names, fitted on held-out data.

model + layer names --attach--> Attached --fit(train, holdout)--> score(images) -> [N]

The model itself is not changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.fitting.failures import settle_failures
from misfire_train.heads import HeadRecipe, LossHead, recipe_named
from misfire_train.heads.data import LabelledSet, TensorSet, augmented
from misfire_train.heads.fitted import HeadReport
from misfire_train.heads.training import fit_head, require_enough
from misfire_train.labelled_sets import as_set
from misfire_train.readings import Reading, is_probable, is_single
from misfire_train.scores.fitting import evaluating
from misfire_train.signals import Probe, Score, ScoredModel, answer_of
from misfire_train.tasks import Task, get_task
from misfire_train.tasks.check import require_fit
from misfire_train.train_config import FailureTable

# Enough targets to show what they are; a whole set could take minutes on a slow network.
_LOOKED_AT = 64
_KEPT = 0.3
"""Share of a map's range that is left after any usual resize; a sigmoid of logits leaves less."""
_SHARED = 0.05
"""Share of held-out images that may be copies of training images: black or frozen frames are alike."""
Labelled = Examples | tuple[Any, Any] | Sequence[Any] | TorchDataset[Any] | DataLoader[Any]


class Attached:
    """Holds a network with a place for a failure score. The network keeps its mode, weights and statistics.

    Attributes:
        probe: captures the layers.
        score: the fitted head, a `Score`; ConfigError before `fit`.
        report: what its training showed.
        task: after `fit`, a task that knows its failures: by default the losses among the worst fifth of the
            clean holdout.
    """

    def __init__(
        self, probe: Probe, recipe: HeadRecipe, *, task: Task, last_layer_named: bool = True
    ) -> None:
        self.probe, self.recipe, self.task, self._given = probe, recipe, task, task
        self._last_layer_named = last_layer_named
        self.report: HeadReport | None = None
        self._head: LossHead | None = None

    @property
    def score(self) -> Score:
        """Returns the fitted head."""
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

        Args:
            train: (images [N,C,H,W], targets), tensors or arrays as the network takes them, or lists of such;
                a torch Dataset or DataLoader of (image, target); or Examples with their contract.
            holdout: the same.
            contract: the network's input; Examples need it.
            augment: for tensors, makes a worse version of a batch [n,C,H,W]; Examples use the corruption
                library.
            copies: number of worse versions of each image.
            seed: of weights and batches.

        Returns:
            The report; its `collapsed` names the reason if nothing was learned.

        Raises:
            ConfigError: a set is of another kind, or both hold the same images.
        """
        recipe = self.recipe if copies is None else replace(self.recipe, copies=copies)
        known, unseen = (
            as_set(given, name=name, task=self._given)
            for name, given in (("train", train), ("holdout", holdout))
        )
        require_apart(known, unseen)
        versions: Sequence[LabelledSet] | None = None
        for part in (known, unseen):
            if isinstance(part, TensorSet):
                self._require_images(part.images)
        if isinstance(unseen, TensorSet):
            contract = contract or _contract_of(unseen)
            versions = augmented(unseen, augment, copies=recipe.copies) if augment is not None else []
        if contract is None:
            raise ConfigError("examples need contract=..., the InputContract of the network")
        require_enough(unseen)
        first = unseen.batch([0, 1], contract)
        self._settle_answer(first)
        for part in (known, unseen):
            self._require_task(part, contract)
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
        """Returns scores [N] of images [N,C,H,W]; higher = likelier to fail.

        The network's mode is restored.
        """
        self._require_images(images)
        with evaluating(self.probe):
            value: Tensor = self.score(self.probe(images).float())
        return value

    def _settle_answer(self, images: Tensor) -> None:
        """Finds how the answer is to be read, and which layer gives it: its declaration does not show it."""
        old = self.probe
        last, reading = settle_answer(
            old.model,
            images,
            task=self._given,
            output=old.output,
            last_layer=old.last_layer if self._last_layer_named else None,
        )
        self.probe = Probe(
            old.model, last_layer=last, features=old.feature_names, output=old.output, reading=reading
        )

    @torch.no_grad()
    def _require_task(self, part: Examples | TensorSet, contract: InputContract) -> None:
        """Raises ConfigError if answers or labels do not fit the task."""
        some = list(range(min(_LOOKED_AT, len(part))))
        with evaluating(self.probe):
            outputs = self.probe(part.batch(some, contract)).outputs
        require_fit(self._given, outputs, self._given.collate(part.targets[: len(some)]))

    def _require_images(self, images: Tensor) -> None:
        """Raises ConfigError on images that the network cannot take."""
        if not isinstance(images, Tensor) or images.ndim != 4:
            shape = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ConfigError(f"images are {shape}; expected a tensor [N,C,H,W]")
        if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
            raise ConfigError(
                f"images are {list(images.shape)}, which looks like [N,H,W,C]; expected [N,C,H,W]: "
                "images.permute(0, 3, 1, 2)"
            )
        weight = next((p for p in self.probe.parameters() if p.is_floating_point()), None)
        if weight is not None and images.dtype != weight.dtype:
            how = (
                "scale and normalise them as for its training" if images.dtype == torch.uint8 else "cast them"
            )
            raise ConfigError(f"images are {images.dtype}, the network's weights {weight.dtype}: {how}")

    def scored_model(self) -> ScoredModel:
        """Returns network and score as one module.

        `misfire_export.export_module_bundle(attached, ...)` makes a bundle of both.
        """
        task = self.task
        return ScoredModel(self.probe, [self.score], output_name=task.output_name, answer=task.answer)


def attach(
    model: nn.Module,
    *,
    layers: str | Sequence[str],
    last_layer: str | None = None,
    objective: str = "learning-loss-pp",
    task: str | Task = "classification",
    steps: int | None = None,
    output: str = "",
) -> Attached:
    """Attaches a loss-predicting head to `model`, which stays bit-identical.

    Args:
        model: any network.
        layers: names as in `model.named_modules()`, whose outputs the head may read.
        last_layer: the last Linear or 1x1 convolution. Default: `fit` finds the one whose result is the
            answer.
        objective: a recipe (misfire_train.heads.RECIPES).
        task: a name or a Task.
        steps: of the head's training. Default: the recipe's.
        output: of a model that returns a dict or a tuple, the key or position of the answer.

    Raises:
        ConfigError: the recipe or a layer is unknown.

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
    # The model must stay bit-identical, so no recipe may train it along.
    recipe = replace(recipe_named(objective), joint=False)
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    try:
        last = last_layer or find_last_layer(model)
        probe = Probe(model, last_layer=last, features=layers, output=output)
    except ValueError as error:
        raise ConfigError(f"attach: {error}") from error
    given = get_task(task) if isinstance(task, str) else task
    return Attached(probe, recipe, task=given, last_layer_named=last_layer is not None)


@torch.no_grad()
def settle_answer(
    model: nn.Module, images: Tensor, *, task: Task, output: str = "", last_layer: str | None = None
) -> tuple[str, Reading]:
    """Returns the name of the last layer, and how the model's answer becomes the task's logits.

    Args:
        model: any network.
        images: a batch that it takes.
        task: classes of frames or pixels may be one number, the second of two classes.
        output: key or position of the answer, if the model returns several.
        last_layer: its name, if the user gave one.

    Raises:
        ConfigError: no layer gives the answer.
    """
    with evaluating(model):
        answer = answer_of(model(images), output)
    single = task.by_class and is_single(answer, by_frame=task.by_frame)
    sigmoid = False
    if (single or task.independent) and is_probable(answer):
        # A linear layer gives logits, even if those of a weak model are all within 0..1.
        sigmoid = not _found(lambda: find_last_layer(model, images, output=output))
    last = last_layer or find_last_layer(model, images, output=output, sigmoid=sigmoid)
    reading = Reading(single=single, sigmoid=sigmoid, inside=sigmoid)
    if sigmoid and not _is_inside(
        Probe(model, last_layer=last, output=output, reading=reading), images, answer
    ):
        reading = Reading(single=single, sigmoid=True)
    return last, reading


def _is_inside(probe: Probe, images: Tensor, answer: Tensor) -> bool:
    """Returns whether the answer is the sigmoid of what the last layer gives, perhaps scaled up."""
    with evaluating(probe):
        try:
            found = probe(images).outputs
        except (RuntimeError, ValueError, IndexError):  # a layer of another shape cannot be scaled to it
            return False
    found = found[:, 1:] if probe.reading.single else found
    return found.numel() == answer.numel() and torch.allclose(
        torch.sigmoid(found.flatten().float()), answer.flatten().float(), rtol=1e-3, atol=1e-4
    )


def _found(find: Callable[[], str]) -> bool:
    try:
        return bool(find())
    except ConfigError:
        return False


@torch.no_grad()
def find_last_layer(
    model: nn.Module, images: Tensor | None = None, *, output: str = "", sigmoid: bool = False
) -> str:
    """Returns the name of the nn.Linear or 1x1 nn.Conv2d that gives the model's answer.

    Args:
        model: any network.
        images: a batch that the model takes; the layer is then the last one called whose result is the answer
            (or is resized to it). Without images it is the last one declared, which may be an auxiliary head.
        output: key or position of the answer, if the model returns several.
        sigmoid: the answer is a sigmoid of the layer's result.

    Raises:
        ConfigError: there is none.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
    }
    if not layers:
        raise ConfigError("attach: the model has no Linear and no 1x1 convolution; name last_layer")
    if images is None:
        return str(list(layers)[-1])
    calls: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, made: calls.append((name, made))

    handles = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        with evaluating(model):
            answer = answer_of(model(images), output)
    finally:
        for handle in handles:
            handle.remove()
    # From the last call back: an auxiliary map of the same shape is made before the answer.
    for name, made in reversed(calls):
        if _gives(made, answer, sigmoid=sigmoid):
            return name
    called = ", ".join(dict.fromkeys(name for name, _ in reversed(calls))) or "none"
    raise ConfigError(
        f"attach: no Linear and no 1x1 convolution gives the model's answer as it is (called: {called}); "
        f"{_way_out(answer)}"
    )


def _way_out(answer: Tensor) -> str:
    low, high = (float(value) for value in answer.float().aminmax())
    if low >= 0 and high <= 1:
        return "the answer is within 0..1: if it is a softmax or sigmoid, return the tensor before that"
    return "name last_layer"


def _gives(made: Tensor, answer: Tensor, *, sigmoid: bool) -> bool:
    """Returns whether the layer's result is the answer, or its sigmoid, reshaped or resized."""
    given = torch.sigmoid(made.float()) if sigmoid else made.float()
    if given.numel() == answer.numel():
        return torch.allclose(given.flatten(), answer.flatten().float(), rtol=1e-3, atol=1e-5)
    maps = answer.unsqueeze(1) if answer.ndim == 3 else answer
    if not (given.ndim == maps.ndim == 4 and given.shape[:2] == maps.shape[:2]):
        return False
    # A resize keeps the range of a map, an activation does not.
    spans = [float(value.max() - value.min()) for value in (maps.float(), given)]
    return spans[0] >= _KEPT * spans[1]


def require_apart(train: Examples | TensorSet, holdout: Examples | TensorSet) -> None:
    """Raises ConfigError if held-out images are training images too: their losses show no failures."""
    if isinstance(train, TensorSet) and isinstance(holdout, TensorSet):
        # Digests, not images: comparing every pair would take the product of both sizes.
        seen = {_digest(image) for image in train.images}
        shared = sum(_digest(image) in seen for image in holdout.images)
    else:
        # Ids of tensors are positions, which mean nothing beside ids of examples.
        shared = len(set(train.ids) & set(holdout.ids)) if type(train) is type(holdout) else 0
    if shared > _SHARED * len(holdout):
        raise ConfigError(
            f"fit: {shared} of {len(holdout)} held-out images are among the training images; hold out images "
            "that the network was never trained on"
        )


def _digest(image: Tensor) -> bytes:
    # A view as bytes needs contiguous memory.
    plain = image.detach().cpu().contiguous()
    return hashlib.blake2b(plain.view(torch.uint8).numpy().tobytes(), digest_size=16).digest()


def _contract_of(given: TensorSet) -> InputContract:
    channels, height, width = given.images.shape[1:]
    # Tensors are taken as they are, whatever their channels: only export needs a contract that a camera fits.
    return InputContract(height=height, width=width, color="gray" if channels == 1 else "rgb")
