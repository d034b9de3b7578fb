"""One forward pass, and everything a failure score may look at.

`Probe` runs a task model once and captures, by layer name, the features and the input of the last layer.
Scores are modules from `Signals` to [N]; `ScoredModel` bundles a probe with its scores, and is what
export traces, so that pool scoring in torch and the vehicle's graph are the same object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Signals:
    """What one forward pass exposes.

    outputs: the task's answer: logits [N,K], values [N,J], heatmaps [N,J,H,W] or pixel logits [N,K,H,W].
    last_input: what the last linear or 1x1-conv layer sees: [N,C] or [N,C,H,W].
    features: named intermediate maps [N,C_i,H_i,W_i].
    weight, bias: parameters of the last layer, [K,C] (1x1 kernels flattened) and [K].
    """

    outputs: Tensor
    last_input: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def embedding(self) -> Tensor:
        """[N,C], L2-normalised: the last layer's input, averaged over pixels where there are any."""
        flat = self.last_input if self.last_input.ndim == 2 else self.last_input.flatten(2).mean(2)
        return flat / flat.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)


class Score(nn.Module):
    """A failure score: `forward(signals)` gives [N], higher means a failure is likelier.

    name: as in the graph's output `score.<name>`.  free: needs nothing but the task's outputs.
    definition: one line for the manifest.  exportable: traces into the graph (no autograd, no sampling).
    """

    name: str = ""
    definition: str = ""
    free: bool = False
    exportable: bool = True

    def forward(self, signals: Signals) -> Tensor:
        """[N] from one forward pass."""
        raise NotImplementedError


class Probe(nn.Module):
    """Runs `model` once and returns Signals. The model's own outputs are untouched.

    model: any module whose forward maps image [N,C,H,W] to the task's output tensor.
    last_layer: name of its last nn.Linear or 1x1 nn.Conv2d, as in `model.named_modules()`.
    features: names of the layers whose outputs heads want.
    Raises ValueError where a name does not exist, listing what does.
    """

    def __init__(self, model: nn.Module, *, last_layer: str, features: Iterable[str] = ()) -> None:
        super().__init__()
        self.model = model
        self.last_layer = last_layer
        self.feature_names = tuple(features)
        modules = dict(model.named_modules())
        for name in (last_layer, *self.feature_names):
            if name not in modules:
                known = ", ".join(n for n in modules if n)
                raise ValueError(f"the model has no layer {name!r}; it has {known}")
        self._last = modules[last_layer]
        if not isinstance(self._last, nn.Linear | nn.Conv2d):
            raise ValueError(
                f"last layer {last_layer!r} is {type(self._last).__name__}, not Linear or Conv2d"
            )
        self._taps = {name: modules[name] for name in self.feature_names}

    def forward(self, image: Tensor) -> Signals:
        """image [N,C,H,W] to Signals."""
        captured: dict[str, Tensor] = {}
        last: list[Tensor] = []

        def keep_output(name: str):  # type: ignore[no-untyped-def]
            def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
                captured[name] = output

            return hook

        handles = [module.register_forward_hook(keep_output(name)) for name, module in self._taps.items()]
        handles.append(self._last.register_forward_pre_hook(lambda _m, inputs: last.append(inputs[0])))
        try:
            outputs = self.model(image)
        finally:
            for handle in handles:
                handle.remove()
        weight = self._last.weight.flatten(1)
        return Signals(outputs, last[-1], captured, weight, self._last.bias)


class ScoredModel(nn.Module):
    """A probe and its scores as one module: image -> {output_name, score.<name>..., embedding}."""

    def __init__(self, probe: Probe, scores: Iterable[Score], *, output_name: str = "logits") -> None:
        super().__init__()
        self.probe = probe
        self.scores = nn.ModuleList(scores)
        self.output_name = output_name

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """All outputs from one forward pass; each score is [N] float32."""
        signals = self.probe(image)
        result = {self.output_name: signals.outputs}
        for score in self.scores:
            assert isinstance(score, Score)
            result[f"score.{score.name}"] = score(signals).float()
        result["embedding"] = signals.embedding.float()
        return result


@torch.no_grad()
def score_images(model: ScoredModel, images: Tensor) -> dict[str, Tensor]:
    """Scores a batch in eval mode and restores the mode that was set."""
    training = model.training
    model.eval()
    try:
        result: dict[str, Tensor] = model(images)
        return result
    finally:
        model.train(training)
