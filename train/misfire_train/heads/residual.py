"""Implements the default head: the best free score, corrected by a small committee that starts at zero.

score of a unit = scale * base + bias + mean over members of MLP(standardised statistics)

The last layers start at zero, so the head starts as the free score and cannot start worse. A unit is what has
a loss: the frame of a classifier, a joint, a tile of a segmenter, a value of a regressor. One network serves
all units; a one-hot tells joints and values apart. Statistics are clipped at six deviations, so that an
unfamiliar shift cannot drive the correction without bound.

After training the correction keeps a strength of 0 to 1 (heads/strength.py), which is multiplied into the
last layers; at 0 the score orders frames exactly as the free score does.
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
from misfire_train.scores.output_only import OutputDeviation
from misfire_train.signals import Signals
from misfire_train.tasks import Task, as_task
from misfire_train.tasks.answers.statistics import map_statistics

CLIP = 6.0
DEVIATION = "output_deviation"
"""A free score of values that knows the training set's answers; other bases know the answer only."""
ALONE = "alone: no correction earned its place"
"""In the definition of a head of strength 0."""
COLUMNS: dict[str, tuple[str, ...]] = {
    "all": ("own", "mean", "unit", "memory", "norm", "embedding", "maps", "opinions"),
    # What carries the place (channel by channel, the embedding itself) is left out, what was made of it not.
    "beliefs": ("own", "mean", "unit", "memory", "opinions"),
    "answer": ("own", "mean", "unit"),
    "own": ("own", "unit"),
}
"""Sets of statistics, by the blocks of columns that they keep.

Of one's own unit, their mean over units, a one-hot of the unit, distances to the memory, the norm of the
embedding, the embedding, statistics of feature maps, and second opinions on them.
"""


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
        return torch.matmul(self.inner(x), self.last)[..., 0]

    def average(self, x: Tensor) -> Tensor:
        """Returns the members' mean [R,1] for [R,D]."""
        return torch.matmul(self.wide(x), self.last.reshape(-1, 1) / len(self.last))

    def inner(self, x: Tensor) -> Tensor:
        """Returns each member's last hidden layer, [members,R,hidden]."""
        hidden = functional.silu(torch.matmul(x, self.first) + self.first_bias)
        return functional.silu(torch.matmul(hidden, self.second) + self.second_bias)

    def wide(self, x: Tensor) -> Tensor:
        """Returns all members' last hidden layers side by side, [R,members*hidden].

        As one network with the second layers on one diagonal: these are products with constant matrices,
        which a runtime packs once. It would pack a stack of matrices for every frame.
        """
        members, hidden, _ = self.second.shape
        apart = torch.eye(members, device=x.device, dtype=x.dtype)[:, None, :, None]
        second = (self.second[:, :, None] * apart).reshape(members * hidden, members * hidden)
        wide = torch.addmm(self.first_bias.flatten(), x, self.first.transpose(0, 1).flatten(1))
        wide = torch.addmm(self.second_bias.flatten(), functional.silu(wide), second)
        return functional.silu(wide)


