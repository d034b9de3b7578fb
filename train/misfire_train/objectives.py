"""Defines objectives for a loss-predicting head, over (predicted score, true loss) of a batch.

    learning_loss        margin ranking (Yoo & Kweon 2019)
    learning_loss_pp     KL between true and predicted loss shares (Shukla & Ahmed 2021, LearningLoss++)
    rank_bce             LearningLoss++ with shares hardened to 0 or 1 (Kim et al. 2021, TA-VAAL eq. 4)
    log_loss_regression  squared error to the log-loss: the plain baseline that compares no pairs

    partial_auc          failures against the highest-scored successes (Zhu et al. 2022, a hard form)
    lambda_loss          NDCG of the top of the list (Wang et al. 2018, LambdaLoss)

The last two look only at the top of the list, where uploads are; they are added to one of the others.
The first three compare samples. `pairs="halves"` takes (i, i+B) of 2B samples, which needs a shuffled batch:
a loader in file order pairs neighbours of one drive. `pairs="all"` takes all N(N-1)/2 pairs, any N >= 2, and
has the lower variance. True losses are never differentiated. Every form is finite for any finite score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Pairs = Literal["halves", "all"]


def check_losses(true: Tensor, *, ids: Sequence[str] | None = None) -> Tensor:
    """Returns the losses, detached.

    Raises ValueError that names samples with a NaN, infinite or negative loss.

    true: [N]. ids: N sample ids; without them a sample is named by its position.
    """
    losses = true.detach()
    if losses.ndim != 1:
        raise ValueError(f"losses must be one per sample, [N]; got shape {tuple(losses.shape)}")
    for wrong, what in ((~torch.isfinite(losses), "not finite"), (losses < 0, "negative")):
        if bool(wrong.any()):
            places = wrong.nonzero().flatten().tolist()
            shown = ", ".join(str(ids[i]) if ids is not None else f"#{i}" for i in places[:5])
            more = f" and {len(places) - 5} more" if len(places) > 5 else ""
            hint = "; shift a negative log-likelihood, or rank its exponential" if what == "negative" else ""
            raise ValueError(f"the loss is {what} for {shown}{more}{hint}")
    return losses


def ratio_eps(true: Tensor, *, fraction: float = 1e-3) -> float:
    """Returns a fraction of the median loss as `eps`, so that 1e-6 against 1e-4 is no extreme pair.

    >>> round(ratio_eps(torch.tensor([0.1, 0.5, 3.0])), 6)
    0.0005
    """
    return fraction * float(true.detach().median())


def pair_up(predicted: Tensor, true: Tensor, *, pairs: Pairs = "halves") -> tuple[Tensor, Tensor, Tensor]:
    """Returns score differences and both true losses of every pair: [P], [P], [P].

    Raises ValueError on shapes that differ, fewer than two samples, an odd batch under "halves", and losses
    that are negative or not finite.
    """
    losses = check_losses(true).to(predicted.dtype)
    if predicted.shape != losses.shape:
        raise ValueError(
            f"scores {tuple(predicted.shape)} and losses {tuple(losses.shape)} must have one shape [N]"
        )
    count = losses.shape[0]
    if count < 2:
        raise ValueError(f"a ranking needs at least 2 samples, got {count}")
    if pairs == "all":
        first, second = torch.triu_indices(count, count, offset=1, device=predicted.device)
        return predicted[first] - predicted[second], losses[first], losses[second]
    if pairs != "halves":
        raise ValueError(f"pairs is {pairs!r}; expected 'halves' or 'all'")
    if count % 2:
        raise ValueError(f"pairs='halves' needs an even batch, got {count}; drop one or use pairs='all'")
    half = count // 2
    return predicted[:half] - predicted[half:], losses[:half], losses[half:]


def learning_loss(predicted: Tensor, true: Tensor, *, margin: float = 1.0, pairs: Pairs = "halves") -> Tensor:
    """Returns the margin ranking loss: mean of max(0, margin - sign(l_i - l_j) (s_i - s_j)).

    A tie has sign 0: it adds the constant margin and no gradient. Equal scores give exactly `margin`.
    Yoo & Kweon 2019, section 3.3.

    Args:
        predicted: [N] scores.
        true: [N] losses >= 0.
        margin: score difference that a pair must reach.
        pairs: "halves" or "all".

    Returns:
        A scalar.

    >>> scores, losses = torch.tensor([1.48, 1.51]), torch.tensor([0.45, 0.47])
    >>> round(learning_loss(scores, losses).item(), 2)      # right order, 0.03 apart, margin 1
    0.97
    """
    difference, first, second = pair_up(predicted, true, pairs=pairs)
    return functional.relu(margin - torch.sign(first - second) * difference).mean()


def loss_share(first: Tensor, second: Tensor, *, eps: float = 0.0) -> Tensor:
    """Returns p_i = (l_i + eps) / (l_i + l_j + 2 eps), and 1/2 if both are zero. Symmetric: p_i + p_j = 1."""
    if eps < 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    total = first + second + 2 * eps
    share = (first + eps) / torch.where(total > 0, total, torch.ones_like(total))
    return torch.where(total > 0, share, torch.full_like(share, 0.5))


def learning_loss_pp(predicted: Tensor, true: Tensor, *, eps: float = 0.0, pairs: Pairs = "halves") -> Tensor:
    """Returns the KL divergence between true and predicted loss shares of paired samples, mean over pairs.

    p_i = l_i / (l_i + l_j), q_i = sigmoid(s_i - s_j); the gradient with respect to s_i - s_j is q_i - p_i.
    The optimum s_i - s_j = log l_i - log l_j makes the score the log-loss up to a constant, so
    loss ~ c exp(score) with a single c to calibrate. Two zero losses have p = 1/2.
    Shukla & Ahmed 2021, section 3.

    Args:
        predicted: [N] scores.
        true: [N] losses >= 0.
        eps: added to every loss (see `ratio_eps`).
        pairs: "halves" or "all".

    Returns:
        A scalar.

    Raises:
        ValueError: as `pair_up` does.

    >>> score = torch.tensor([1.48, 1.63], requires_grad=True)
    >>> learning_loss_pp(score, torch.tensor([0.45, 2.87])).backward()
    >>> round(score.grad[0].item(), 3)                      # q - p of the paper's second pair
    0.327
    """
    difference, first, second = pair_up(predicted, true, pairs=pairs)
    share = loss_share(first, second, eps=eps)
    # xlogy is 0 at a share of 0, at which x * log(x) is NaN.
    negative_entropy = torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)
    # softplus instead of the log of a sigmoid, which underflows for large differences.
    return (functional.softplus(difference) - share * difference + negative_entropy).mean()


def rank_bce(predicted: Tensor, true: Tensor, *, pairs: Pairs = "halves") -> Tensor:
    """Returns the logistic ranking loss: LearningLoss++ with p hardened to 1[l_i > l_j], and 1/2 on ties.

    Kim et al. 2021 (TA-VAAL), eq. 4 with its sign corrected. Separable pairs push |s_i - s_j| without bound.

    Args:
        predicted: [N] scores.
        true: [N] losses >= 0.
        pairs: "halves" or "all".

    Returns:
        A scalar, ln 2 if scores are constant.

    >>> round(rank_bce(torch.zeros(2), torch.tensor([1.0, 2.0])).item(), 4)
    0.6931
    """
    difference, first, second = pair_up(predicted, true, pairs=pairs)
    share = (torch.sign(first - second) + 1) / 2
    return (functional.softplus(difference) - share * difference).mean()


def log_loss_regression(predicted: Tensor, true: Tensor, *, eps: float = 0.0) -> Tensor:
    """Returns the mean squared error between score and log(loss + eps), the baseline without pairs.

    Args:
        predicted: [N] scores, N >= 1.
        true: [N] losses >= 0.
        eps: added to every loss.

    Returns:
        A scalar.

    Raises:
        ValueError: the batch is empty, or a loss is zero and eps is 0.

    >>> log_loss_regression(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])).item()
    0.5
    """
    losses = check_losses(true).to(predicted.dtype)
    if predicted.shape != losses.shape or losses.numel() == 0:
        raise ValueError(
            f"scores {tuple(predicted.shape)} and losses {tuple(losses.shape)} must be one [N], N > 0"
        )
    if eps <= 0 and bool((losses == 0).any()):
        raise ValueError("a loss of zero has no logarithm; pass eps > 0, such as ratio_eps(losses)")
    return functional.mse_loss(predicted, torch.log(losses + eps))


def partial_auc(predicted: Tensor, failed: Tensor, *, share: float = 0.2) -> Tensor:
    """Returns the mean logistic loss of failures against the `share` of successes with the highest scores.

    A surrogate of one minus the one-way partial AUC for false positive rates up to `share` (Zhu et al. 2022,
    "When AUC meets DRO", with the hard top of the successes instead of a soft one).

    Args:
        predicted: [N] scores.
        failed: [N] 0 or 1.
        share: of the successes that count, in (0, 1]; at least one does.

    Returns:
        A scalar; zero with a gradient of zero if all failed or none.

    >>> round(partial_auc(torch.tensor([2.0, 1.0, -5.0]), torch.tensor([1, 0, 0]), share=0.5).item(), 3)
    0.313
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    wrong = failed.bool()
    if bool(wrong.all()) or not bool(wrong.any()):
        return predicted.sum() * 0.0
    successes = predicted[~wrong]
    count = max(1, round(share * len(successes)))
    hardest = successes.topk(count).values
    return functional.softplus(hardest[None, :] - predicted[wrong][:, None]).mean()


