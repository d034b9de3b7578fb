"""Trains VAE and discriminator against each other on a labelled and an unlabelled set.

Per step: the VAE rebuilds a batch of each and makes both look labelled; the discriminator separates them.
Batches run through shuffled epochs of each set, so a small labelled set is not drawn with gaps or repeats.
The rank r of TA-VAAL is one number, squashed once (`RankerScore.rank`), for decoder and discriminator, in
training and scoring. The report names a collapsed code and a discriminator that learned nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from misfire_train.errors import ScoreError
from misfire_train.scores.fitting import evaluating
from misfire_train.vaal.networks import Discriminator, Vae, vae_loss

COLLAPSED_KL = 1e-3
"""Mean KL per dimension, in nats, below which the code has no information on the image."""


@dataclass(frozen=True)
class VaalConfig:
    """Holds sizes and rates.

    steps: of both networks; adversary: weight of looking labelled in the VAE's loss.
    """

    steps: int = 300
    batch: int = 64
    latent: int = 16
    size: int = 32
    width: int = 16
    # Adam's rate in the published code, for both networks.
    learning_rate: float = 5e-4
    beta: float = 0.05
    adversary: float = 1.0


@dataclass(frozen=True)
class VaalReport:
    """Holds how training ended, in eval mode on both whole sets."""

    reconstruction: float
    divergence: float
    accuracy: float
    """Share of samples, labelled and unlabelled counted equally, that the discriminator places right."""

    @property
    def collapsed(self) -> bool:
        """Returns whether the code equals the prior, so that scores are noise."""
        return self.divergence < COLLAPSED_KL


@dataclass(frozen=True)
class TrainedVaal:
    """Holds both networks, in eval mode, and the report."""

    vae: Vae
    discriminator: Discriminator
    report: VaalReport


def epochs(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields batches of positions without end; each epoch is a permutation.

    A set smaller than the batch comes whole. The last batch of an epoch may be smaller, but never of one.
    """
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count, size):
            part = order[start : start + size]
            # Batch norm cannot train on one sample.
            if len(part) > 1 or count == 1:
                yield part


def train_vaal(
    labelled: Tensor,
    unlabelled: Tensor,
    *,
    ranks: tuple[Tensor, Tensor] | None = None,
    config: VaalConfig | None = None,
    seed: int = 0,
) -> TrainedVaal:
    """Trains VAAL (Sinha et al. 2019), or TA-VAAL (Kim et al. 2021) if ranks are given.

    The result is deterministic per seed; the global random state is not changed.

    Args:
        labelled, unlabelled: images [N,C,H,W].
        ranks: r of each of both sets, [N] in 0..1 (`RankerScore.rank`).
        config: sizes and rates.
        seed: of weights and batches.

    Raises:
        ScoreError: a set has fewer than 2 images, shapes differ, or ranks are outside 0..1.

    >>> labelled, pool = torch.zeros(4, 1, 8, 8), torch.ones(6, 1, 8, 8)
    >>> trained = train_vaal(labelled, pool, config=VaalConfig(steps=2, size=8, width=2, latent=2))
    >>> trained.vae.training, 0 <= trained.report.accuracy <= 1
    (False, True)
    """
    config = config or VaalConfig()
    _check(labelled, unlabelled, ranks)
    # Layers draw their weights from the global generator, which is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with_ranks = ranks is not None
        vae = Vae(
            labelled.shape[1], size=config.size, latent=config.latent, width=config.width, rank=with_ranks
        )
        discriminator = Discriminator(config.latent, rank=with_ranks)
        generator = torch.Generator().manual_seed(seed)
        # Resized once instead of at every step.
        small = [vae.resized(images.float()) for images in (labelled, unlabelled)]
        _alternate(vae, discriminator, small, ranks=ranks, config=config, generator=generator)
    vae.eval()
    discriminator.eval()
    return TrainedVaal(vae, discriminator, _report(vae, discriminator, small, ranks))


def _alternate(
    vae: Vae,
    discriminator: Discriminator,
    sets: list[Tensor],
    *,
    ranks: tuple[Tensor, Tensor] | None,
    config: VaalConfig,
    generator: torch.Generator,
) -> None:
    of_vae = torch.optim.Adam(vae.parameters(), lr=config.learning_rate)
    of_discriminator = torch.optim.Adam(discriminator.parameters(), lr=config.learning_rate)
    streams = [epochs(len(images), config.batch, generator) for images in sets]
    for _ in range(config.steps):
        chosen = [next(stream) for stream in streams]
        images = [images[index] for images, index in zip(sets, chosen, strict=True)]
        r = (
            [None, None]
            if ranks is None
            else [rank[index] for rank, index in zip(ranks, chosen, strict=True)]
        )
        of_vae.zero_grad()
        total = torch.zeros(())
        for image, rank in zip(images, r, strict=True):
            mean, log_variance = vae.encode(image)
            code = mean + torch.randn_like(mean) * torch.exp(log_variance / 2)
            loss, _ = vae_loss(image, vae.decode(code, rank), mean, log_variance, beta=config.beta)
            # The VAE gains if both sets look labelled.
            fooled = functional.softplus(-discriminator(mean, rank)).mean()
            total = total + loss + config.adversary * fooled
        total.backward()  # type: ignore[no-untyped-call]
        of_vae.step()
        of_discriminator.zero_grad()
        # The codes are inputs here: the discriminator's step must not reach the VAE.
        with torch.no_grad():
            codes = [vae.encode(image)[0] for image in images]
        told = functional.softplus(-discriminator(codes[0], r[0])).mean()
        told = told + functional.softplus(discriminator(codes[1], r[1])).mean()
        told.backward()  # type: ignore[no-untyped-call]
        of_discriminator.step()


def _report(
    vae: Vae, discriminator: Discriminator, sets: list[Tensor], ranks: tuple[Tensor, Tensor] | None
) -> VaalReport:
    errors, divergences, right = [], [], []
    with torch.no_grad(), evaluating(vae, discriminator):
        for which, images in enumerate(sets):
            rank = None if ranks is None else ranks[which]
            mean, log_variance = vae.encode(images)
            rebuilt = vae.decode(mean, rank)
            _, divergence = vae_loss(images, rebuilt, mean, log_variance, beta=0.0)
            is_labelled = discriminator(mean, rank) > 0
            errors.append(float(functional.mse_loss(rebuilt, images)))
            divergences.append(float(divergence))
            right.append(float((is_labelled == (which == 0)).float().mean()))
    return VaalReport(sum(errors) / 2, sum(divergences) / 2, sum(right) / 2)


def _check(labelled: Tensor, unlabelled: Tensor, ranks: tuple[Tensor, Tensor] | None) -> None:
    for name, images in (("labelled", labelled), ("unlabelled", unlabelled)):
        if images.ndim != 4 or len(images) < 2:
            raise ScoreError(f"the {name} set must be at least 2 images [N,C,H,W], got {tuple(images.shape)}")
    if labelled.shape[1:] != unlabelled.shape[1:]:
        raise ScoreError(f"images differ: {tuple(labelled.shape[1:])} and {tuple(unlabelled.shape[1:])}")
    for images, rank in zip((labelled, unlabelled), ranks or (), strict=False):
        if rank.shape != (len(images),) or not bool(((rank >= 0) & (rank <= 1)).all()):
            raise ScoreError(f"ranks must be [{len(images)}] in 0..1, as RankerScore.rank gives them")
