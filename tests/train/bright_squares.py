"""A detector that needs no training: it finds bright squares, and misses the dim ones.

Pictures of 64 x 64 hold squares of 16 x 16 on a grid of 8, some too dim to be seen. The network averages each
window of 16 x 16; a last 1x1 convolution makes its brightness the logit of the class "square".
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from misfire_runtime.preprocess import InputContract
from misfire_train.data import Dataset, Examples
from misfire_train.data.boxes import stack_boxes
from misfire_train.data.images import ImageArray

SIDE, SQUARE, STRIDE = 64, 16, 8
CONTRACT = InputContract(height=SIDE, width=SIDE, mean=(0.0,), std=(1.0,))


class SquareFinder(nn.Module):
    """Maps [N,3,64,64] to the dense answer [N,49,10] of two classes, of which the second is never seen."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(SQUARE, STRIDE)
        self.head = nn.Conv2d(3, 2, 1)
        cells = SIDE // STRIDE - 1
        centre = (torch.arange(cells, dtype=torch.float32) + 1) * STRIDE
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        half = SQUARE / 2
        boxes = torch.stack((x - half, y - half, x + half, y + half), -1).reshape(1, -1, 4)
        spread, stride = torch.zeros(1, cells**2, 1), torch.full((1, cells**2, 1), float(STRIDE))
        self.register_buffer("boxes", boxes)
        self.register_buffer(
            "extras", torch.cat((spread, x.reshape(1, -1, 1), y.reshape(1, -1, 1), stride), 2)
        )
        with torch.no_grad():
            # A window that is half covered by a bright square stays below the threshold.
            self.head.weight.copy_(torch.tensor([[8.0], [0.0]]).repeat(1, 3).reshape(2, 3, 1, 1))
            self.head.bias.copy_(torch.tensor([-14.0, -30.0]))

    def forward(self, image: Tensor) -> Tensor:
        """Returns the dense answer."""
        logits = self.head(self.pool(image)).flatten(2).transpose(1, 2)
        count = image.shape[0]
        return torch.cat((self.boxes.expand(count, -1, -1), logits, self.extras.expand(count, -1, -1)), 2)


def squares(count: int, *, seed: int, name: str) -> Examples:
    """Returns pictures with one to three squares, and now and then a bright patch that is none."""
    rng = np.random.default_rng(seed)
    images, targets = [], []
    for _ in range(count):
        image = rng.integers(0, 60, (SIDE, SIDE, 3)).astype(np.uint8)
        places = rng.permutation(9)[: rng.integers(1, 5)]
        rows: list[list[float]] = []
        for index, place in enumerate(places):
            # Three columns and rows of squares that do not touch.
            left, top = 24 * (place % 3), 24 * (place // 3)
            bright = int(rng.integers(125, 250))
            image[top : top + SQUARE, left : left + SQUARE] = bright
            # A bright patch without a label makes a false box.
            if index < 3 and rng.random() < 0.92:
                rows.append([left, top, left + SQUARE, top + SQUARE, 0, 0])
        images.append(image)
        targets.append(np.array(rows, np.float32).reshape(-1, 6))
    ids = tuple(f"{name}-{row:04d}" for row in range(count))
    return Examples(ImageArray(np.stack(images)), stack_boxes(targets), ids, tuple(f"{i[:-1]}" for i in ids))


def dataset(*, test: int = 300) -> Dataset:
    """Returns a data set of squares, in groups of ten frames."""
    return Dataset(
        name="squares",
        task="detection",
        classes=("square", "disc"),
        contract=CONTRACT,
        train=squares(20, seed=1, name="train"),
        test=squares(test, seed=2, name="test"),
        sha256="1" * 64,
        licence="none",
    )


def boxes_of(targets: NDArray[np.object_]) -> int:
    """Returns the number of labelled objects."""
    return sum(len(rows) for rows in targets)
