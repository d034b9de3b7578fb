"""Gives the further answers of a foreign network scores of their own, beside those of its main answer.

adapted graph, {output: task} --score each on its labels--> FurtherAnswers --join--> one graph, one reference
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx
from torch import nn

from misfire_export.assemble import Further, GraphScore
from misfire_export.errors import ExportError
from misfire_export.options import Options
from misfire_export.sources.frames import Frames, quantiles_only
from misfire_export.sources.onnx.outputs import AllOutputs, Asked, ScoredAnswer, join_scores, score_answer
from misfire_export.sources.score_names import further_name, further_output
from misfire_runtime.preprocess import InputContract
from misfire_train.tasks import Task, known_tasks


@dataclass(frozen=True)
class FurtherAnswers:
    """Holds the scored further answers of a network by their names in the bundle; there may be none."""

    scored: Mapping[str, ScoredAnswer]

    def join(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """Returns the main answer's scored graph with the answers and their scores."""
        for name, answer in self.scored.items():
            graph = join_scores(graph, answer, name=name)
        return graph

    def reference(self, main: nn.Module) -> nn.Module:
        """Returns a module that gives what the joined graph must give."""
        if not self.scored:
            return main
        parts = {name: (answer.reference, answer.task.output_name) for name, answer in self.scored.items()}
        return AllOutputs(main, parts)

    @property
    def scores(self) -> tuple[GraphScore, ...]:
        """Returns the scores of the answers, in order."""
        return tuple(
            GraphScore(f"{name}_{score.name}", f"{score.definition}, of {name}", score.free, name)
            for name, answer in self.scored.items()
            for score in answer.scores
        )

    @property
    def answers(self) -> tuple[Further, ...]:
        """Returns what the manifest records of the answers."""
        return tuple(
            Further(
                name,
                answer.task,
                further_output(name),
                answer.order.names,
                answer.frames.calibration if answer.frames.labelled else None,
            )
            for name, answer in self.scored.items()
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns what was found of each answer, and which ones have no labels."""
        told = [f"{name}: {note}" for name, answer in self.scored.items() for note in answer.notes]
        bare = [name for name, answer in self.scored.items() if not answer.frames.labelled]
        return (*told, *([quantiles_only(bare)] if bare else []))


def score_further(
    graph: onnx.ModelProto,
    also: Mapping[str, Task],
    frames: Mapping[str, Frames],
    contract: InputContract,
    options: Options,
) -> FurtherAnswers:
    """Returns the further answers of an adapted graph with their scores.

    Args:
        graph: Adapted to the contract.
        also: Task of each output.
        frames: With its labels or without, by output.
        contract: Of the graph's input.
        options: Of the export. Names and options of scores are those of the main answer, and not used.

    Raises:
        ExportError: There is no such output, or it is none that the task can have.
    """
    plain = replace(options, scores=None, score_options={})
    return FurtherAnswers(
        {
            further_name(output): score_answer(graph, frames[output], Asked(task, contract, output), plain)
            for output, task in also.items()
        }
    )


def foreign_task(name: str) -> Task:
    """Returns a task that foreign graphs can do. Raises ExportError on any other."""
    able = {task.name: task for task in known_tasks() if task.foreign}
    if name not in able:
        raise ExportError(f"a foreign graph can be a {' or a '.join(able)} network, not {name!r}")
    return able[name]
