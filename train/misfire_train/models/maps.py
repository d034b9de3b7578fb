"""Builds networks whose answer is a map: pixel logits (segmentation) and joint heatmaps (keypoints).

    image -> stem -> down, down, down -> up and join, up and join, ... -> 1x1 convolution

The last layer is a 1x1 convolution named `head`, so that closed-form gradient scores apply pixel by pixel.
Any size of image works; sides that are multiples of 16 waste nothing.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from misfire_train.models.resnet import conv_norm, residual_stage


class UpAndJoin(nn.Module):
    """Doubles the size of the coarse map, adds the finer one of the way down, and filters the sum.

    Both are brought to `outputs` channels by 1x1 convolutions first (as in a feature pyramid): a 3x3 over the
    joined channels would cost three times as much.
    """

    def __init__(self, coarse: int, fine: int, outputs: int) -> None:
        super().__init__()
        self.above = conv_norm(coarse, outputs, kernel=1)
        self.beside = conv_norm(fine, outputs, kernel=1)
        self.mix = nn.Sequential(nn.ReLU(), conv_norm(outputs, outputs), nn.ReLU())

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Returns [N,outputs,H,W] from [N,coarse,h,w] and [N,fine,H,W]."""
        # Doubling gives one row or column too many if the finer map's side is odd; it is cut off below.
        larger = functional.interpolate(self.above(x), scale_factor=2.0, mode="nearest")
        mixed: Tensor = self.mix(larger[:, :, : skip.shape[2], : skip.shape[3]] + self.beside(skip))
        return mixed


class UNet(nn.Module):
    """Answers pixel logits at the image's own size; most of the work is done at half of it.

    Layers for heads: down1, down2, down3 (the bottleneck), up1 (half size).
    """

    def __init__(self, outputs: int, *, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(channels, width, stride=2), nn.ReLU())
        self.down1 = residual_stage(width, 2 * width, blocks=1)
        self.down2 = residual_stage(2 * width, 4 * width, blocks=1)
        self.down3 = residual_stage(4 * width, 8 * width, blocks=1)
        self.dropout = nn.Dropout2d(dropout)
        self.up3 = UpAndJoin(8 * width, 4 * width, 4 * width)
        self.up2 = UpAndJoin(4 * width, 2 * width, 2 * width)
        self.up1 = UpAndJoin(2 * width, width, width)
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits [N,outputs,H,W] of images [N,C,H,W]."""
        at2 = self.stem(image)
        at4 = self.down1(at2)
        at8 = self.down2(at4)
        at16 = self.dropout(self.down3(at8))
        fine = self.up1(self.up2(self.up3(at16, at8), at4), at2)
        full = functional.interpolate(fine, scale_factor=2.0, mode="bilinear", align_corners=False)
        # Upsampling may overshoot an image whose sides are odd.
        logits: Tensor = self.head(full[:, :, : image.shape[2], : image.shape[3]])
        return logits


class KeypointNet(nn.Module):
    """Answers one heatmap per joint at a quarter of the image's size.

    Layers for heads: down1 (quarter size), down2, down3 (the bottleneck), up2 (quarter size).
    """

    def __init__(self, outputs: int, *, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(channels, width, stride=2), nn.ReLU())
        self.down1 = residual_stage(width, 2 * width, blocks=1)
        self.down2 = residual_stage(2 * width, 4 * width, blocks=1)
        self.down3 = residual_stage(4 * width, 6 * width, blocks=1)
        self.dropout = nn.Dropout2d(dropout)
        self.up3 = UpAndJoin(6 * width, 4 * width, 4 * width)
        self.up2 = UpAndJoin(4 * width, 2 * width, 2 * width)
        self.head = nn.Conv2d(2 * width, outputs, 1)
        # Heatmaps are zero nearly everywhere, so training starts from zero rather than from noise.
        nn.init.normal_(self.head.weight, std=0.001)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Returns heatmaps [N,outputs,ceil(H/4),ceil(W/4)] of images [N,C,H,W]."""
        at4 = self.down1(self.stem(image))
        at8 = self.down2(at4)
        at16 = self.dropout(self.down3(at8))
        heatmaps: Tensor = self.head(self.up2(self.up3(at16, at8), at4))
        return heatmaps


def unet_small(outputs: int, *, channels: int, width: int = 16, dropout: float = 0.1) -> UNet:
    """Returns a UNet of about 0.4 million parameters."""
    return UNet(outputs, channels=channels, width=width, dropout=dropout)


def keypoint_small(outputs: int, *, channels: int, width: int = 16, dropout: float = 0.1) -> KeypointNet:
    """Returns a KeypointNet of about 0.3 million parameters; 35 million multiply-adds at 96x96."""
    return KeypointNet(outputs, channels=channels, width=width, dropout=dropout)
