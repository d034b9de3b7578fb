"""Provides heads that predict a task model's loss, and the recipes by which they are built and trained.

recipe_named("learning-loss-pp")  how it is built, what it is trained on
ResidualHead                      the default: a free score, corrected
GapHead, ConvHead                 the papers' own
"""

from misfire_train.heads.base import NAME, LossHead
from misfire_train.heads.published import ConvHead, GapHead
from misfire_train.heads.recipes import RECIPES, HeadRecipe, build_head_from_state, recipe_named
from misfire_train.heads.residual import ResidualHead

__all__ = [
    "NAME",
    "RECIPES",
    "ConvHead",
    "GapHead",
    "HeadRecipe",
    "LossHead",
    "ResidualHead",
    "build_head_from_state",
    "recipe_named",
]
