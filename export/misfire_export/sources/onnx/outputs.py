"""Appends the failure scores of one answer of a foreign graph; a multi-task graph has one set for each.

adapted graph --find, prove on frames--> logits, last layer, order of the classes --measure phi--> fit scores
              --graft--> scored graph        --join_scores--> the main graph with `score.<answer>_<name>`

Each answer is scored in a graph of its own, on its own labels. Without labels of it, its scores have
quantiles and no failures.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from misfire_export.errors import ExportError
from misfire_export.graph.check import require_small_scores
from misfire_export.graph.last_layer import Found, complete, find_last_layer
from misfire_export.graph.rename import rename
from misfire_export.graph.tidy import tidy
from misfire_export.graph.tunable import open_head
from misfire_export.measure.run import answers, open_session
from misfire_export.options import Options
from misfire_export.sources.answers import choose_output
from misfire_export.sources.frames import Frames
from misfire_export.sources.labels import (
    Answered,
    ClassOrder,
    chance_note,
    check_label_order,
    check_order,
    normalisation_note,
    order_classes,
    require_targets,
)
from misfire_export.sources.onnx.graft import FileProbe, ScoreHead, append_scores, expose, hide
from misfire_export.sources.onnx.proof import (
    Seen,
    as_logits,
    fit_frames,
    look,
    read_answers,
    read_numbers,
    session_of,
)
from misfire_export.sources.score_names import ALL, HEAD, further_output
from misfire_runtime.preprocess import InputContract
from misfire_train import scores as scoring
from misfire_train.data import Examples
from misfire_train.fitting.refit import Refit
from misfire_train.heads import recipe_named
from misfire_train.heads.training import fit_head
from misfire_train.scores.fitting import spread
from misfire_train.signals import Score, Signals
from misfire_train.tasks import Task
from misfire_train.tasks.answers.shapes import Numbers

# Fewer than of a run: the file runs on one thread of the CPU, perhaps frame by frame.
MAX_FIT = 2_000
OUTPUT_ONLY = ("entropy", "msp", "margin", "energy", "max_logit")
OF_LABELS = ("any_label_wrong", "wrong_labels", "label_entropy", "least_sure_label")
WITH_LAYER = ("egl", "label_egl")
WITH_HOLDOUT = ("wrong_prediction_approx",)
RECIPE = "learning-loss-pp"
MAX_FIT_HEAD = 300
COPIES = 4
"""Corrupted versions of each held-out frame that a learned head sees; the file runs on all of them."""
_OURS = "misfire/"


@dataclass(frozen=True)
class Asked:
    """Holds what is known of one answer.

    Attributes:
        contract: of the graph's input.
        output: the file's own name, "" to find it.
        kind: auto, logits, probabilities or sigmoid.
        classes: names in the model's order, from the user.
        metadata: the same from the file.
    """

    task: Task
    contract: InputContract
    output: str = ""
    kind: str = "auto"
    classes: Sequence[str] = ()
    metadata: Sequence[str] = ()


@dataclass(frozen=True)
class ScoredAnswer:
    """Holds an answer with its scores, in a graph of its own.

    Attributes:
        task: knows what a failure is.
        graph: the adapted file with the scores appended.
        reference: the file itself by ONNX Runtime, and the scores in torch.
        frames: with targets that count the model's outputs.
        notes: what was found and what could not be found, one sentence each.
        refit: how to fit its learned head again, None without one.
    """

    task: Task
    found: Found
    graph: onnx.ModelProto
    reference: nn.Module
    scores: tuple[Score, ...]
    order: ClassOrder
    frames: Frames
    notes: tuple[str, ...]
    refit: Refit | None = None


class ForeignReference(nn.Module):
    """Runs the file as given by ONNX Runtime, and computes scores from its answers in torch."""

    def __init__(self, session: ort.InferenceSession, head: ScoreHead, *, output: str, image: str) -> None:
        super().__init__()
        self.session, self.head, self.output, self.image = session, head, output, image

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns {output: tensor} of a batch."""
        names = [value.name for value in self.session.get_outputs()]
        # Frame by frame, because the graph's batch may be fixed at 1.
        rows: list[list[Any]] = [self.session.run(names, {self.image: part[None].numpy()}) for part in image]
        joined = {
            name: torch.from_numpy(np.concatenate(v))
            for name, v in zip(names, zip(*rows, strict=True), strict=True)
        }
        features = joined.pop("phi", None)
        return {**joined, **self.head(joined[self.output], features)}


