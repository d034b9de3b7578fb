"""Draws what a head learns from in a step: rows in the wanted share, random pairs, the top of the list."""

from __future__ import annotations

import torch
from torch import Tensor

from misfire_train.objectives import OBJECTIVES, TOP_OBJECTIVES

PAIRINGS = 4
"""Random pairings of a batch per step: nearly the variance of all pairs at a fraction of their cost."""


def row_weights(clean: Tensor, *, share: float) -> Tensor:
    """Returns sampling weights [R] under which clean rows make up `share`.

    Equal if there is only one kind.
    """
    count = int(clean.sum())
    if count in (0, len(clean)):
        return torch.ones(len(clean))
    return torch.where(clean, share / count, (1 - share) / (len(clean) - count))


def paired_objective(
    name: str, predicted: Tensor, true: Tensor, *, eps: float, generator: torch.Generator
) -> Tensor:
    """Returns the objective of predicted [members,V] against true [V] over PAIRINGS random pairings.

    Regression needs no pairs.
    """
    members = len(predicted)
    if name == "log-loss-regression":
        return OBJECTIVES[name](predicted.flatten(), true.repeat(members), eps=eps)
    half = len(true) // 2
    if half == 0:
        # Zero, but with a gradient, which the optimiser's step needs.
        return predicted.sum() * 0.0
    orders = [torch.randperm(len(true), generator=generator) for _ in range(PAIRINGS)]
    first = torch.cat([order[:half] for order in orders])
    second = torch.cat([order[half : 2 * half] for order in orders])
    scores = torch.cat((predicted[:, first].flatten(), predicted[:, second].flatten()))
    losses = torch.cat((true[first].repeat(members), true[second].repeat(members)))
    options = {"eps": eps} if name == "learning-loss-pp" else {}
    return OBJECTIVES[name](scores, losses, pairs="halves", **options)


def top_objective(name: str, scores: Tensor, failed: Tensor, clean: Tensor) -> Tensor:
    """Returns an objective of the top of the list, for the frames' scores [members,N]; zero for no name.

    Clean rows and corrupted copies are two lists: in one, the corrupted would fill the top.
    """
    total = scores.sum() * 0.0
    if not name:
        return total
    lists = [rows for rows in (clean, ~clean) if bool(rows.any())]
    for member in scores:
        for rows in lists:
            total = total + TOP_OBJECTIVES[name](member[rows], failed[rows]) / (len(scores) * len(lists))
    return total
