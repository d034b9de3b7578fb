"""Captures in one forward pass everything that a failure score may read.

`Probe` runs a task model once and captures, by layer name, the features and the input of the last layer.
Scores are modules from `Signals` to [N]. `ScoredModel` combines a probe with its scores and is what export
traces, so pool scoring in torch and the vehicle's graph are the same object.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from misfire_runtime.errors import ConfigError
from misfire_train.readings import Reading

_WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put in front of a layer's name."""
# A message stays readable; networks have hundreds of layers.
_LAYERS_SHOWN = 12
T = TypeVar("T")


@dataclass(frozen=True)
class Signals:
    """Holds what one forward pass exposes.

    Attributes:
        outputs: the task's answer: logits [N,K], values [N,J], heatmaps [N,J,H,W], pixel logits [N,K,H,W] or
            candidates of a detector [N,P,K+8].
        last_input: the input of the last linear or 1x1-conv layer, [N,C] or [N,C,H,W].
        features: named intermediate maps [N,C_i,H_i,W_i].
        weight, bias: parameters of the last layer, [K,C] (1x1 kernels flattened) and [K].
        pooled: the mean of `last_input` over its places, [N,C], if places were left out (`Task.lighten`).
    """

    outputs: Tensor
    last_input: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None
    bias: Tensor | None = None
    pooled: Tensor | None = None
    _derived: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns what `make` gives, computed once for all scores of this pass.

        A graph then holds it once, too.
        """
        if key not in self._derived:
            self._derived[key] = make()
        return cast(T, self._derived[key])

    @property
    def embedding(self) -> Tensor:
        """Returns the last layer's input, averaged over pixels if it has any, L2-normalised: [N,C]."""
        flat = self.flat
        # The floor is for frames without any active feature.
        return flat / flat.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)

    @property
    def flat(self) -> Tensor:
        """Returns the last layer's input, averaged over pixels if it has any, [N,C]."""
        if self.pooled is not None:
            return self.pooled
        return self.last_input if self.last_input.ndim == 2 else self.last_input.flatten(2).mean(2)

    def float(self) -> Signals:
        """Returns the same in fp32, in which scores compute; itself if it is fp32 already."""
        if self.outputs.dtype == self.last_input.dtype == torch.float32:
            return self
        return self._with(lambda value: value.float())

    def cpu(self) -> Signals:
        """Returns the same on the CPU, where scores and heads are fitted."""
        return self._with(lambda value: value.cpu())

    def take(self, rows: Tensor) -> Signals:
        """Returns the samples at these positions."""
        bare = replace(self, weight=None, bias=None)
        return replace(bare._with(lambda value: value[rows]), weight=self.weight, bias=self.bias)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Signals:
        weight, bias, pooled = (
            None if value is None else change(value) for value in (self.weight, self.bias, self.pooled)
        )
        maps = {name: change(value) for name, value in self.features.items()}
        return Signals(change(self.outputs), change(self.last_input), maps, weight, bias, pooled)


