"""Builds residual classifiers and regressors: a small one for 8x8 to 128x128, and ResNet-18 for 224x224.

image [N,C,H,W] -> stem -> stages, each halving the size -> mean over pixels -> dropout -> linear [N,outputs]
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def conv_norm(
    inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Returns a convolution without bias, then batch norm; it keeps the size at stride 1."""
    # Batch norm has a bias of its own.
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """Applies two 3x3 convolutions and a shortcut (He et al. 2016, basic block)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv_norm(inputs, outputs, stride=stride)
        self.conv2 = conv_norm(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, kernel=1, stride=stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N,outputs,ceil(H/stride),ceil(W/stride)] from [N,inputs,H,W]."""
        y: Tensor = self.relu(self.conv2(self.relu(self.conv1(x))) + self.shortcut(x))
        return y


def residual_stage(inputs: int, outputs: int, *, blocks: int, stride: int = 2) -> nn.Sequential:
    """Returns `blocks` residual blocks, the first of which changes width and size."""
    first = ResidualBlock(inputs, outputs, stride=stride)
    return nn.Sequential(first, *(ResidualBlock(outputs, outputs) for _ in range(blocks - 1)))


class ResNet(nn.Module):
    """Is a residual network with a linear last layer `fc`; stages are named layer1, layer2, ...

    Args:
        outputs: size of the answer.
        channels: of the image.
        stem: width of the first convolution.
        widths, blocks, strides: of each stage.
        large_stem: use the 7x7 stem and pooling of ResNet-18.
        dropout: before the last layer.
    """

    def __init__(
        self,
        outputs: int,
        *,
        channels: int,
        stem: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        strides: Sequence[int],
        large_stem: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        # Small images cannot afford a stem that halves them.
        self.conv1 = nn.Sequential(
            conv_norm(channels, stem, kernel=7 if large_stem else 3, stride=2 if large_stem else 1), nn.ReLU()
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large_stem else nn.Identity()
        stages = []
        width = stem
        for number, (outputs_of_stage, count, stride) in enumerate(
            zip(widths, blocks, strides, strict=True), 1
        ):
            name = f"layer{number}"
            self.add_module(name, residual_stage(width, outputs_of_stage, blocks=count, stride=stride))
            stages.append(name)
            width = outputs_of_stage
        self.stages = tuple(stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, outputs)

    def forward(self, image: Tensor) -> Tensor:
        """Returns [N,outputs] from images [N,C,H,W]."""
        x = self.maxpool(self.conv1(image))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        answer: Tensor = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return answer


def resnet_small(outputs: int, *, channels: int, width: int = 16, dropout: float = 0.1) -> ResNet:
    """Returns a ResNet of about 0.5 million parameters.

    17 million multiply-adds at 28x28, any size from 8x8 up.
    """
    return ResNet(
        outputs,
        channels=channels,
        stem=width,
        widths=(2 * width, 4 * width, 8 * width),
        blocks=(2, 2, 1),
        strides=(2, 2, 2),
        large_stem=False,
        dropout=dropout,
    )


def regressor_small(outputs: int, *, channels: int, width: int = 16, dropout: float = 0.0) -> ResNet:
    """Returns resnet-small without dropout, which would blur the values that the last layer learns."""
    return resnet_small(outputs, channels=channels, width=width, dropout=dropout)


def resnet18(outputs: int, *, channels: int, dropout: float = 0.0) -> ResNet:
    """Returns ResNet-18 (He et al. 2016): 11.2 million parameters before the last layer, made for 224x224."""
    return ResNet(
        outputs,
        channels=channels,
        stem=64,
        widths=(64, 128, 256, 512),
        blocks=(2, 2, 2, 2),
        strides=(1, 2, 2, 2),
        large_stem=True,
        dropout=dropout,
    )
