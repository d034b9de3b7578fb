"""Lists recipes by name: which head, which objective, on which losses.

| name                   | head     | objective           | the network while it trains           |
|------------------------|----------|---------------------|---------------------------------------|
| learning-loss-pp       | residual | learning-loss-pp    | frozen; held-out losses, corruptions  |
| learning-loss          | gap      | learning-loss       | trained along on its training losses  |
| learning-loss-pp-paper | conv     | learning-loss-pp    | frozen; held-out losses               |
| rank-bce               | gap      | rank-bce            | frozen; held-out losses               |
| log-loss-regression    | gap      | log-loss-regression | frozen; held-out losses               |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from misfire_runtime.errors import ConfigError
from misfire_train.heads.base import LossHead
from misfire_train.heads.boxes import BoxHead
from misfire_train.heads.published import ConvHead, GapHead
from misfire_train.heads.residual import ResidualHead
from misfire_train.train_config import HeadTable


@dataclass(frozen=True)
class HeadRecipe:
    """Specifies how a head is trained.

    Attributes:
        kind: residual, gap or conv.
        wrong_weight: of the cross-entropy on "was it wrong", beside the objective.
        top: objective of the top of the list beside it, "" for none; top_weight: its weight.
        copies: corrupted copies of each held-out image, beside the clean one.
        mixed: share of copies with two corruptions.
        clean_share: of the rows of a batch.
        sees_features: a residual head reads the embedding and statistics of feature maps too.
        hidden, members: of its committee.
        strength: of the correction, 0 to 1; None chooses it by leaving out groups (heads/strength.py).
        columns: the set of statistics that a residual head reads; None chooses it with the strength.
        base: the free score that a detector's head corrects; None chooses it with the strength.
        protect: CSV with a group of each frame that the score must not tell (heads/reversal.py), or None.
        protect_weight: of the reversed gradient.
        joint: the network trains along, with gradients of the head until after `detach_epoch`, by default
            three fifths of the epochs.
    """

    name: str
    kind: str
    objective: str
    copies: int = 0
    mixed: float = 0.0
    # One to three seconds on one core; longer training hurts under shifts that it has not seen.
    steps: int = 700
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    batch: int = 256
    wrong_weight: float = 0.0
    top: str = ""
    top_weight: float = 0.25
    clean_share: float = 0.5
    sees_features: bool = True
    hidden: int = 32
    members: int = 4
    joint: bool = False
    detach_epoch: int | None = None
    families: tuple[str, ...] | None = None
    strength: float | None = None
    columns: str | None = None
    base: str | None = None
    protect: str | None = None
    protect_weight: float = 1.0

    def with_table(self, table: HeadTable) -> HeadRecipe:
        """Returns the recipe with a config's values in place of its own."""
        # None means that the config leaves the value to the recipe.
        given: dict[str, Any] = {name: getattr(table, name) for name in _OPEN}
        if table.protect is not None:
            given |= {"protect": str(table.protect), "protect_weight": table.protect_weight}
        return replace(self, **{key: value for key, value in given.items() if value is not None})

    def spelled_out(self, table: HeadTable) -> HeadTable:
        """Returns a config's table with this recipe's values where it left them open: what a run records.

        Another version's recipe of the same name may have other values; a refit must not.
        """
        values = {name: getattr(self.with_table(table), name) for name in _OPEN}
        return table.model_copy(update=values)


_OPEN = (
    "objective",
    "top",
    "copies",
    "steps",
    "learning_rate",
    "weight_decay",
    "batch",
    "joint",
    "detach_epoch",
    "families",
    "strength",
    "columns",
)
"""Fields of a config's head table that None leaves to the recipe."""

RECIPES: dict[str, HeadRecipe] = {
    recipe.name: recipe
    for recipe in (
        HeadRecipe(
            "learning-loss-pp", "residual", "learning-loss-pp", copies=8, mixed=0.25, wrong_weight=1.0
        ),
        # The paper trains both networks with this weight decay.
        HeadRecipe("learning-loss", "gap", "learning-loss", joint=True, weight_decay=5e-4),
        HeadRecipe(
            # The reference code's Adam: a rate of 3e-4 and no decay.
            "learning-loss-pp-paper",
            "conv",
            "learning-loss-pp",
            learning_rate=3e-4,
            weight_decay=0.0,
        ),
        HeadRecipe("rank-bce", "gap", "rank-bce"),
        HeadRecipe("log-loss-regression", "gap", "log-loss-regression"),
    )
}

_KINDS: dict[str, type[LossHead]] = {"residual": ResidualHead, "gap": GapHead, "conv": ConvHead}


def kind_of(recipe: HeadRecipe, task: str) -> type[LossHead]:
    """Returns the class of a recipe's head: that of detectors corrects candidates instead of frames."""
    return BoxHead if recipe.kind == "residual" and task == BoxHead.serves else _KINDS[recipe.kind]


def recipe_named(name: str) -> HeadRecipe:
    """Returns the recipe. Raises ConfigError with the names that exist."""
    if name not in RECIPES:
        raise ConfigError(f"there is no head recipe {name!r}; there are {', '.join(RECIPES)}, and none")
    return RECIPES[name]


def build_head_from_state(recipe: str, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> LossHead:
    """Returns a trained head from its record and its tensors. Raises ConfigError if they do not fit."""
    kind = kind_of(recipe_named(recipe), str(options.get("task", "")))
    try:
        head = kind(**options)
        head.load_state_dict(dict(state))
    except (TypeError, RuntimeError) as error:
        raise ConfigError(
            f"the head's weights do not fit its record: {str(error).splitlines()[-1].strip()}"
        ) from error
    head.recipe = recipe
    return head