def lambda_loss(predicted: Tensor, relevance: Tensor, *, share: float = 0.05) -> Tensor:
    """Returns the pairwise logistic loss, weighted by what swapping a pair changes in NDCG of the top.

    Wang et al. 2018 (LambdaLoss, eq. 16, the LambdaRank weights), truncated at the top `share` of the batch:
    a pair counts only if one of the two is ranked there.

    Args:
        predicted: [N] scores.
        relevance: [N] >= 0, such as 1 for a failure.
        share: of the batch that is the top, in (0, 1]; at least one sample.

    Returns:
        A scalar; zero with a gradient of zero if all are equally relevant.

    >>> right = lambda_loss(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]), share=0.5)
    >>> wrong = lambda_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]), share=0.5)
    >>> bool(right < wrong)
    True
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    count = len(predicted)
    top = max(1, round(share * count))
    discounts = 1 / torch.log2(torch.arange(count, dtype=predicted.dtype) + 2)
    discounts[top:] = 0
    places = torch.empty(count, dtype=torch.long)
    places[predicted.detach().argsort(descending=True)] = torch.arange(count)
    discount = discounts.to(predicted.device)[places]
    gain = relevance.detach().to(predicted.dtype)
    ideal = (gain.sort(descending=True).values * discounts.to(predicted.device)).sum()
    better = gain[:, None] > gain[None, :]
    if not bool(better.any()):
        return predicted.sum() * 0.0
    weights = (gain[:, None] - gain[None, :]) * (discount[:, None] - discount[None, :]).abs()
    losses = functional.softplus(predicted[None, :] - predicted[:, None])
    return (weights * losses * better).sum() / ideal


TOP_OBJECTIVES: dict[str, Callable[..., Tensor]] = {"partial-auc": partial_auc, "lambda": lambda_loss}
"""Objectives of the top of the list, which take failures instead of losses."""

OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "learning-loss": learning_loss,
    "learning-loss-pp": learning_loss_pp,
    "rank-bce": rank_bce,
    "log-loss-regression": log_loss_regression,
}
"""Objectives by name, as in a head's recipe."""