def score_answer(graph: onnx.ModelProto, frames: Frames, asked: Asked, options: Options) -> ScoredAnswer:
    """Returns one answer of an adapted graph with its scores.

    Args:
        graph: adapted to the contract.
        frames: With labels of this answer, or without.
        asked: What is known of the answer.
        options: Names and options of scores.

    Raises:
        ExportError: There is no such output, it is none that the task can have, or the labels do not fit.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    task, contract = asked.task, asked.contract
    claim = find_last_layer(model, choose_output(model, asked.output))
    complete(model, claim)
    classes = len(asked.classes or frames.classes)
    seen = look(model, claim, frames.calibration, contract=contract, task=task, classes=classes)
    order = order_classes(frames.classes, seen.outputs, stated=asked.classes, metadata=asked.metadata)
    # From here on targets count the model's outputs.
    frames = frames.relabelled(order.of)
    if frames.labelled:
        require_targets(frames.calibration, seen.outputs)
    found, told = _settle(model, seen, frames, asked, order=order)
    exposed = expose(model, replace(seen, found=found), output=task.output_name)
    session = open_session(_with_phi(exposed, found))
    sets = {
        key: _gather(session, part if frames.labelled else None, found, contract=contract, task=task)
        for key, part in (("fit", frames.fit), ("holdout", frames.holdout))
    }
    held = sets["holdout"]
    if held is not None and not task.knows_failures:
        # The same rule as for a run: the worst share of the held-out losses.
        task = task.with_worst(task.sample_loss(held.signals.outputs, held.targets))
    labelled = frames.labelled and frames.holdout is not None
    names = _names(options.scores, found, sets, task=task, labelled=labelled)
    free = [name for name in names if name != HEAD]
    built = scoring.build(
        free, task=task, fit=sets["fit"], holdout=sets["holdout"], **dict(options.score_options)
    )
    refit = None
    if HEAD in names:
        bare = ScoreHead((), found=found)
        probe = FileProbe(
            _answers_only(exposed, found, output=task.output_name),
            lambda given: bare.signals(given[0], given[1] if found.layer is not None else None),
        )
        refit = refit_of_file(probe, task, frames, contract, seed=options.seed)
        built.insert(0, open_head(fit_again(refit), refittable=options.refittable))
    require_small_scores(built)
    head = ScoreHead(built, found=found).eval()
    scored = _graft(exposed, session, head, found, frames.calibration, contract=contract, task=task)
    if found.layer is not None:
        # It was an output for fitting and tracing scores only.
        hide(scored, "phi")
    reference = ForeignReference(session, head, output=task.output_name, image=contract.name)
    notes = (*found.notes, *_told(found), *told)
    return ScoredAnswer(task, found, scored, reference, tuple(built), order, frames, notes, refit)


def refit_of_file(
    probe: FileProbe, task: Task, frames: Frames, contract: InputContract, *, seed: int
) -> Refit:
    """Returns how a learned head is fitted on a foreign file, whose network stays as it is.

    Raises ExportError without labelled held-out frames.
    """
    if frames.holdout is None or not frames.labelled:
        raise ExportError(f"{HEAD} is fitted on labelled held-out frames; give some (--holdout, --dataset)")
    holdout = spread(frames.holdout, MAX_FIT_HEAD)
    return Refit(
        HEAD,
        probe,
        task,
        replace(recipe_named(RECIPE), copies=COPIES),
        contract,
        # The frames that the model was trained on are what its head remembers.
        train=holdout if frames.fit is None else spread(frames.fit, MAX_FIT),
        holdout=holdout,
        seed=seed,
    )


def fit_again(refit: Refit) -> Score:
    """Returns the learned head, fitted on what the original file answers."""
    assert refit.train is not None and refit.holdout is not None
    fitted = fit_head(
        refit.probe,
        task=refit.task,
        recipe=refit.recipe,
        train=refit.train,
        holdout=refit.holdout,
        contract=refit.contract,
        seed=refit.seed,
    )
    head: Score = fitted.head.eval().requires_grad_(False)
    return head


def _answers_only(exposed: onnx.ModelProto, found: Found, *, output: str) -> ort.InferenceSession:
    """Returns a session that gives the logits, and phi if there is a last layer."""
    copy = onnx.ModelProto()
    copy.CopyFrom(_with_phi(exposed, found))
    wanted = [output, *(["phi"] if found.layer is not None else [])]
    by_name = {value.name: value for value in copy.graph.output}
    kept = [by_name[name] for name in wanted]
    del copy.graph.output[:]
    copy.graph.output.extend(kept)
    return open_session(copy)


def _settle(
    graph: onnx.ModelProto, seen: Seen, frames: Frames, asked: Asked, *, order: ClassOrder
) -> tuple[Found, tuple[str, ...]]:
    """Returns (what the answer is, notes on classes and normalisation), from its numbers on some frames."""
    task, contract = asked.task, asked.contract
    shown = fit_frames(frames.calibration, outputs=seen.outputs, task=task)
    session = session_of(graph, seen)
    if not frames.labelled:
        found = as_logits(
            seen.found,
            read_numbers(session, shown, contract=contract, seen=seen),
            asked.kind,
            task=task,
            single=seen.single,
        )
        return found, ((order.note,) if order.note else ())

    def read(some: Examples, under: InputContract) -> tuple[Numbers, Answered]:
        return read_answers(session, some, contract=under, task=task, seen=seen)

    numbers, answered = read(shown, contract)
    found = as_logits(seen.found, numbers, asked.kind, task=task, single=seen.single)
    data = frames.contract or contract
    notes = [
        *([order.note] if order.note else []),
        *(check_label_order if task.independent else check_order)(answered, order),
        *normalisation_note(answered, shown, contract, data, lambda *other: read(*other)[1]),
        *chance_note(answered),
    ]
    return found, tuple(notes)


def _with_phi(model: onnx.ModelProto, found: Found) -> onnx.ModelProto:
    """Returns the exposed graph with phi among its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if found.layer is not None:
        copy.graph.output.append(onnx.helper.make_tensor_value_info("phi", onnx.TensorProto.FLOAT, None))
    return copy


