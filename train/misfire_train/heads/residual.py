"""Implements the default head: the best free score, corrected by a small committee that starts at zero.

score of a unit = scale * base + bias + mean over members of MLP(standardised statistics)

The last layers start at zero, so the head starts as the free score and cannot start worse. A unit is what has
a loss: the frame of a classifier, a joint, a tile of a segmenter, a value of a regressor. One network serves
all units; a one-hot tells joints and values apart. Statistics are clipped at six deviations, so that an
unfamiliar shift cannot drive the correction without bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from misfire_train.heads.base import LossHead, Parts
from misfire_train.heads.memory import Memory
from misfire_train.heads.second_opinion import SecondOpinion
from misfire_train.signals import Signals
from misfire_train.tasks import Task, as_task
from misfire_train.tasks.answers.statistics import map_statistics

CLIP = 6.0


class Committee(nn.Module):
    """Is `members` small networks [R,D] -> [R], trained separately and averaged.

    Last layers start at zero.
    """

    def __init__(self, width: int, *, hidden: int, members: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(members, width, hidden))
        self.first_bias = nn.Parameter(torch.zeros(members, 1, hidden))
        self.second = nn.Parameter(torch.empty(members, hidden, hidden))
        self.second_bias = nn.Parameter(torch.zeros(members, 1, hidden))
        self.last = nn.Parameter(torch.zeros(members, hidden, 1))
        for weight in (self.first, self.second):
            # He initialisation, for each member by itself.
            nn.init.normal_(weight, std=math.sqrt(2 / weight.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Returns each member's answer [members,R] to [R,D]."""
        hidden = functional.silu(torch.matmul(x, self.first) + self.first_bias)
        hidden = functional.silu(torch.matmul(hidden, self.second) + self.second_bias)
        return torch.matmul(hidden, self.last)[..., 0]

    def average(self, x: Tensor) -> Tensor:
        """Returns the members' mean [R,1] for [R,D], as one network with the second layers on one diagonal.

        These are three products with constant matrices, which a runtime packs once. It would pack a stack of
        matrices for every frame.
        """
        members, hidden, _ = self.second.shape
        apart = torch.eye(members, device=x.device, dtype=x.dtype)[:, None, :, None]
        second = (self.second[:, :, None] * apart).reshape(members * hidden, members * hidden)
        wide = torch.addmm(self.first_bias.flatten(), x, self.first.transpose(0, 1).flatten(1))
        wide = torch.addmm(self.second_bias.flatten(), functional.silu(wide), second)
        return torch.matmul(functional.silu(wide), self.last.reshape(-1, 1) / members)


