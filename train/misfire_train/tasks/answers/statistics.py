"""Computes what a head sees of an answer: numbers per unit (frame, joint, tile, value) that any network has.

classes  [N,K]        -> [N,1,D]  sorted log-probabilities, entropy, log-odds, energy, norms, probabilities
tiles    [N,K,H,W]    -> [N,T,D]  the same, averaged over each tile, with its highest values
joints   [N,J,h,w]    -> [N,J,D]  peaks and their ratio, entropy, spread, residual, place
values   [N,J]        -> [N,J,2]  the values themselves and their sizes (`Regression.unit_statistics`)
maps     {name: map}  -> [N,D]    mean and deviation of every feature channel

It uses only plain arithmetic, TopK and pooling, all of which export.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from misfire_train.tasks.answers.heatmaps import SIGMA, render_gaussians
from misfire_train.tasks.answers.peaks import cells, local_maxima
from misfire_train.tasks.answers.softmax import Softmax

TOP = 5
TILES = (4, 4)


def class_statistics(logits: Tensor) -> Tensor:
    """Returns the statistics of logits [N,K,...] along dim 1, [N,D,...] with D = min(5,K) + 5 + K.

    Above KNOWN_CLASSES the last K, one probability per class, are left out.
    """
    parts = Softmax(logits)
    top = parts.log_p.topk(min(TOP, logits.shape[1]), dim=1).values
    # A weighted sum: a slice costs a vehicle more than the product.
    sides = torch.zeros(top.shape[1], *[1] * (top.ndim - 2), dtype=top.dtype, device=top.device)
    if len(sides) > 1:
        sides[0], sides[1] = 1.0, -1.0
    gap = (top * sides).sum(1, keepdim=True)
    log_entropy = torch.log(parts.entropy.clamp_min(1e-9))
    return torch.cat((top, parts.entropy, log_entropy, parts.log_odds, parts.energy, gap, parts.each), 1)


def log_odds(logits: Tensor) -> Tensor:
    """Returns log (1 - p_max) / p_max along dim 1, [N,1,...], exact even if p_max rounds to 1."""
    return Softmax(logits).log_odds


def tile_statistics(logits: Tensor, *, tiles: tuple[int, int] = TILES) -> Tensor:
    """Returns [N,T,D] for logits [N,K,H,W].

    The columns are each tile's means, then the highest entropy, log-entropy and log-odds and the lowest
    energy.
    """
    values = class_statistics(logits)
    grid = (min(tiles[0], logits.shape[2]), min(tiles[1], logits.shape[3]))
    top = min(TOP, logits.shape[1])
    mean = functional.adaptive_avg_pool2d(values, grid)
    # The columns after the top log-probabilities: entropy, log-entropy, log-odds, then energy.
    highest = functional.adaptive_max_pool2d(values[:, top : top + 3], grid)
    # A low energy is the suspicious one. ONNX has no minimum pooling.
    lowest = -functional.adaptive_max_pool2d(-values[:, top + 3 : top + 4], grid)
    return torch.cat((mean, highest, lowest), 1).flatten(2).transpose(1, 2)


def joint_statistics(heatmaps: Tensor) -> Tensor:
    """Returns 14 statistics of each heatmap, [N,J,14], for heatmaps [N,J,h,w]."""
    size = (heatmaps.shape[2], heatmaps.shape[3])
    flat = heatmaps.flatten(2)
    peaks, places = local_maxima(heatmaps, radius=2, peaks=3)
    # An absent peak has -1e4, which would drown the other columns.
    peaks = peaks.clamp_min(-1.0)
    best = flat.amax(2)
    decoded = cells(flat.argmax(2), width=size[1], like=heatmaps)
    rendered = render_gaussians(decoded, size=size, sigma=SIGMA).flatten(2)
    energy = rendered.square().sum(2).clamp_min(1e-6)
    residual = (flat - rendered).square().sum(2) / energy
    rescaled = (flat - rendered * best[..., None]).square().sum(2) / energy
    mass = functional.relu(flat) + 1e-9
    total = mass.sum(2)
    share = mass / total[..., None]
    entropy = -(share * share.log()).sum(2)
    spread = (_positions(size, heatmaps) - decoded[..., None, :]).square().sum(3)
    variance = (share * spread).sum(2)
    second = cells(places[..., 1], width=size[1], like=heatmaps)
    apart = (second - decoded).square().sum(2).sqrt() * (peaks[..., 1] > 0)
    limits = torch.tensor([size[1] - 1.0, size[0] - 1.0], device=heatmaps.device).clamp_min(1)
    place = decoded / limits * 2 - 1
    edge = 1 - place.abs().amax(2)
    columns = (
        *(best, peaks[..., 1], peaks[..., 2], peaks[..., 1] / best.clamp_min(0.05)),
        *(residual.clamp_min(1e-4).log(), rescaled.clamp_min(1e-4).log(), entropy),
        *(total.clamp_min(1e-4).log(), variance.clamp_min(1e-3).log(), apart, flat.amin(2)),
        *(place[..., 0], place[..., 1], edge),
    )
    return torch.stack(columns, 2)


def joint_residual(heatmaps: Tensor) -> Tensor:
    """Returns the self residual of each joint, [N,J].

    It is the log of `joint_losses` against the joint that the map itself shows.
    """
    # Column 4 is the log of the residual.
    return joint_statistics(heatmaps)[..., 4]


def map_statistics(features: Mapping[str, Tensor]) -> Tensor:
    """Returns mean and standard deviation over pixels of each channel of each [N,C,H,W], joined to [N,D]."""
    columns = []
    for maps in features.values():
        grid = maps if maps.ndim == 4 else maps.reshape(*maps.shape[:2], -1, 1)
        mean = grid.mean((2, 3), keepdim=True)
        # From differences, as E[x^2] - E[x]^2 cancels; the floor is for channels that are constant.
        norm = torch.linalg.vector_norm(grid - mean, dim=(2, 3)) / math.sqrt(grid[0, 0].numel())
        columns += [mean.flatten(1), norm.clamp_min(1e-3)]
    return torch.cat(columns, 1)


def _positions(size: tuple[int, int], like: Tensor) -> Tensor:
    """Returns (x, y) of every cell, [h*w,2]."""
    places = torch.arange(size[0] * size[1], device=like.device)
    return cells(places, width=size[1], like=like)
