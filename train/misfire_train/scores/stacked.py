"""Combines the scores that a bundle carries anyway into one, calibrated by logistic regression.

    failure log-odds = intercept + sum_i w_i clip((s_i - mean_i) / std_i)

It is fitted on held-out data by Newton's method with an L2 penalty; its sigmoid is a failure probability.
Clipping keeps one score that runs away on odd input from deciding by itself. Its parts are shared in the
graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from misfire_train.errors import ScoreError
from misfire_train.scores.registry import ALL, Recipe, build, names_for, register, scores_of
from misfire_train.signals import Score, Signals
from misfire_train.tasks import Task

# With fewer, weights of half a dozen scores would fit noise.
LEAST_OF_EACH = 10


@register(tasks=ALL, needs="holdout", source="logistic combination")
class Stacked(Score):
    """Scores the log-odds of failure from component scores; `probability` is its sigmoid.

    components: scores of one forward pass. centre, spread, weight: [S]; intercept: a scalar.
    """

    name = "stacked"
    centre: Tensor
    spread: Tensor
    weight: Tensor
    intercept: Tensor

    def __init__(
        self,
        components: Sequence[Score],
        *,
        centre: Tensor,
        spread: Tensor,
        weight: Tensor,
        intercept: Tensor,
        clip: float = 4.0,
    ) -> None:
        super().__init__()
        self.components = nn.ModuleList(components)
        for name, value in (
            ("centre", centre),
            ("spread", spread),
            ("weight", weight),
            ("intercept", intercept),
        ):
            self.register_buffer(name, value.detach().float().clone())
        self.clip = clip
        self.exportable = all(score.exportable for score in components)
        self.free = all(score.free for score in components)
        self.definition = "logistic combination of " + ", ".join(score.name for score in components)

    @classmethod
    def make(cls, recipe: Recipe) -> Stacked:
        """Builds it on the holdout.

        Options: components (names or scores), task (a Task, of a run its own), penalty, clip. A task without
        a failure threshold fails on the worst fifth of the holdout.
        """
        options = dict(recipe.options)
        options.pop("components", None)
        task: Task = options.pop("task", None) or recipe.task
        holdout = recipe.need_holdout()
        holdout.require(name=cls.name, least=2)
        if not task.knows_failures:
            task = task.with_worst(task.sample_loss(holdout.signals.outputs, holdout.targets))
        failed = task.failed(holdout.signals.outputs, holdout.targets)
        return cls.fit(_components(recipe), holdout.signals, failed, **options)

    @classmethod
    def fit(
        cls,
        components: Sequence[Score],
        signals: Signals,
        failed: Tensor,
        *,
        penalty: float = 1.0,
        clip: float = 4.0,
    ) -> Stacked:
        """Fits the weights to held-out signals and failures.

        Args:
            components: scores of one forward pass.
            signals: of held-out samples.
            failed: boolean [N].
            penalty: L2 on the weights.
            clip: standard deviations beyond which a score counts no more.

        Raises:
            ScoreError: there are no components, scores are not finite, or there are fewer than 10 failures or
                10 successes.
        """
        if not components:
            raise ScoreError("stacked needs at least one component score")
        failures = int(failed.sum())
        if min(failures, len(failed) - failures) < LEAST_OF_EACH:
            raise ScoreError(
                f"stacked needs at least {LEAST_OF_EACH} failures and {LEAST_OF_EACH} successes, "
                f"got {failures} and {len(failed) - failures}"
            )
        with torch.no_grad():
            columns = torch.stack([score(signals) for score in components], 1).double()
        if not bool(torch.isfinite(columns).all()):
            bad = [
                s.name
                for s, c in zip(components, columns.T, strict=True)
                if not bool(torch.isfinite(c).all())
            ]
            raise ScoreError(f"stacked: {', '.join(bad)} is not finite on the holdout")
        centre, spread = columns.mean(0), columns.std(0)
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        design = ((columns - centre) / spread).clamp(-clip, clip)
        solution = logistic_regression(design, failed.double(), penalty=penalty)
        return cls(
            components, centre=centre, spread=spread, weight=solution[:-1], intercept=solution[-1], clip=clip
        )

    def forward(self, signals: Signals) -> Tensor:
        """Returns log-odds [N]."""
        columns = torch.stack([score(signals) for score in self.components], 1)
        design = ((columns - self.centre) / self.spread).clamp(-self.clip, self.clip)
        return torch.matmul(design, self.weight) + self.intercept

    def probability(self, signals: Signals) -> Tensor:
        """Returns the probability of failure [N], calibrated as far as the holdout resembles the field."""
        return torch.sigmoid(self(signals))


def _components(recipe: Recipe) -> list[Score]:
    """Returns the named components, or every free score and, given a fit set, two more."""
    wanted = recipe.options.get("components")
    if wanted is None:
        wanted = names_for(recipe.task, free=True)
        if recipe.fit is not None:
            wanted += ["egl", "knn_distance"]
        wanted = [name for name in wanted if name in scores_of(recipe.task)]
    built = [score for score in wanted if isinstance(score, Score)]
    names = [name for name in wanted if isinstance(name, str)]
    if "stacked" in names:
        raise ScoreError("stacked cannot be a component of itself")
    return built + build(names, task=recipe.task, fit=recipe.fit, holdout=recipe.holdout)


def logistic_regression(design: Tensor, target: Tensor, *, penalty: float, steps: int = 50) -> Tensor:
    """Returns weights and intercept [S+1] that minimise sum log-loss + penalty/2 ||w||^2, by Newton's method.

    >>> x = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]], dtype=torch.double)
    >>> w = logistic_regression(x, torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.double), penalty=1e-6)
    >>> w[0].item() > 0
    True
    """
    full = torch.cat([design, torch.ones_like(design[:, :1])], 1)
    ridge = torch.full((full.shape[1],), penalty, dtype=full.dtype)
    # The intercept is not penalised, but the system must stay solvable.
    ridge[-1] = 1e-6
    weight = torch.zeros(full.shape[1], dtype=full.dtype)

    def objective(w: Tensor) -> float:
        margin = full @ w
        return float(
            (nn.functional.softplus(margin) - target * margin).sum() + (ridge * w.square()).sum() / 2
        )

    for _ in range(steps):
        p = torch.sigmoid(full @ weight)
        gradient = full.T @ (p - target) + ridge * weight
        hessian = (full * (p * (1 - p))[:, None]).T @ full + torch.diag(ridge)
        step = torch.linalg.solve(hessian, gradient)
        size, before = 1.0, objective(weight)
        # A full Newton step may overshoot if failures are nearly separable.
        while size > 1e-4 and objective(weight - size * step) > before:
            size /= 2
        weight = weight - size * step
        if float(step.abs().max()) < 1e-9:
            break
    return weight