class ResidualHead(LossHead):
    """Is LearningLoss++ as a correction of a free score.

    Args:
        outputs: number of classes, joints or values.
        base: a name of the task's `bases`.
        embedding: width of the last layer's input.
        maps: names of feature maps whose statistics it reads.
        rows, kept: of the memory (by default kept whole).
        opinions: for classes, the number of map statistics that each second opinion sees.
    """

    recipe = "learning-loss-pp"
    center: Tensor
    spread: Tensor

    def __init__(
        self,
        *,
        task: str | Task,
        outputs: int,
        base: str,
        embedding: int,
        maps: tuple[str, ...] = (),
        width: int,
        rows: int,
        hidden: int = 32,
        members: int = 4,
        sees_embedding: bool = True,
        opinions: tuple[int, ...] = (),
        kept: int | None = None,
    ) -> None:
        super().__init__()
        self.task = as_task(task)
        self.outputs, self.base, self.embedding = outputs, base, embedding
        self.maps, self.hidden, self.members = tuple(maps), hidden, members
        self.sees_embedding = sees_embedding
        classes = outputs if remembers_classes(self.task) else 0
        self.memory = Memory(rows, embedding, classes, kept=embedding if kept is None else kept)
        self.opinions = nn.ModuleList(SecondOpinion(count, outputs) for count in opinions)
        self.committee = Committee(width, hidden=hidden, members=members)
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.definition = f"log-loss predicted as {base} + correction from output statistics"

    @property
    def options(self) -> dict[str, Any]:
        """Returns keyword arguments that build a head of the same shapes."""
        return {
            "task": self.task.name,
            "outputs": self.outputs,
            "base": self.base,
            "embedding": self.embedding,
            "maps": list(self.maps),
            "width": len(self.center),
            "rows": self.memory.rows,
            "kept": self.memory.kept,
            "hidden": self.hidden,
            "members": self.members,
            "sees_embedding": self.sees_embedding,
            "opinions": [opinion.width for opinion in self.opinions],
        }

    @property
    def layers(self) -> tuple[str, ...]:
        """Returns the feature maps that it reads."""
        return self.maps

    def extract(self, signals: Signals) -> Parts:
        """Returns (base [N,U], statistics [N,U,D])."""
        base = self.task.bases()[self.base](signals.outputs)
        return base, unit_statistics(
            self.task,
            signals,
            self.memory,
            maps=self.maps,
            sees_embedding=self.sees_embedding,
            opinions=self.opinions,
        )

    def predict(self, parts: Parts) -> Tensor:
        """Returns scores of units, [N,U]."""
        base, x = parts
        answers: Tensor = self.scale * base + self.bias + self.committee.average(self._rows(x)).view_as(base)
        return answers

    def predict_members(self, parts: Parts) -> Tensor:
        """Returns each member's answer, [members,N,U]."""
        base, x = parts
        answers: Tensor = self.scale * base + self.bias + self.committee(self._rows(x)).view(-1, *base.shape)
        return answers

    def _rows(self, x: Tensor) -> Tensor:
        """Returns statistics [N,U,D], standardised and clipped, as [N*U,D]."""
        return ((x.flatten(0, 1) - self.center) / self.spread).clamp(-CLIP, CLIP)

    @torch.no_grad()
    def standardise(self, parts: Parts, losses: Tensor, *, eps: float) -> None:
        """Sets mean and deviation of the statistics, and the base's line through the log-losses.

        parts: of the fitting set. losses: [N,U], NaN if a unit is missing.
        """
        base, x = parts
        flat = x.flatten(0, 1)
        self.center.copy_(flat.mean(0))
        # A column that never varied has no information: its first other value must not become a huge one.
        deviation = flat.std(0)
        self.spread.copy_(torch.where(deviation > 1e-5, deviation, torch.full_like(deviation, 1e3)))
        there = ~losses.isnan()
        wanted, known = torch.log(losses[there] + eps), base[there]
        centred = known - known.mean()
        slope = (centred * (wanted - wanted.mean())).mean() / centred.square().mean().clamp_min(1e-9)
        # Positive, so that the head starts in the base's order; bounded, as a base that hardly varies fits
        # any slope.
        self.scale.copy_(slope.clamp(0.05, 20.0) if bool(centred.abs().max() > 1e-6) else slope.new_ones(()))
        self.bias.copy_(wanted.mean() - self.scale * known.mean())


def remembers_classes(task: Task) -> bool:
    """Returns whether the memory holds the class of each training frame, whose votes a head then reads."""
    return task.by_class and task.by_frame


def unit_statistics(
    task: Task,
    signals: Signals,
    memory: Memory,
    *,
    maps: tuple[str, ...],
    sees_embedding: bool,
    opinions: Iterable[nn.Module] = (),
) -> Tensor:
    """Returns the input of the correction, [N,U,D].

    It has own statistics of each unit; their mean over units if there are several; a one-hot of the unit
    (joints, values); distances to the training set; on request the embedding, statistics of feature maps, and
    what second opinions make of them.
    """
    outputs, embedding = signals.outputs, signals.embedding
    frame = [
        memory(embedding, outputs),
        torch.log(signals.flat.square().sum(1, keepdim=True).clamp_min(1e-12)),
    ]
    if sees_embedding:
        frame.append(memory.components(embedding))
    if maps:
        seen = map_statistics({name: signals.features[name] for name in maps})
        frame += [seen, *(opinion(seen, outputs) for opinion in opinions)]
    units = task.unit_statistics(outputs)
    count = units.shape[1]
    # A mean over one unit and a one-hot of one unit would add nothing.
    if count == 1 and not task.names_units:
        return torch.cat((units[:, 0], *frame), 1)[:, None]
    columns = [units]
    if count > 1:
        columns.append(units.mean(1, keepdim=True).expand(-1, count, -1))
    if task.names_units:
        who = torch.eye(count, device=units.device, dtype=units.dtype)
        columns.append(who[None].expand(units.shape[0], -1, -1))
    columns.append(torch.cat(frame, 1)[:, None].expand(-1, count, -1))
    return torch.cat(columns, 2)