class Score(nn.Module):
    """Is a failure score: `forward(signals)` returns [N]; higher means a failure is likelier.

    Attributes:
        name: as in the graph's output `score.<name>`.
        free: needs only the task's outputs.
        definition: one line for the manifest.
        exportable: traces into the graph (no autograd, no sampling).
    """

    name: str = ""
    definition: str = ""
    free: bool = False
    exportable: bool = True

    @classmethod
    def make(cls, recipe: Any) -> Score:
        """Builds the score from a `scores.registry.Recipe`; by default from nothing but its options."""
        return cls(**recipe.options)

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N] from one forward pass."""
        raise NotImplementedError

    def details(self, signals: Signals) -> Mapping[str, Tensor]:
        """Returns further outputs of a graph, {name: [N,...]}, such as a probability of each box."""
        return {}


@dataclass(frozen=True)
class Captured:
    """Holds what layers gave in one pass: outputs by name, and inputs and outputs of the last one."""

    features: dict[str, Tensor] = field(default_factory=dict)
    last: list[Tensor] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)


class Probe(nn.Module):
    """Runs `model` once and returns Signals. The model's own outputs are unchanged.

    Args:
        model: any module whose forward maps image [N,C,H,W] to the task's output tensor.
        last_layer: name of its last nn.Linear or 1x1 nn.Conv2d, as in `model.named_modules()`; prefixes of
            torch.compile and DataParallel may be left out.
        features: names of the layers whose outputs heads read.
        output: of a model that returns a dict or a tuple, the key or position of the answer.
        reading: how the answer becomes logits, if it is not logits already.

    Raises:
        ValueError: a name does not exist; it gives the nearest ones.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        last_layer: str,
        features: Iterable[str] = (),
        output: str = "",
        reading: Reading | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.reading = reading or Reading()
        modules = dict(model.named_modules())
        self.last_layer = _layer_named(last_layer, modules)
        wanted = (features,) if isinstance(features, str) else features
        self.feature_names = tuple(_layer_named(name, modules) for name in wanted)
        self._last = modules[self.last_layer]
        if not isinstance(self._last, nn.Linear | nn.Conv2d):
            raise ValueError(
                f"last layer {last_layer!r} is {type(self._last).__name__}, not Linear or Conv2d"
            )
        self._taps = {name: modules[name] for name in self.feature_names}

    def forward(self, image: Tensor) -> Signals:
        """Returns the Signals of images [N,C,H,W]."""
        with self.capturing() as captured:
            given = self.model(image)
        return self.read(given, captured)

    @contextmanager
    def capturing(self) -> Iterator[Captured]:
        """Captures what the layers give while the model runs inside the block."""
        captured = Captured()

        def keep_output(name: str):  # type: ignore[no-untyped-def]
            def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
                captured.features[name] = output

            return hook

        def keep_last(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            captured.last.append(inputs[0])

        def keep_made(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            captured.made.append(output)

        handles = [module.register_forward_hook(keep_output(name)) for name, module in self._taps.items()]
        handles.append(self._last.register_forward_pre_hook(keep_last))
        handles.append(self._last.register_forward_hook(keep_made))
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()

    def read(self, given: Any, captured: Captured) -> Signals:
        """Returns the Signals of what the model gave. Raises ConfigError if its last layer was not called."""
        outputs = answer_of(given, self.output)
        if not captured.last:
            raise ConfigError(
                f"the last layer {self.last_layer!r} is not called when the model answers (an auxiliary "
                "head?): name the layer that gives the answer with last_layer"
            )
        weight, bias = (self.reading.rows(p) for p in (self._last.weight.flatten(1), self._last.bias))
        # A layer that is called more than once gives the answer in its last call.
        logits = self.reading.logits(outputs, captured.made[-1])
        return Signals(logits, captured.last[-1], captured.features, weight, bias)


def answer_of(given: Any, output: str = "") -> Tensor:
    """Returns the answer among what a model returned: the tensor, or the one of this key or position.

    Raises ConfigError if the model returned several and none is named, or the name does not exist.

    >>> answer_of({"out": torch.ones(1, 2), "aux": torch.zeros(1, 2)}, "out")
    tensor([[1., 1.]])
    """
    if isinstance(given, Tensor):
        if output:
            raise ConfigError(f"the model gives one tensor, so there is no output {output!r}: leave it out")
        return given
    if isinstance(given, Mapping):
        named = {str(key): value for key, value in given.items()}
    elif isinstance(given, tuple | list):
        named = {str(position): value for position, value in enumerate(given)}
    else:
        raise ConfigError(f"the model gives {type(given).__name__}; expected a tensor")
    kind = type(given).__name__
    if output not in named:
        problem = f"has no {output!r}" if output else "is no tensor"
        raise ConfigError(
            f"the model gives a {kind} of {', '.join(named)}, which {problem}: name the answer with output="
        )
    found = named[output]
    if not isinstance(found, Tensor):
        raise ConfigError(f"output {output!r} of the model is {type(found).__name__}; expected a tensor")
    return found


def _layer_named(name: str, modules: Mapping[str, nn.Module]) -> str:
    """Returns the full name of a layer. Raises ValueError with the nearest names if there is none."""
    if name in modules:
        return name
    plain = {_without_wrappers(full): full for full in modules}
    if name in plain:
        return plain[name]
    known = [full for full in modules if full]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(close)}?" if close else ";"
    more = (
        f" and {len(known) - _LAYERS_SHOWN} more (model.named_modules())"
        if len(known) > _LAYERS_SHOWN
        else ""
    )
    raise ValueError(f"the model has no layer {name!r}{hint} It has {', '.join(known[:_LAYERS_SHOWN])}{more}")


def _without_wrappers(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(f".{wrapper}", ".").removeprefix(wrapper)
    return name


class ScoredModel(nn.Module):
    """Combines a probe and its scores in one module: image -> {output_name, score.<name>..., embedding}.

    Args:
        probe: runs the network.
        scores: one output each, and their details; of two with a detail of one name, the first gives it.
        output_name: of the task's answer.
        answer: makes the answer of the signals. Default: the network's outputs as they are.
    """

    def __init__(
        self,
        probe: Probe,
        scores: Iterable[Score],
        *,
        output_name: str = "logits",
        answer: Callable[[Signals], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.probe = probe
        self.scores = nn.ModuleList(scores)
        self.output_name = output_name
        self.answer = answer

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns all outputs from one forward pass; each score is [N] float32."""
        return self.outputs_of(self.probe(image))

    def outputs_of(self, signals: Signals) -> dict[str, Tensor]:
        """Returns all outputs of the signals of a forward pass."""
        whole = signals.float()
        made = whole.outputs if self.answer is None else self.answer(whole)
        # What the network gives is given on in the network's own precision.
        result = {self.output_name: signals.outputs if made is whole.outputs else made}
        for score in self.scores:
            assert isinstance(score, Score)
            result[f"score.{score.name}"] = score(whole).float()
            for name, value in score.details(whole).items():
                result.setdefault(name, value.float())
        result["embedding"] = whole.embedding.float()
        return result


class ScoredAnswers(nn.Module):
    """Scores several answers of one network, which runs once.

    Args:
        main: the task's own answer, whose outputs keep their names.
        further: further answers of the same network by name; their scores become `score.<name>_<score>`.
        outputs: name of the logits of each further answer.
    """

    def __init__(
        self, main: ScoredModel, further: Mapping[str, ScoredModel], *, outputs: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.main = main
        self.further = nn.ModuleDict(dict(further))
        self.names = dict(outputs)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns all outputs from one forward pass."""
        further = {name: cast(ScoredModel, model) for name, model in self.further.items()}
        models = {"": self.main, **further}
        with ExitStack() as stack:
            seen = {name: stack.enter_context(model.probe.capturing()) for name, model in models.items()}
            given = self.main.probe.model(image)
        result: dict[str, Tensor] = {}
        for name, model in models.items():
            found = model.outputs_of(model.probe.read(given, seen[name]))
            if not name:
                result |= found
                continue
            result[self.names[name]] = found[model.output_name].float()
            for key, value in found.items():
                if key.startswith("score."):
                    result[f"score.{name}_{key.removeprefix('score.')}"] = value
        return result
