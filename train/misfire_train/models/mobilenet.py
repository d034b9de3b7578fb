"""Builds a MobileNet-class classifier of inverted residuals, for processors on which convolutions are slow.

image -> 3x3 stem -> three stages of inverted residuals, each halving the size -> 1x1 -> mean -> linear
"""

from __future__ import annotations

from torch import Tensor, nn

from misfire_train.models.resnet import conv_norm


class InvertedResidual(nn.Module):
    """Widens by 1x1, filters each channel by itself by 3x3, narrows by 1x1 (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, expansion: int = 4) -> None:
        super().__init__()
        wide = inputs * expansion
        self.layers = nn.Sequential(
            conv_norm(inputs, wide, kernel=1),
            nn.ReLU6(),
            conv_norm(wide, wide, stride=stride, groups=wide),
            nn.ReLU6(),
            conv_norm(wide, outputs, kernel=1),
        )
        # A shortcut needs equal shapes.
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N,outputs,ceil(H/stride),ceil(W/stride)] from [N,inputs,H,W]."""
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


def _stage(inputs: int, outputs: int, *, repeats: int) -> nn.Sequential:
    first = InvertedResidual(inputs, outputs, stride=2)
    return nn.Sequential(first, *(InvertedResidual(outputs, outputs) for _ in range(repeats - 1)))


class MobileNet(nn.Module):
    """Classifies through stages named stage1..3; the last layer is `classifier`."""

    def __init__(self, outputs: int, *, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        widths = (width, width * 3 // 2, width * 3, width * 6)
        self.stem = nn.Sequential(conv_norm(channels, widths[0]), nn.ReLU6())
        self.stage1 = _stage(widths[0], widths[1], repeats=2)
        self.stage2 = _stage(widths[1], widths[2], repeats=3)
        self.stage3 = _stage(widths[2], widths[3], repeats=2)
        self.last = nn.Sequential(conv_norm(widths[-1], 2 * widths[-1], kernel=1), nn.ReLU6())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * widths[-1], outputs)

    def forward(self, image: Tensor) -> Tensor:
        """Returns [N,outputs] from images [N,C,H,W]."""
        x = self.last(self.stage3(self.stage2(self.stage1(self.stem(image)))))
        answer: Tensor = self.classifier(self.dropout(self.avgpool(x).flatten(1)))
        return answer


def mobilenet_small(outputs: int, *, channels: int, width: int = 16, dropout: float = 0.1) -> MobileNet:
    """Returns a MobileNet of about 0.2 million parameters; half of resnet-small's multiply-adds at 28x28."""
    return MobileNet(outputs, channels=channels, width=width, dropout=dropout)
