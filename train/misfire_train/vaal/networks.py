"""Defines the two networks of VAAL: a convolutional VAE on small images, and a discriminator on its code.

    image [N,C,H,W] -> resized [N,C,S,S] -> mu, log-variance [N,Z]
    code [N,Z] (+ rank [N,1] in TA-VAAL) -> reconstruction [N,C,S,S], and a logit "labelled"

Sinha et al. 2019 use 128-1024 channels for 32x32; `width` scales that down to what a few hundred frames need.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from misfire_train.errors import ScoreError


class Vae(nn.Module):
    """Is a VAE of three stride-2 stages.

    Args:
        channels: of the image.
        size: side to which images are resized, a multiple of 8.
        latent: Z.
        width: channels of the first stage.
        rank: whether the decoder also takes r [N,1] (TA-VAAL).
    """

    def __init__(
        self, channels: int, *, size: int = 32, latent: int = 16, width: int = 16, rank: bool = False
    ) -> None:
        super().__init__()
        # Three stages halve the size three times.
        if size % 8 or size < 8:
            raise ScoreError(f"size is {size}; expected a multiple of 8")
        self.size, self.rank, self.grid = size, rank, size // 8
        widths = (width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in zip((channels, *widths[:2]), widths, strict=True):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        flat = widths[2] * self.grid**2
        self.mean, self.log_variance = nn.Linear(flat, latent), nn.Linear(flat, latent)
        self.from_code = nn.Linear(latent + int(rank), flat)
        layers = [nn.Unflatten(1, (widths[2], self.grid, self.grid))]
        for before, after in zip(widths[::-1], (widths[1], widths[0], widths[0]), strict=True):
            layers += [
                nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(widths[0], channels, 1))

    def resized(self, image: Tensor) -> Tensor:
        """Returns [N,C,S,S] of images [N,C,H,W], averaging areas."""
        if image.shape[2:] == (self.size, self.size):
            return image
        return functional.interpolate(image, (self.size, self.size), mode="area")

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mu and log-variance [N,Z] of images of any size."""
        hidden = self.encoder(self.resized(image))
        # The clamp keeps exp finite.
        return self.mean(hidden), self.log_variance(hidden).clamp(-20, 20)

    def decode(self, code: Tensor, rank: Tensor | None = None) -> Tensor:
        """Returns [N,C,S,S] from codes [N,Z], and from r [N,1] if the VAE takes one."""
        decoded: Tensor = self.decoder(self.from_code(with_rank(code, rank, wanted=self.rank)))
        return decoded


class Discriminator(nn.Module):
    """Answers the logit that a code comes from the labelled set: three linear layers.

    rank: takes r [N,1] too.
    """

    def __init__(self, latent: int, *, width: int = 64, rank: bool = False) -> None:
        super().__init__()
        self.rank = rank
        self.layers = nn.Sequential(
            nn.Linear(latent + int(rank), width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )

    def forward(self, code: Tensor, rank: Tensor | None = None) -> Tensor:
        """Returns logits [N] for codes [N,Z]."""
        logit: Tensor = self.layers(with_rank(code, rank, wanted=self.rank))
        return logit.squeeze(1)


def with_rank(code: Tensor, rank: Tensor | None, *, wanted: bool) -> Tensor:
    """Returns code and rank joined. Raises ScoreError if a rank is missing or not wanted."""
    if (rank is not None) != wanted:
        raise ScoreError("a rank input is given exactly where the networks were built for one")
    return code if rank is None else torch.cat([code, rank.reshape(-1, 1).to(code.dtype)], 1)


def vae_loss(
    image: Tensor, rebuilt: Tensor, mean: Tensor, log_variance: Tensor, *, beta: float
) -> tuple[Tensor, Tensor]:
    """Returns the mean squared error over pixels plus beta times the KL divergence, and the divergence.

    The KL is averaged over samples and dimensions: summed, it outweighs a mean error by batch times Z, and
    the code collapses to the prior.
    """
    error = functional.mse_loss(rebuilt, image)
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()
    return error + beta * divergence, divergence
