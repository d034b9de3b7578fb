"""Builds an anchor-free detector: one answer per cell of three grids, which are 8, 16 and 32 pixels apart.

    image -> stem, down1..down4 -> up and join, twice -> [8, 16, 32] -> shared towers -> cells of all grids
          -> class logits | distances of the four sides -> dense answer [N,P,K+8]

Each cell scores K classes and predicts how far the four sides of its object are from the cell's centre. A
distance is the mean of a distribution over bins of one stride each (Li et al. 2020, Generalized Focal Loss);
the standard deviation of that distribution is the answer's `spread`. There is no separate objectness.

Towers are shared by all grids, and their features are joined to [N,C,P,1] before the only class layer, a 1x1
convolution named `head`. So last-layer scores see the features and the weights of every logit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from misfire_train.models.maps import UpAndJoin
from misfire_train.models.resnet import conv_norm, residual_stage

STRIDES = (8, 16, 32)
"""Pixels between the cells of each grid, fine to coarse."""
PRIOR = 0.01
"""Score of every class before training: nearly all cells show background (Lin et al. 2017, Focal Loss)."""


class Detector(nn.Module):
    """Answers a box with class logits for every cell; see the module for the layout.

    Layers for heads: down2, down3, down4 (strides 8, 16, 32), up2 (stride 8, all grids joined).

    Args:
        outputs: Number of classes.
        channels: Of the image.
        width: Channels at stride 2; every level below doubles them, up to eight times.
        tower: Channels of the towers.
        bins: Largest distance in strides; a side can be that far from the cell's centre.
    """

    def __init__(self, outputs: int, *, channels: int, width: int, tower: int, bins: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(channels, width, stride=2), nn.ReLU())
        self.down1 = residual_stage(width, 2 * width, blocks=1)
        self.down2 = residual_stage(2 * width, 4 * width, blocks=1)
        self.down3 = residual_stage(4 * width, 8 * width, blocks=1)
        self.down4 = residual_stage(8 * width, 8 * width, blocks=1)
        self.lateral = nn.Sequential(conv_norm(8 * width, tower, kernel=1), nn.ReLU())
        self.up3 = UpAndJoin(tower, 8 * width, tower)
        self.up2 = UpAndJoin(tower, 4 * width, tower)
        self.shared = _tower(tower)
        self.class_tower = _tower(tower)
        self.box_tower = _tower(tower)
        self.head = nn.Conv2d(tower, outputs, 1)
        self.distances = nn.Conv2d(tower, 4 * (bins + 1), 1)
        self.bins = bins
        # With weights of 0.01 (Lin et al. 2017) a rare class gets too small a gradient to begin to learn.
        nn.init.normal_(self.head.weight, std=0.1)
        nn.init.constant_(self.head.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]
        nn.init.normal_(self.distances.weight, std=0.01)
        # Boxes start about three strides wide, so that objects fall to the grid of their size at once.
        falling = -0.5 * torch.arange(bins + 1, dtype=torch.float32)
        with torch.no_grad():
            self.distances.bias.copy_(falling.repeat(4))  # type: ignore[union-attr]

    def forward(self, image: Tensor) -> Tensor:
        """Returns the dense answer [N,P,K+8] of images [N,C,H,W]; sides of multiples of 32 waste nothing.

        Columns: x0, y0, x1, y1 in pixels of the image | K class logits | spread in pixels, x and y of the
        cell's centre, stride of its grid.
        """
        at8 = self.down2(self.down1(self.stem(image)))
        at16 = self.down3(at8)
        coarse = self.lateral(self.down4(at16))
        middle = self.up3(coarse, at16)
        fine = self.up2(middle, at8)
        levels = [self.shared(level) for level in (fine, middle, coarse)]
        logits = self.head(_joined([self.class_tower(level) for level in levels]))
        distances = self.distances(_joined([self.box_tower(level) for level in levels]))
        cells = torch.cat(
            [cell_grid(m.shape[2], m.shape[3], stride) for m, stride in zip(levels, STRIDES, strict=True)]
        ).to(image.device)
        # In half precision, pixels would be rounded to whole ones.
        boxes, spread = self._decoded(distances.squeeze(3).float(), cells)
        # Added, not expanded: the graph does not know the batch size yet.
        places = torch.zeros_like(spread) + cells
        return torch.cat((boxes, logits.squeeze(3).transpose(1, 2), spread, places), dim=2)

    def _decoded(self, distances: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Returns boxes [N,P,4] and spread [N,P,1] of bin logits [N,4(bins+1),P] and cells [P,3]."""
        shares = distances.reshape(-1, 4, self.bins + 1, cells.shape[0]).softmax(2)
        steps = torch.arange(self.bins + 1, dtype=shares.dtype, device=shares.device)[:, None]
        mean = (shares * steps).sum(2)
        variance = (shares * (steps - mean[:, :, None]).square()).sum(2)
        stride = cells[:, 2]
        left, top, right, bottom = (mean * stride).unbind(1)
        x, y = cells[:, 0], cells[:, 1]
        boxes = torch.stack((x - left, y - top, x + right, y + bottom), dim=2)
        # The floor keeps the root's gradient finite.
        spread = (variance.clamp_min(1e-6).sqrt().mean(1) * stride)[..., None]
        return boxes, spread


def _tower(channels: int) -> nn.Sequential:
    # Not ReLU: where all features of a rare class are 0, nothing could raise its score again.
    return nn.Sequential(conv_norm(channels, channels), nn.SiLU())


def _joined(levels: list[Tensor]) -> Tensor:
    """Returns maps [N,C,H,W] of all grids as one, [N,C,P,1]."""
    return torch.cat([level.flatten(2) for level in levels], dim=2)[..., None]


def cell_grid(height: int, width: int, stride: int) -> Tensor:
    """Returns the cells of one grid, row by row, [height*width,3]: centre x, y in pixels, and stride."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = (torch.stack((x, y), dim=2).reshape(-1, 2) + 0.5) * stride
    return torch.cat((centres, torch.full((height * width, 1), float(stride))), dim=1)


def detector_small(
    outputs: int, *, channels: int, width: int = 16, tower: int = 64, bins: int = 8
) -> Detector:
    """Returns a Detector of about 1 million parameters; 0.4 billion multiply-adds at 320x192."""
    return Detector(outputs, channels=channels, width=width, tower=tower, bins=bins)