def _gather(
    session: ort.InferenceSession, part: Examples | None, found: Found, *, contract: InputContract, task: Task
) -> scoring.FitSet | None:
    """Returns signals of labelled frames through the graph; None without frames or without a last layer."""
    if part is None or not len(part) or found.layer is None:
        return None
    chosen = scoring.spread(part, MAX_FIT)
    outputs, inputs = [], []
    for _, values in answers(session, chosen, contract=contract, names=[task.output_name, "phi"]):
        outputs.append(torch.from_numpy(values[task.output_name]))
        inputs.append(torch.from_numpy(values["phi"]))
    weight, bias = torch.from_numpy(found.layer.weight), torch.from_numpy(found.layer.bias)
    signals = Signals(torch.cat(outputs), torch.cat(inputs), {}, weight, bias)
    return scoring.FitSet(signals, task.collate(chosen.targets), int(signals.outputs.shape[1]))


def _names(
    wanted: Sequence[str] | None,
    found: Found,
    sets: Mapping[str, scoring.FitSet | None],
    *,
    task: Task,
    labelled: bool,
) -> list[str]:
    """Returns the scores to append. Raises ExportError if one needs what was not found or given."""
    chosen = list(OF_LABELS if task.independent else OUTPUT_ONLY)
    if found.layer is not None:
        chosen += WITH_LAYER
        if sets["holdout"] is not None:
            chosen += WITH_HOLDOUT
    chosen = [name for name in chosen if name in scoring.scores_of(task)]
    if wanted is None:
        return chosen
    if list(wanted) == [ALL]:
        return [*([HEAD] if labelled else []), *chosen]
    for name in wanted:
        if name == HEAD:
            continue
        info = scoring.scores_of(task).get(name)
        if info is None or not info.exportable:
            can = scoring.names_for(task, exportable=True)
            close = difflib.get_close_matches(name, can, n=1)
            hint = f"did you mean {close[0]}? There" if close else "there"
            raise ExportError(f"score {name!r} cannot be appended; {hint} are {', '.join(can)}")
        if not info.free and found.layer is None:
            raise ExportError(f"score {name} needs the last layer: {' '.join(found.notes)}")
    return list(wanted)


def _graft(
    exposed: onnx.ModelProto,
    session: ort.InferenceSession,
    head: ScoreHead,
    found: Found,
    examples: Examples,
    *,
    contract: InputContract,
    task: Task,
) -> onnx.ModelProto:
    image = examples.batch([0], contract).numpy()
    answer = session.run([task.output_name], {contract.name: image})[0]
    phi = session.run(["phi"], {contract.name: image})[0] if found.layer is not None else None
    return append_scores(exposed, head, answer=answer, phi=phi, output=task.output_name)


def _told(found: Found) -> list[str]:
    if found.layer is None:
        return []
    what = "linear layer" if found.layer.kind == "linear" else "1x1 convolution"
    classes, channels = found.layer.weight.shape
    return [f"last layer: {what} {found.layer.node}, {channels} features to {classes} classes"]


def join_scores(main: onnx.ModelProto, further: ScoredAnswer, *, name: str) -> onnx.ModelProto:
    """Returns the main graph with a further answer's logits and scores. name: of the answer."""
    other, answer = onnx.ModelProto(), further.task.output_name
    other.CopyFrom(further.graph)
    made = {tensor for node in other.graph.node for tensor in node.output}
    made |= {item.name for item in other.graph.initializer}
    ours = {t for t in made if t.startswith(_OURS)} | ({"phi", "embedding"} & made)
    rename(other.graph, {tensor: f"{_OURS}{name}/{tensor}" for tensor in ours})
    rename(other.graph, {answer: further_output(name)})
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
    wanted = {further_output(name), *scores.values()}
    joined.graph.output.extend(v for v in other.graph.output if v.name in wanted)
    domains = {item.domain for item in joined.opset_import}
    joined.opset_import.extend(item for item in other.opset_import if item.domain not in domains)
    return tidy(joined)


class AllOutputs(nn.Module):
    """Gives the outputs of the main answer's reference, and answers and scores of the further ones."""

    def __init__(self, main: nn.Module, others: Mapping[str, tuple[nn.Module, str]]) -> None:
        super().__init__()
        self.main = main
        self.others = nn.ModuleDict({name: other for name, (other, _) in others.items()})
        self.answers = {name: answer for name, (_, answer) in others.items()}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns {output: tensor} of a batch."""
        result = dict(self.main(image))
        for name, other in self.others.items():
            found = other(image)
            result[further_output(name)] = found[self.answers[name]]
            scores = {key: value for key, value in found.items() if key.startswith("score.")}
            result |= {f"score.{name}_{key.removeprefix('score.')}": v for key, v in scores.items()}
        return result
