"""Renders joints as heatmaps and decodes them: one Gaussian per joint on a grid coarser than the image.

The centre of the image's first pixel is (0, 0). Heatmap cell c covers `stride` pixels, so its centre is at
stride * c + (stride - 1) / 2 of the image.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Pixels per cell: `keypoint-small` answers at a quarter of the image's size.
STRIDE = 4
# In cells.
SIGMA = 1.0


def render_gaussians(points: Tensor, *, size: tuple[int, int], sigma: float = SIGMA) -> Tensor:
    """Returns Gaussians of height 1 at points in heatmap cells.

    They are products of two one-dimensional Gaussians, which is cheap and traces into a graph.

    Args:
        points: [N,J,2], x and y in cells.
        size: height and width of a heatmap, in cells.
        sigma: standard deviation, in cells.

    Returns:
        [N,J,h,w].
    """
    xs = torch.arange(size[1], dtype=points.dtype, device=points.device)
    ys = torch.arange(size[0], dtype=points.dtype, device=points.device)
    across = torch.exp(-(xs - points[..., 0:1]).square() / (2 * sigma**2))
    down = torch.exp(-(ys - points[..., 1:2]).square() / (2 * sigma**2))
    return down[..., :, None] * across[..., None, :]


def to_cells(points: Tensor, *, stride: int = STRIDE) -> Tensor:
    """Converts image pixels to heatmap cells."""
    return (points - (stride - 1) / 2) / stride


def to_pixels(cells: Tensor, *, stride: int = STRIDE) -> Tensor:
    """Converts heatmap cells to image pixels."""
    return cells * stride + (stride - 1) / 2


def render_targets(
    targets: Tensor, *, size: tuple[int, int], stride: int = STRIDE, sigma: float = SIGMA
) -> tuple[Tensor, Tensor]:
    """Returns the heatmaps of targets, and which joints are visible.

    A joint outside the image counts as not visible: no cell could hold its peak.

    Args:
        targets: [N,J,3], x and y in image pixels and whether the joint is visible.
        size: height and width of a heatmap, in cells.
        stride: pixels per cell.
        sigma: standard deviation of a Gaussian, in cells.

    Returns:
        Heatmaps [N,J,h,w] and visibility, bool [N,J].
    """
    cells = to_cells(targets[..., :2], stride=stride)
    # A cell reaches half a cell beyond its centre.
    limits = torch.tensor([size[1] - 0.5, size[0] - 0.5], dtype=cells.dtype, device=cells.device)
    inside = ((cells >= -0.5) & (cells <= limits)).all(-1)
    return render_gaussians(cells, size=size, sigma=sigma), (targets[..., 2] > 0) & inside


def peak_cells(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the highest cell of each map and its value: (x, y) [N,J,2] and [N,J].

    The position moves by a quarter of a cell towards the higher neighbour. On the border, which lacks a
    neighbour, it stays.
    """
    height, width = heatmaps.shape[2:]
    value, place = heatmaps.flatten(2).max(2)
    x, y = place % width, torch.div(place, width, rounding_mode="floor")
    flat = heatmaps.flatten(2)

    def at(column: Tensor, row: Tensor) -> Tensor:
        where = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        return flat.gather(2, where[..., None])[..., 0]

    inner_x = ((x > 0) & (x < width - 1)).to(heatmaps.dtype)
    inner_y = ((y > 0) & (y < height - 1)).to(heatmaps.dtype)
    shift_x = 0.25 * inner_x * torch.sign(at(x + 1, y) - at(x - 1, y))
    shift_y = 0.25 * inner_y * torch.sign(at(x, y + 1) - at(x, y - 1))
    return torch.stack((x + shift_x, y + shift_y), dim=2), value


def decode_heatmaps(heatmaps: Tensor, *, stride: int = STRIDE) -> Tensor:
    """Returns the joints [N,J,3] of heatmaps [N,J,h,w].

    They are x and y in image pixels, and the height of the peak.
    """
    cells, value = peak_cells(heatmaps)
    return torch.cat((to_pixels(cells, stride=stride), value[..., None]), dim=2)
