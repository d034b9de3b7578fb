"""Builds a classifier of plain convolutions that a processor trains to the accuracy of a good network.

image [N,C,H,W] -> 5x5 at stride 2 -> three stages of two 3x3, the last two halving -> mean -> linear [N,K]

No shortcuts, and nothing at the image's full size: at 28x28 an epoch takes half as long as resnet-small's.
"""

from __future__ import annotations

from torch import Tensor, nn

from misfire_train.models.resnet import conv_norm


def _stage(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    # Strides instead of pooling, which takes a fifth of a step on a processor.
    first, second = conv_norm(inputs, outputs, stride=stride), conv_norm(outputs, outputs)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


class ConvNet(nn.Module):
    """Classifies through stages named stage1..3; the last layer is `fc`."""

    def __init__(self, outputs: int, *, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(channels, width, kernel=5, stride=2), nn.ReLU())
        self.stage1 = _stage(width, width, stride=1)
        self.stage2 = _stage(width, 2 * width, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(4 * width, outputs)

    def forward(self, image: Tensor) -> Tensor:
        """Returns [N,outputs] from images [N,C,H,W]."""
        x = self.stage3(self.stage2(self.stage1(self.stem(image))))
        answer: Tensor = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return answer


def convnet_small(outputs: int, *, channels: int, width: int = 32, dropout: float = 0.1) -> ConvNet:
    """Returns a ConvNet of about 0.3 million parameters; any size from 8x8 up."""
    return ConvNet(outputs, channels=channels, width=width, dropout=dropout)
