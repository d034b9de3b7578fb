"""Appends scores of a multi-task graph's further outputs, one set for each: `score.<output>_<name>`.

output --find, prove on frames--> its logits and last layer --graft by itself--> scored graph
       --join_scores--> the main graph gets what is new in it, under names of its own

The frames have labels of one task only, so a further output's scores have quantiles and no failures: its
tasks' free scores, and the expected gradient length if it has a last layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx
from torch import Tensor, nn

from misfire_export.errors import ExportError
from misfire_export.graph.last_layer import complete, find_last_layer
from misfire_export.graph.rename import own_name, rename
from misfire_export.graph.tidy import tidy
from misfire_export.measure.run import open_session
from misfire_export.sources.answers import choose_output
from misfire_export.sources.onnx_graft import ScoreHead, append_scores, expose
from misfire_export.sources.onnx_proof import as_logits, fit_frames, look, read_numbers, session_of
from misfire_runtime.preprocess import InputContract
from misfire_train import scores as scoring
from misfire_train.data import Examples
from misfire_train.signals import Score
from misfire_train.tasks import Task

_GRADIENT = ("egl", "label_egl")
_OURS = "misfire/"


@dataclass(frozen=True)
class Further:
    """Holds a further output with its scores, in a graph of its own.

    graph: the adapted file with the scores appended.  exposed: the same before, with the output as `answer`
    and phi among its outputs.
    """

    name: str
    answer: str
    graph: onnx.ModelProto
    exposed: onnx.ModelProto
    head: ScoreHead
    scores: tuple[Score, ...]
    notes: tuple[str, ...]


def score_further(
    graph: onnx.ModelProto,
    output: str,
    *,
    task: Task,
    frames: Examples,
    contract: InputContract,
    wanted: str = "auto",
) -> Further:
    """Returns a further output of an adapted graph with its scores.

    Args:
        graph: adapted.
        output: the file's own name of it.
        task: what it answers.
        frames: real frames; their labels are not looked at.
        contract: the graph's input.
        wanted: how its numbers are to be read.

    Raises:
        GraphError: there is no such output, or it is none that the task can have.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    claim = find_last_layer(model, choose_output(model, output))
    complete(model, claim)
    seen = look(model, claim, frames, contract=contract, task=task)
    shown = fit_frames(frames, outputs=seen.outputs, task=task)
    numbers = read_numbers(session_of(model, seen), shown, contract=contract, seen=seen)
    found = as_logits(seen.found, numbers, wanted, task=task, single=seen.single)
    known = scoring.scores_of(task)
    names = [*task.default_scores, *(_GRADIENT if found.layer is not None else ())]
    built = scoring.build([name for name in names if name in known], task=task)
    head = ScoreHead(built, found=found).eval()
    exposed = expose(model, replace(seen, found=found), output=task.output_name)
    with_phi = onnx.ModelProto()
    with_phi.CopyFrom(exposed)
    del with_phi.graph.output[1:]
    if found.layer is not None:
        with_phi.graph.output.append(onnx.helper.make_tensor_value_info("phi", onnx.TensorProto.FLOAT, None))
    session = open_session(with_phi)
    values = session.run(None, {contract.name: frames.batch([0], contract).numpy()})
    phi = values[1] if found.layer is not None else None
    scored = append_scores(exposed, head, answer=values[0], phi=phi, output=task.output_name)
    name = re.sub(r"\W", "_", own_name(output))
    notes = tuple(f"{output}: {note}" for note in found.notes)
    return Further(name, task.output_name, scored, with_phi, head, tuple(built), notes)


def join_scores(main: onnx.ModelProto, further: Further) -> onnx.ModelProto:
    """Returns the main graph with the scores of a further output."""
    other, name = onnx.ModelProto(), further.name
    other.CopyFrom(further.graph)
    made = {tensor for node in other.graph.node for tensor in node.output}
    made |= {item.name for item in other.graph.initializer}
    ours = {t for t in made if t.startswith(_OURS)} | ({further.answer, "phi", "embedding"} & made)
    rename(other.graph, {tensor: f"{_OURS}{name}/{tensor}" for tensor in ours})
    scores = {f"score.{score.name}": f"score.{name}_{score.name}" for score in further.scores}
    rename(other.graph, scores)
    joined = onnx.ModelProto()
    joined.CopyFrom(main)
    there = {tensor for node in joined.graph.node for tensor in node.output}
    there |= {item.name for item in joined.graph.initializer}
    joined.graph.initializer.extend(i for i in other.graph.initializer if i.name not in there)
    for node in other.graph.node:
        # What both graphs share is the file itself.
        if not there.issuperset(filter(None, node.output)):
            joined.graph.node.add().CopyFrom(node)
            joined.graph.node[-1].name = f"{_OURS}{name}/{node.name or node.output[0]}"
    joined.graph.output.extend(v for v in other.graph.output if v.name in scores.values())
    domains = {item.domain for item in joined.opset_import}
    joined.opset_import.extend(item for item in other.opset_import if item.domain not in domains)
    return tidy(joined)


def parse_further(text: str) -> dict[str, str]:
    """Returns {output: task} of OUTPUT=TASK, comma-separated; the task is classification if none is named.

    Raises ExportError if an output is named twice.

    >>> parse_further("scene, lanes=segmentation")
    {'scene': 'classification', 'lanes': 'segmentation'}
    """
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        output, _, task = (word.strip() for word in part.partition("="))
        if output in found or not output:
            raise ExportError(f"--also is {text!r}; expected OUTPUT=TASK, each output once")
        found[output] = task or "classification"
    return found


class AllOutputs(nn.Module):
    """Gives the outputs of the main answer's reference, and the scores of further outputs' references."""

    def __init__(self, main: nn.Module, others: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.main, self.others = main, nn.ModuleDict(dict(others))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns {output: tensor} of a batch."""
        result = dict(self.main(image))
        for name, other in self.others.items():
            scores = {key: value for key, value in other(image).items() if key.startswith("score.")}
            result |= {f"score.{name}_{key.removeprefix('score.')}": v for key, v in scores.items()}
        return result