class ResidualHead(LossHead):
    """Is LearningLoss++ as a correction of a free score.

    Args:
        outputs: number of classes, joints or values.
        base: a name of the task's `bases`, or DEVIATION if the task `deviates`.
        embedding: width of the last layer's input.
        maps: names of feature maps whose statistics it reads.
        rows, kept: of the memory (by default kept whole).
        opinions: for classes, the number of map statistics that each second opinion sees.
        columns: the set of statistics (COLUMNS) that it reads.
        strength: what is left of the correction, for the record: it is in the weights.
        pooling: "exp", or "mean" if a frame's score is the mean over units.
        refittable: computes the correction at strength 0, too, so that a head-only round can give it one.
    """

    recipe = "learning-loss-pp"
    center: Tensor
    spread: Tensor
    blocks: tuple[tuple[str, int], ...] = ()
    """Names and widths of its blocks of columns, in order; only of a head that was just built."""

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
        columns: str = "all",
        strength: float = 1.0,
        pooling: str = "exp",
        refittable: bool = False,
    ) -> None:
        super().__init__()
        self.task = as_task(task)
        self.columns, self.strength, self.pooling = columns, strength, pooling
        self.refittable = refittable
        self.outputs, self.base, self.embedding = outputs, base, embedding
        self.maps, self.hidden, self.members = tuple(maps), hidden, members
        self.sees_embedding = sees_embedding
        classes = outputs if remembers_classes(self.task) else 0
        self.rows, self.kept = rows, embedding if kept is None else kept
        # Without its columns a vehicle need not carry the memory, which is most of what a head weighs.
        keeps_memory = "memory" in COLUMNS[columns]
        self.memory = Memory(rows, embedding, classes, kept=self.kept) if keeps_memory else None
        self.opinions = nn.ModuleList(SecondOpinion(count, outputs) for count in opinions)
        # Of the frame, so that a head of strength 0 orders frames as that score does.
        unknown = torch.zeros(outputs, outputs), torch.zeros(outputs)
        self.deviation = OutputDeviation(*unknown) if base == DEVIATION else None
        self.committee = Committee(width, hidden=hidden, members=members)
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.define()

    def define(self) -> None:
        """Sets the definition that a manifest prints."""
        if self.strength == 0:
            self.definition = f"log-loss predicted as {self.base} {ALONE}"
            return
        share = "" if self.strength == 1 else f"{self.strength:g} of a "
        self.definition = f"log-loss predicted as {self.base} + {share}correction from output statistics"

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
            "rows": self.rows,
            "kept": self.kept,
            "hidden": self.hidden,
            "members": self.members,
            "sees_embedding": self.sees_embedding,
            "opinions": [opinion.width for opinion in self.opinions],
            "columns": self.columns,
            "strength": self.strength,
            "pooling": self.pooling,
            **({"refittable": True} if self.refittable else {}),
        }

    @property
    def corrects(self) -> bool:
        """Returns whether the correction is computed."""
        return self.strength != 0 or self.refittable

    @property
    def layers(self) -> tuple[str, ...]:
        """Returns the feature maps that it reads."""
        return self.maps

    def free_units(self, outputs: Tensor) -> Tensor:
        """Returns the free score of each unit that the head starts from, [N,U]."""
        if self.deviation is None:
            return self.task.bases()[self.base](outputs)
        # The floor keeps the log of an answer at the very mean finite.
        frame = torch.log(self.deviation.deviation(outputs) + 1e-6)[:, None]
        return frame.expand(-1, outputs.flatten(1).shape[1])

    def extract(self, signals: Signals) -> Parts:
        """Returns (base [N,U], statistics [N,U,D])."""
        base = self.free_units(signals.outputs)
        if not self.corrects:
            return base, base[..., None]
        return base, unit_statistics(
            self.task,
            signals,
            self.memory,
            maps=self.maps,
            sees_embedding=self.sees_embedding,
            opinions=self.opinions,
            columns=self.columns,
        )

    def pool(self, units: Tensor) -> Tensor:
        """Returns [N] for [N,U]: log of the mean of exp, or the mean if the free score is a mean."""
        return units.mean(1) if self.pooling == "mean" else super().pool(units)

    def free_frames(self, units: Tensor) -> Tensor:
        """Returns the free score of each frame, [N], from that of its units [N,U]."""
        return units.mean(1) if self.base in self.task.mean_bases else self.pool(units)

    def predict(self, parts: Parts) -> Tensor:
        """Returns scores of units, [N,U]."""
        base, x = parts
        if not self.corrects:
            return self.scale * base + self.bias
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

    @torch.no_grad()
    def free_line(self, parts: Parts, losses: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
        """Returns scale and bias with which units pool to the order of the free score.

        The free score of a frame is the mean over its units, of exp(base) unless the task says that it is of
        the base itself. So a scale other than 1 would be another score.
        parts, losses: as in `standardise`, which has been called.
        """
        base = parts[0]
        if base.shape[1] == 1 or self.base in self.task.mean_bases:
            return self.scale.clone(), self.bias.clone()
        there = ~losses.isnan()
        return torch.ones(()), (torch.log(losses[there] + eps) - base[there]).mean()

    @torch.no_grad()
    def weaken(self, strength: float, line: tuple[Tensor, Tensor]) -> None:
        """Keeps this share of what training made of the head; the rest is the free score's line."""
        self.committee.last.mul_(strength)
        for own, free in zip((self.scale, self.bias), line, strict=True):
            own.copy_((1 - strength) * free + strength * own)
        self.strength = strength
        if strength == 0 and self.base in self.task.mean_bases:
            self.pooling = "mean"
        self.define()

    def narrowed(self, columns: str, *, members: int | None = None) -> ResidualHead:
        """Returns a fresh head that reads these statistics of the same memory and opinions.

        members: of its committee; by default as many.
        """
        blocks = COLUMNS[columns]
        keeps_maps = "maps" in blocks or "opinions" in blocks
        options = self.options | {
            "columns": columns,
            "maps": self.maps if keeps_maps else (),
            "opinions": self.options["opinions"] if "opinions" in blocks else (),
            "sees_embedding": self.sees_embedding and "embedding" in blocks,
            "width": len(self.center) if columns == self.columns else len(self.column_index(columns)),
            "members": self.members if members is None else members,
            "task": self.task,
        }
        head = ResidualHead(**options)
        if head.memory is not None and self.memory is not None:
            head.memory.load_state_dict(self.memory.state_dict())
        if head.deviation is not None and self.deviation is not None:
            head.deviation.load_state_dict(self.deviation.state_dict())
        head.opinions.load_state_dict(self.opinions.state_dict() if len(head.opinions) else {})
        head.opinions.requires_grad_(False)
        return head

    def column_index(self, columns: str) -> list[int]:
        """Returns the places of a set's columns among those of this head."""
        places: list[int] = []
        start = 0
        for name, width in self.blocks:
            if name in COLUMNS[columns]:
                places += range(start, start + width)
            start += width
        return places

    def column_sets(self) -> list[str]:
        """Returns the sets of columns that differ for this head, the largest first."""
        found: dict[int, str] = {}
        for name in COLUMNS:
            # With many units per frame the memory is of the whole frame: it carries the place, too.
            if name != "beliefs" or self.task.by_frame:
                found.setdefault(len(self.column_index(name)), name)
        return list(found.values())


def remembers_classes(task: Task) -> bool:
    """Returns whether the memory holds the class of each training frame, whose votes a head then reads."""
    return task.by_class and task.by_frame


def unit_statistics(
    task: Task,
    signals: Signals,
    memory: Memory | None,
    *,
    maps: tuple[str, ...],
    sees_embedding: bool,
    opinions: Iterable[nn.Module] = (),
    columns: str = "all",
) -> Tensor:
    """Returns the input of the correction, [N,U,D].

    It has own statistics of each unit; their mean over units if there are several; a one-hot of the unit
    (joints, values); distances to the training set; on request the embedding, statistics of feature maps, and
    what second opinions make of them.
    """
    blocks = statistics_blocks(
        task, signals, memory, maps=maps, sees_embedding=sees_embedding, opinions=opinions, columns=columns
    )
    units = [block for _, block in blocks if block.ndim == 3]
    frame = [block for _, block in blocks if block.ndim == 2]
    if not frame:
        return torch.cat(units, 2) if len(units) > 1 else units[0]
    count = units[0].shape[1]
    if count == 1:
        return torch.cat((*(block[:, 0] for block in units), *frame), 1)[:, None]
    return torch.cat((*units, torch.cat(frame, 1)[:, None].expand(-1, count, -1)), 2)


def statistics_blocks(
    task: Task,
    signals: Signals,
    memory: Memory | None,
    *,
    maps: tuple[str, ...],
    sees_embedding: bool,
    opinions: Iterable[nn.Module] = (),
    columns: str = "all",
) -> list[tuple[str, Tensor]]:
    """Returns the blocks of `unit_statistics` by name: of units [N,U,d], then of the frame [N,d]."""
    outputs, embedding, wanted = signals.outputs, signals.embedding, COLUMNS[columns]
    units = task.unit_statistics(outputs)
    count = units.shape[1]
    blocks = [("own", units)]
    # A mean over one unit and a one-hot of one unit would add nothing.
    if count > 1 and "mean" in wanted:
        blocks.append(("mean", units.mean(1, keepdim=True).expand(-1, count, -1)))
    if task.names_units:
        who = torch.eye(count, device=units.device, dtype=units.dtype)
        blocks.append(("unit", who[None].expand(units.shape[0], -1, -1)))
    if memory is not None:
        blocks.append(("memory", memory(embedding, outputs)))
    if "norm" in wanted:
        blocks.append(("norm", torch.log(signals.flat.square().sum(1, keepdim=True).clamp_min(1e-12))))
    if sees_embedding and memory is not None:
        blocks.append(("embedding", memory.components(embedding)))
    if maps:
        seen = map_statistics({name: signals.features[name] for name in maps})
        if "maps" in wanted:
            blocks.append(("maps", seen))
        blocks += [("opinions", opinion(seen, outputs)) for opinion in opinions]
    return blocks
