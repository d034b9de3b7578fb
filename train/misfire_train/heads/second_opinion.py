"""Trains a second opinion: a small classifier on statistics of feature maps and the training set's labels.

statistics of the first layers [N,D] --standardise, two linear layers--> its own log-probabilities -> [N,5+K]

It sees other evidence than the network's last layer (early layers, channel by channel), so if the two
disagree, the network is likelier to be wrong: the information of an ensemble for a few thousand
multiply-adds. It is fitted before the head and frozen; the head learns how far to trust it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from misfire_train.tasks.answers.softmax import Softmax

STEPS = 500
_CLIP = 5.0


class SecondOpinion(nn.Module):
    """Classifies frames from map statistics. width: of the statistics. classes: K."""

    center: Tensor
    spread: Tensor

    def __init__(self, width: int, classes: int, *, hidden: int = 64) -> None:
        super().__init__()
        self.width, self.classes = width, classes
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Dropout(0.2), nn.Linear(hidden, classes)
        )
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def fit(self, statistics: Tensor, labels: Tensor, *, seed: int = 0) -> SecondOpinion:
        """Trains on statistics [N,width or more] and labels [N] of the training set, with noise on top."""
        known = statistics[:, : self.width]
        self.center.copy_(known.mean(0))
        self.spread.copy_(known.std(0) + 1e-4)
        z = ((known - self.center) / self.spread).clamp(-_CLIP, _CLIP)
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=3e-3, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        self.train()
        # Its caller, `candidate_heads`, runs without gradients.
        with torch.enable_grad():
            for _ in range(STEPS):
                rows = torch.randint(len(z), (min(256, len(z)),), generator=generator)
                # Noise of 0.3 deviations keeps it from memorising the training set.
                noisy = z[rows] + 0.3 * torch.randn(len(rows), self.width, generator=generator)
                loss = functional.cross_entropy(self.net(noisy), labels[rows].long())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        self.eval().requires_grad_(False)
        return self

    def forward(self, statistics: Tensor, logits: Tensor) -> Tensor:
        """Returns [N,5+K] for statistics [N,width or more] and the network's logits [N,K].

        Above KNOWN_CLASSES it is [N,5].
        """
        z = ((statistics[:, : self.width] - self.center) / self.spread).clamp(-_CLIP, _CLIP)
        own, theirs = Softmax(self.net(z)), Softmax(logits)
        columns = (
            *((own.log_p * theirs.answer).sum(1, keepdim=True), (own.log_p * theirs.p).sum(1, keepdim=True)),
            *(own.entropy, own.log_p.amax(1, keepdim=True), own.log_odds, own.each),
        )
        return torch.cat(columns, 1)
