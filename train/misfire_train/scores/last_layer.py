"""Computes the last layer's view of a frame: phi, phi~ = [phi; 1], its logits, and the energy ||phi~||^2.

The gradient of any loss with respect to a last linear or 1x1-conv layer is R Phi~^T, where R holds the
loss's derivative by the outputs. So gradient scores are made of what this file computes, without autograd.
Squared norms are divided by the number of channels C: 256 channels of value 16 already overflow fp16.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from misfire_train.errors import ScoreError
from misfire_train.signals import Signals
from misfire_train.tasks.answers.softmax import is_predicted


def pooled(signals: Signals) -> Tensor:
    """Returns the last layer's input, averaged over pixels if it has any, not normalised: [N,C]."""
    inputs = signals.last_input
    return inputs if inputs.ndim == 2 else inputs.flatten(2).mean(2)


def scaled_features(signals: Signals) -> Tensor:
    """Returns phi~ / sqrt(C): [N,C+1], or [N,C+1,P] over P pixels."""
    inputs = signals.last_input if signals.last_input.ndim == 2 else signals.last_input.flatten(2)
    scale = 1 / math.sqrt(inputs.shape[1])
    ones = torch.full_like(inputs[:, :1], scale)
    return torch.cat([inputs * scale, ones], 1)


def feature_energy(signals: Signals) -> Tensor:
    """Returns (||phi||^2 + 1) / C: [N], or [N,P] over pixels."""
    return scaled_features(signals).square().sum(1)


def last_outputs(signals: Signals) -> Tensor:
    """Returns the last layer's answer at its own resolution: `outputs`, or recomputed if those were resized.

    Raises ScoreError if the last layer is no linear or 1x1 layer of `last_input`.
    """
    outputs, inputs = signals.outputs, signals.last_input
    if outputs.shape[2:] == inputs.shape[2:]:
        return outputs
    if inputs.ndim == 4 and outputs.ndim == 4 and signals.weight is not None:
        if signals.weight.shape[1] != inputs.shape[1]:
            raise ScoreError("gradient scores need a 1x1 last convolution; this one has a larger kernel")
        return functional.conv2d(inputs, signals.weight[:, :, None, None], signals.bias)
    raise ScoreError(f"last-layer input {tuple(inputs.shape)} does not fit outputs {tuple(outputs.shape)}")


def label_maps(targets: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns label maps [N,H,W] at another size, each cell the label at its centre: int64 [N,h,w]."""
    rows = ((torch.arange(size[0]) + 0.5) * targets.shape[1] / size[0]).long()
    columns = ((torch.arange(size[1]) + 0.5) * targets.shape[2] / size[1]).long()
    return targets.long()[:, rows][:, :, columns]


def pseudo_residual(logits: Tensor) -> Tensor:
    """Returns p - e_yhat along dim 1.

    Its largest entry is the sum of the others, so nothing cancels near p = 1.
    """
    top = is_predicted(logits)
    others = torch.where(top, 0.0, torch.softmax(logits, 1))
    return torch.where(top, -others.sum(1, keepdim=True), others)


def exp_minus_one(x: Tensor) -> Tensor:
    """Returns exp(x) - 1 from tanh, which is exact near 0 although ONNX has only Exp and Sub. |x| < 80."""
    # exp(x) - 1 = 2 t / (1 - t) with t = tanh(x / 2): no difference of near-equal numbers.
    half = torch.tanh(x / 2)
    exact = 2 * half / (1 - half).clamp_min(1e-30)
    return torch.where(x < 1, exact, torch.exp(x) - 1)


def log_one_plus(x: Tensor) -> Tensor:
    """Returns log(1 + x) after Kahan: exact near 0, from only Log, Add and Div. x > -1."""
    shifted = 1 + x
    step = shifted - 1
    # x is below the rounding of 1 + x, so log(1 + x) is x.
    flat = step == 0
    return torch.where(flat, x, torch.log(shifted) * (x / torch.where(flat, 1.0, step)))
