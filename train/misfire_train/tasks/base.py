"""Defines the interface of a task: all that training, scoring, judging and export need to know of it.

A task is one class in one file. To add one:

1. Subclass `Task`, set `name` and `output_name`, and write `sample_loss`. Everything else has a default that
   works: units are whole frames, the network trains on the mean loss, a failure is a loss above a threshold.
2. Override what the task knows better: the parts of this class are in the order in which a run needs them
   (labels, training, failures, head, scores, report, export).
3. Add it to `registry.py`, or call `register_task` from your own code. Runs and bundles record the name.
4. Give it a model (`misfire_train.models`, `default_model` here) and a reader (`misfire_train.data.readers`).

`classification.py` is the shortest example, `keypoints.py` has targets that move with the picture, and
`segmentation.py` has targets that are pictures themselves.

Targets may be ragged (a detector's boxes). A reader then keeps one array for each example, `stack` joins them
without making them one size, and `collate` pads those of a batch into the tensor that all losses take.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.boxes import BoxRule
from misfire_runtime.choices import TaskName
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import Image, InputContract
from misfire_train.boxes.mosaic import Mosaics
from misfire_train.boxes.parts import Parts
from misfire_train.drawing import SIDE, Drawing, Legend, data_url, enlarged
from misfire_train.signals import Score, Signals
from misfire_train.train_config import TrainConfig

Base = Callable[[Tensor], Tensor]
"""Outputs to a free score of each unit, [N,U], on the scale of a log-loss."""
OutputKind = Literal["logits", "values", "heatmaps", "segmentation", "labels", "boxes", "other"]
"""Kinds of answers that a vehicle can summarise in an offer (`misfire_runtime.engines.scoring`)."""
# A share, because the losses of different tasks have no common scale; `failure.share` of a run changes it.
FAILED_SHARE = 0.2
"""Share of clean held-out samples that count as failures if no threshold is stated."""
T = TypeVar("T", bound="Task")


@dataclass(frozen=True)
class Variation:
    """Holds how augmentation varied a batch, so that `Task.move` can do the same to the targets.

    mirrored: bool [N], pictures whose left and right were swapped, before any shift.
    down, right: int64 [N], pixels by which each picture was then shifted, negative for up and left.
    limit: the largest shift that could have been drawn.
    width, height: of the pictures, in pixels.
    zoom: [N,3], the factor by which each picture was then enlarged, and x and y of the point that stayed,
        with the left and upper edge at 0. None if there was no zoom.
    """

    mirrored: Tensor
    down: Tensor
    right: Tensor
    limit: int
    width: int
    height: int
    zoom: Tensor | None = None


@dataclass(frozen=True)
class LabelPlace:
    """Holds what the text of a label refers to.

    classes: names of classes, joints or values.  contract: the network's input, in whose pixels places are
    given.  folder: of the label file; paths in it are relative to that.
    size: width and height of the stored image, None if unknown.
    """

    classes: tuple[str, ...]
    contract: InputContract
    folder: Path
    size: tuple[int, int] | None = None


class Task(ABC):
    """Defines what a network is asked to do. Functions take (outputs, targets) of a batch, on one device.

    Attributes:
        name: as data sets, runs and configurations record it.
        output_name: of the answer in an exported graph.
        output_kind: what the vehicle's summary of an answer reads; "other" has no summary.
        form: the built-in task whose outputs have the same form: its scores and models serve this task too.
            "custom" is any other form, which only scores that look at features can serve.
        default_model: the network that `misfire train` builds if none is named.
        ranks: dimensions of outputs and targets, None if any will do.  looks: the same in words.
        by_class: outputs are logits over classes, along dimension 1.
        by_frame: outputs are one vector for each frame, not maps.
        independent: outputs are a logit for each class by itself, whose sigmoid is its probability.
        names_units: units are different things (joints, values), which a head has to distinguish.
        empty_label: an empty label in labels.csv means that the frame holds nothing.
        accuracy_name: what `accuracy` is, in the words of a report.
        mirrors: a mirrored picture still has the right targets, after `move`.
        shifts: training shifts pictures by default.
        zooms: `move` can follow a picture that was enlarged or reduced.
        joins: `join` gives the targets of four pictures that became one.
        foreign: ONNX graphs that were trained elsewhere can be read as this task.
        default_free_score: the free score that others have to beat, None if there is none.
        default_scores: the scores that a bundle carries by default, beside a learned head.
        own_scores: free scores that come with this task, beside those of its form.
        mean_bases: bases of which a frame's free score is the mean over units; of others it is the mean of
            their exponentials.
        deviates: a head may also start from `output_deviation`: how unusual the answer is for the network.
        score_batch: images at a time while all scores are computed.
        failure_threshold: the loss above which a sample has failed. None if the answer itself decides, and
            if it was not set yet.
    """

    name: str = ""
    output_name: str = "values"
    output_kind: OutputKind = "other"
    form: str = "custom"
    default_model: str = "resnet-small"
    ranks: tuple[int, int] | None = None
    looks: str = ""
    by_class: bool = False
    by_frame: bool = True
    independent: bool = False
    names_units: bool = False
    empty_label: bool = False
    accuracy_name: str = "accuracy"
    mirrors: bool = False
    shifts: bool = True
    zooms: bool = False
    joins: bool = False
    foreign: bool = False
    default_free_score: str | None = None
    default_scores: tuple[str, ...] = ()
    own_scores: tuple[type[Score], ...] = ()
    mean_bases: tuple[str, ...] = ()
    deviates: bool = False
    score_batch: int = 256
    failure_threshold: float | None = None

    @property
    def training_defaults(self) -> Mapping[str, Any]:
        """Returns what a run's configuration has, by dotted key, where it states nothing."""
        return {}

    def configured(self: T, config: TrainConfig, classes: Sequence[str]) -> T:
        """Returns the task as a run's configuration has it, for data with these classes."""
        return self

    def __repr__(self) -> str:
        """Returns its name: a message about a task need not show all that it holds."""
        return f"<task {self.name}>"

    # Labels and targets

    def parse_label(self, text: str, place: LabelPlace) -> NDArray[Any]:
        """Returns the target that a label of labels.csv means; by default one number for each name.

        Raises ConfigError if the text is none.
        """
        return parse_numbers(text, (len(place.classes), 1), task=self.name)[:, 0]

    def stack(self, targets: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Returns the targets of several examples as the array that `Examples` holds."""
        return np.stack(list(targets))

    def renumber(self, targets: NDArray[Any], index: Sequence[int]) -> NDArray[Any]:
        """Returns the targets of several examples for a network whose classes are in another order.

        index: the network's number of each class of the data.
        """
        if not self.by_class or tuple(index) == tuple(range(len(index))):
            return targets
        # 255 marks pixels without a label, which stay.
        table = np.arange(max(256, len(index)))
        table[: len(index)] = index
        return np.asarray(table[targets], targets.dtype)

    def collate(self, targets: Any) -> Tensor:
        """Returns the targets [N,...] of several examples as one tensor, padded if they are ragged."""
        return torch.as_tensor(targets)

    def require_fit(self, outputs: Tensor, targets: Tensor) -> None:
        """Raises ConfigError if values are not what the task is about; their ranks are checked before."""
        return

    def hint(self, outputs: Tensor, targets: Tensor) -> str:
        """Returns what the user probably has, if outputs and targets of other ranks show it."""
        return ""

    # Training

    def move(self, targets: Tensor, variation: Variation) -> Tensor:
        """Returns the targets [N,...] of pictures that were varied; by default they stay as they are."""
        return targets

    def join(self, targets: NDArray[Any], mosaics: Mosaics) -> NDArray[Any]:
        """Returns the targets [N,...] of mosaics of four pictures with targets [N,4,...], if it `joins`."""
        raise NotImplementedError

    @abstractmethod
    def sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of each sample, [N], at least 0; high is bad."""

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the scalar that the network is trained on."""
        return self.sample_loss(outputs, targets).mean()

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns a scalar in 0..1 for reports; high is good."""
        return 1 / (1 + self.sample_loss(outputs, targets).mean())

    def shares(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what each frame adds to a share of right answers: its right ones and all, [N] and [N].

        The share of some frames is the sum of the first over the sum of the second; high is good.
        Raises ConfigError if no threshold was stated.
        """
        right = 1.0 - self.failed(outputs, targets).double()
        return right, torch.ones_like(right)

    def condense(self, outputs: Tensor) -> Tensor:
        """Returns what losses need of outputs [N,...], if that is less than all of it."""
        return outputs

    def counts(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Returns numbers of things in each frame, {name: [N]}, of which a report gives shares."""
        return {}

    # Failures

    @property
    def answer_decides(self) -> bool:
        """Returns whether an answer is right or wrong by itself (`wrong`), without a threshold."""
        return False

    @property
    def failure_text(self) -> str:
        """Returns what counts as a failure if `answer_decides`, in words."""
        return "the answer is wrong"

    def wrong(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns bool [N], which answers are wrong, if `answer_decides`."""
        raise NotImplementedError

    def failed(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns bool [N]: which samples the network got wrong.

        Raises ConfigError if no threshold was stated.
        """
        if self.answer_decides:
            return self.wrong(outputs, targets)
        if self.failure_threshold is None:
            raise ConfigError(f"{self.name}: state the loss above which a sample has failed (with_threshold)")
        return self.sample_loss(outputs, targets) > self.failure_threshold

    @property
    def knows_failures(self) -> bool:
        """Returns whether `failed` can be computed."""
        return self.answer_decides or self.failure_threshold is not None

    def with_threshold(self: T, threshold: float) -> T:
        """Returns the same task, with samples above this loss as failures."""
        changed = copy.copy(self)
        changed.failure_threshold = float(threshold)
        return changed

    def with_worst(self: T, losses: Tensor, *, share: float = FAILED_SHARE) -> T:
        """Returns the same task, with the `share` of these samples that have the highest losses as failures.

        Args:
            losses: [N], of clean samples that the network was never fitted to, and never of a test half: what
                counts as a failure there must not depend on the results there.
            share: of the samples that count as failures.

        Raises:
            ConfigError: there are no losses.
        """
        if not len(losses):
            raise ConfigError(f"{self.name}: no held-out loss to read a failure threshold off")
        return self.with_threshold(float(torch.quantile(losses.double(), 1 - share)))

    # The head that learns to predict losses

    def unit_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of each unit, [N,U], NaN if a sample lacks it; by default the frame is the unit.

        A unit is a part that can fail by itself: a joint, a tile of a mask, a value.
        """
        return self.sample_loss(outputs, targets)[:, None]

    def unit_statistics(self, outputs: Tensor) -> Tensor:
        """Returns the numbers of an answer that a head looks at, [N,U,D]. They must export to ONNX."""
        return outputs.flatten(1)[:, None]

    def bases(self) -> Mapping[str, Base]:
        """Returns the free scores of a unit that a head may start from; the best on held-out data wins."""
        return {"none": lambda outputs: outputs.new_zeros(outputs.shape[0], 1)}

    # Scores

    def lighten(self, signals: Signals) -> Signals:
        """Returns signals without what no score of this task reads: they are kept for thousands of frames."""
        return signals

    def unmirror(
        self, outputs: Tensor, *, swap: Sequence[tuple[int, int]] = (), signs: Sequence[float] = ()
    ) -> Tensor:
        """Returns the outputs of mirrored pictures as if the pictures had not been mirrored.

        Args:
            outputs: [N,...] of mirrored pictures.
            swap: pairs of outputs that change places (left and right).
            signs: [J] of +1 or -1, the factor of each value.
        """
        return outputs

    def disagreement(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns the distance between two answers to each of N frames, [N]; 0 if they are equal."""
        return (first - second).square().flatten(1).mean(1)

    def present(self, targets: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Returns which classes each of N examples shows, [N,K]; None if the task has no classes."""
        return None

    # The judge's report

    def slices(self, targets: NDArray[Any], classes: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Returns groupings of frames that a report shows one by one, {name: label of each of N frames}."""
        return {}

    def loose(self, outputs: Tensor) -> Tensor | None:
        """Returns what `parts` needs of outputs [N,...]; None if frames have no parts."""
        return None

    def parts(
        self,
        answers: Tensor,
        targets: NDArray[Any],
        *,
        sizes: Sequence[tuple[int, int]],
        contract: InputContract,
        classes: Sequence[str],
    ) -> Parts:
        """Returns the objects in frames, and which are missed.

        answers: [N,...] as `loose` returns them.  targets: of N examples.  sizes: width and height of each
        picture.
        """
        raise NotImplementedError

    def draw(
        self,
        image: Image,
        outputs: Tensor,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
    ) -> Drawing:
        """Returns a frame for the report, with truth and answer drawn in or in words.

        image: uint8 RGB [H,W,3].  outputs: [1,...].  target: of one example.
        """
        return Drawing(data_url(image))

    def draw_label(
        self,
        image: Image,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
        side: int = SIDE,
    ) -> tuple[Image, str]:
        """Returns a frame for a contact sheet of a data set, and its label in words.

        Args:
            image: uint8 RGB [H,W,3], as it is stored.
            target: of this example.
            classes: names of classes, joints or values.
            contract: the network's input, in whose pixels places are given.
            side: longer side of the result in pixels.
        """
        return enlarged(image, side)[0], ""

    def class_colours(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Returns the colours in which `draw_label` draws the classes, "#rrggbb"; () if it draws none."""
        return ()

    def legend(self, classes: Sequence[str]) -> Legend | None:
        """Returns what the lines and colours of `draw` mean, None if nothing is drawn."""
        return None

    # Export

    def answer(self, signals: Signals) -> Tensor:
        """Returns the answer that a graph gives to a vehicle, [N,...]; by default the network's outputs."""
        return signals.outputs

    @property
    def box_rule(self) -> BoxRule | None:
        """Returns the rule by which candidates become boxes, for the manifest; None without boxes."""
        return None

    @property
    def bundle_task(self) -> TaskName:
        """Returns the name in the manifest: vehicles know the released names, and "custom" for others."""
        known: tuple[TaskName, ...] = get_args(TaskName)
        return next((name for name in known if name == self.name), "custom")

    def labels_and_answers(
        self, outputs: Tensor, targets: Tensor
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns (true classes, answered classes), each [N,P], of tasks `by_class`."""
        raise ConfigError(f"{self.name}: its answers are not classes")


def mean_of_units(losses: Tensor) -> Tensor:
    """Returns the mean of losses [N,U] over the units that are present (not NaN), [N]; 0 if there is none."""
    present = ~losses.isnan()
    return torch.where(present, losses, torch.zeros_like(losses)).sum(1) / present.sum(1).clamp_min(1)


def parse_numbers(text: str, shape: tuple[int, int], *, task: str) -> NDArray[np.float32]:
    """Returns the numbers of a label, rows separated by spaces and numbers within a row by commas.

    Raises ConfigError if they are not finite numbers of this shape.

    >>> parse_numbers("1,2 3,4", (2, 2), task="points").tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """
    try:
        values = np.array([[float(v) for v in word.split(",")] for word in text.split()], np.float32)
    except ValueError:
        raise ConfigError(f"{text!r} is not a list of numbers") from None
    if values.shape != shape or not np.isfinite(values).all():
        raise ConfigError(f"{values.shape} numbers; {task} needs {shape}")
    return values
