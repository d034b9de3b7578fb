"""Computes areas and overlaps of boxes (x0, y0, x1, y1), and cuts labelled ones at a border."""

from __future__ import annotations

import torch
from torch import Tensor

from misfire_train.boxes.columns import BOX, IGNORE

# Smaller than any area in pixels: two boxes without area overlap by 0, not by 0/0.
TINY = 1e-9
LEAST_VISIBLE = 0.3
"""Share of an object that must stay in a shifted picture for it to count."""


def areas(boxes: Tensor) -> Tensor:
    """Returns the areas [...] of boxes [...,4]; 0 if a side is not positive.

    >>> areas(torch.tensor([[0.0, 0.0, 2.0, 3.0], [5.0, 0.0, 4.0, 1.0]])).tolist()
    [6.0, 0.0]
    """
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0)
    return sides[..., 0] * sides[..., 1]


def intersections(first: Tensor, second: Tensor) -> Tensor:
    """Returns the common areas [...,A,B] of boxes [...,A,4] and [...,B,4]."""
    # Side by side: runtimes are ten times slower at an axis of length two behind both others.
    x0, y0, x1, y1 = torch.split(first, 1, -1)
    u0, v0, u1, v1 = torch.split(second.transpose(-1, -2), 1, -2)
    width = (torch.minimum(x1, u1) - torch.maximum(x0, u0)).clamp_min(0)
    height = (torch.minimum(y1, v1) - torch.maximum(y0, v0)).clamp_min(0)
    return width * height


def iou_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Returns intersection over union, [...,A,B], of boxes [...,A,4] and [...,B,4].

    >>> a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    >>> iou_matrix(a, torch.tensor([[0.0, 0.0, 2.0, 1.0], [3.0, 3.0, 4.0, 4.0]])).tolist()
    [[0.5, 0.0]]
    """
    common = intersections(first, second)
    union = areas(first)[..., :, None] + areas(second)[..., None, :] - common
    return common / union.clamp_min(TINY)


def covered(first: Tensor, second: Tensor) -> Tensor:
    """Returns the share of each first box that a second one covers, [...,A,B]."""
    return intersections(first, second) / areas(first)[..., :, None].clamp_min(TINY)


def cut_boxes(targets: Tensor, window: Tensor) -> Tensor:
    """Returns labelled boxes [...,6] cut at the edges of windows [...,4].

    One of which little is left is ignored from now on; one that is gone becomes padding.
    """
    low, high = window[..., :2], window[..., 2:]
    first = torch.minimum(torch.maximum(targets[..., :2], low), high)
    second = torch.minimum(torch.maximum(targets[..., 2:BOX], low), high)
    cut = torch.cat((first, second), -1)
    gone = (cut[..., 2] - cut[..., 0] < 1) | (cut[..., 3] - cut[..., 1] < 1)
    little = areas(cut) < LEAST_VISIBLE * areas(targets[..., :BOX])
    rest = targets[..., BOX:].clone()
    rest[..., IGNORE - BOX] = torch.maximum(rest[..., IGNORE - BOX], little.to(rest.dtype))
    padding = targets.new_tensor((0.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    return torch.where(gone[..., None], padding, torch.cat((cut, rest), -1))
