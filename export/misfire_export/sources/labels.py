"""Checks whether the classes of the data and the outputs of a model mean the same.

data's classes, K outputs, the model's own names --> order of the outputs, targets in that order
truth and answers on real frames --confusion matrix, best assignment--> is another order far likelier?

A model whose outputs are in another order than the data set's classes is not bad: it is misread, and every
failure, recall and threshold would be of that misreading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from misfire_export.errors import LabelError, OutputError
from misfire_export.measure.calibrate import WARNING
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.data.readers.class_lists import nfc, read_class_list
from misfire_train.data.readers.mask_images import IGNORE
from misfire_train.errors import DatasetError
from misfire_train.tasks import get_task

GAIN = 0.15
"""Accuracy that another order must add before it is called a misreading."""
SURE = 4.0
"""Standard errors that a difference must exceed; chance reaches four once in 30,000 exports."""
_SHOWN = 8
# Each normalisation is a pass over so many frames.
_TRIED = 300


@dataclass(frozen=True)
class ClassOrder:
    """Holds the order of a model's classes.

    Attributes:
        names: of the outputs, in order.
        index: output of each class of the data.
        stated: the user gave the order, so it is believed.
        note: what must be reported of it, or "".
    """

    names: tuple[str, ...]
    index: tuple[int, ...]
    stated: bool = False
    note: str = ""

    def of(self, examples: Examples) -> Examples:
        """Returns the same frames with targets that count outputs; 255 (no label) stays."""
        if examples.targets.ndim == 2 and np.issubdtype(examples.targets.dtype, np.floating):
            moved = get_task("multi-label").renumber(examples.targets, self.index)
            # Labels of the model that the data does not have are unknown.
            more = max(0, len(self.names) - moved.shape[1])
            return replace(examples, targets=np.pad(moved, ((0, 0), (0, more)), constant_values=np.nan))
        if self.index == tuple(range(len(self.index))):
            return examples
        table = np.arange(max(IGNORE + 1, len(self.index)))
        table[: len(self.index)] = self.index
        targets = table[examples.targets].astype(examples.targets.dtype)
        return replace(examples, targets=targets)


def read_classes(path: Path | None) -> tuple[str, ...]:
    """Returns class names in the model's order from a class list like that of a data set; () without a file.

    Raises LabelError if the file is none.
    """
    if path is None:
        return ()
    try:
        return read_class_list(path).names
    except DatasetError as error:
        raise LabelError(f"--classes {error}") from error


def order_classes(
    data: Sequence[str], outputs: int, *, stated: Sequence[str] = (), metadata: Sequence[str] = ()
) -> ClassOrder:
    """Returns which output is which class.

    Args:
        data: class names of the data set, () if unknown.
        outputs: K of the model.
        stated: names in the model's order, from the user.
        metadata: the same from the file.

    Raises:
        LabelError: the counts differ (it names both), or a class of the data is none of the model's.

    >>> order_classes(["bag", "coat"], 3, stated=["coat", "shirt", "bag"]).index
    (2, 0)
    """
    stated, metadata = [nfc(name) for name in stated], [nfc(name) for name in metadata]
    own = tuple(stated) or (tuple(metadata) if len(metadata) == outputs else ())
    where = "--classes" if stated else "the file's metadata"
    if own and len(own) != outputs:
        raise LabelError(f"{where} has {len(own)} classes ({_some(own)}), the model {outputs} outputs")
    if own and data:
        missing = [name for name in data if name not in own]
        if not missing:
            return ClassOrder(own, tuple(own.index(name) for name in data), bool(stated))
        if stated or len(missing) < len(data):
            raise LabelError(
                f"classes of the data set that {where} does not have: {_some(missing)}; it has {_some(own)}. "
                "Rename them so that both agree, or give the model's order with --classes names.txt"
            )
    if data and len(data) != outputs:
        raise LabelError(
            f"the data set has {len(data)} classes ({_some(data)}), the model {outputs} outputs: give the "
            "model's class names in the order of its outputs, one a line, with --classes names.txt"
        )
    note = ""
    if own and data:
        note = (
            f"the file's metadata calls its classes {_some(own)}, the data set {_some(data)}: the order of "
            "the data set was taken"
        )
    names = tuple(data) or own
    return ClassOrder(names, tuple(range(outputs)), note=note)


def require_targets(examples: Examples, outputs: int) -> None:
    """Raises LabelError if a target is none of the outputs, for data whose classes nobody named."""
    targets = np.asarray(examples.targets)
    if np.issubdtype(targets.dtype, np.floating):
        return
    known = targets[targets != IGNORE] if targets.ndim > 1 else targets
    if known.size and (int(known.max()) >= outputs or int(known.min()) < 0):
        raise LabelError(
            f"the labels go from {int(known.min())} to {int(known.max())}, the model has {outputs} outputs "
            f"(0 to {outputs - 1})"
        )


@dataclass(frozen=True)
class Answered:
    """Holds labels and answers of n frames, int [n,P].

    P is 1 for a whole frame, else the number of pixels, with 255 for no label.
    """

    truth: NDArray[np.int64]
    answer: NDArray[np.int64]
    outputs: int
    per_pixel: bool = False

    @property
    def known(self) -> NDArray[np.bool_]:
        """Returns the places that have a label, bool [n,P]."""
        return (self.truth != IGNORE) if self.per_pixel else np.ones(self.truth.shape, bool)

    def accuracies(self, order: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Returns the share of right places of each frame, [n].

        order: the class that each output is taken for.
        """
        answer = self.answer if order is None else order[self.answer]
        right = ((answer == self.truth) & self.known).sum(axis=1)
        return np.asarray(right / np.maximum(self.known.sum(axis=1), 1), np.float64)

    @property
    def accuracy(self) -> float:
        """Returns the mean accuracy of the frames."""
        return float(self.accuracies().mean())

    @property
    def chance(self) -> float:
        """Returns the accuracy of always answering the commonest class."""
        labels = self.truth[self.known]
        return float(np.bincount(labels).max() / len(labels)) if len(labels) else 0.0

    def take(self, rows: NDArray[Any]) -> Answered:
        """Returns some frames, by mask or position."""
        return replace(self, truth=self.truth[rows], answer=self.answer[rows])

    def best_order(self) -> NDArray[np.int64]:
        """Returns the class for which each output is best taken, [K].

        It is the assignment with the most right places.
        """
        confusion = np.zeros((self.outputs, self.outputs))
        np.add.at(confusion, (self.answer[self.known], self.truth[self.known]), 1)
        # On a tie the given order wins.
        confusion[np.diag_indices(self.outputs)] += 0.5
        # It minimises a cost, hence the sign.
        return np.asarray(linear_sum_assignment(-confusion)[1], np.int64)


def check_order(seen: Answered, order: ClassOrder) -> tuple[str, ...]:
    """Returns notes on the order of the classes.

    The likeliest order is read off one half of the frames and judged on the other, so that chance explains no
    gain. Uninformative answers show no order either: always the same one, or an order that is worse than
    always the commonest class. Raises LabelError that names the likeliest order if it explains far more than
    the given one and the user did not state that.
    """
    if len(seen.truth) < 2 or seen.outputs < 2 or len(np.unique(seen.answer[seen.known])) < 2:
        return ()
    half = np.random.default_rng(0).permutation(len(seen.truth)) % 2 == 0
    given, likelier = seen.accuracies(), np.zeros(len(seen.truth))
    for fitted, judged in ((half, ~half), (~half, half)):
        likelier[judged] = seen.take(judged).accuracies(seen.take(fitted).best_order())
    gains = likelier - given
    if gains.mean() < GAIN or not _sure(gains) or likelier.mean() < seen.chance - GAIN / 3:
        return ()
    best = seen.best_order()
    swapped = [i for i in range(seen.outputs) if best[i] != i and (seen.answer[seen.known] == i).any()]
    names = order.names or tuple(str(i) for i in range(seen.outputs))
    likely = ", ".join(f"output {i} ({names[i]}) as {names[best[i]]}" for i in swapped[:_SHOWN])
    more = f" and {len(swapped) - _SHOWN} more" if len(swapped) > _SHOWN else ""
    text = (
        f"another order of the classes explains the answers far better: accuracy {seen.accuracy:.3f} as "
        f"given, {float(seen.accuracies(best).mean()):.3f} with {likely}{more}"
    )
    if order.stated:
        return (f"{WARNING}{text}; the order that --classes states was kept",)
    raise LabelError(
        f"{text}. Give the model's class names in the order of its outputs, one a line, with --classes "
        "names.txt (the same file keeps the given order if that is right after all)"
    )


def check_label_order(seen: Answered, order: ClassOrder) -> tuple[str, ...]:
    """Raises LabelError if another order of independent labels explains the answers far better.

    Returns a note instead if the user stated the order. seen: labels and answers as 0 and 1, [n,K].
    """
    known = seen.known
    pairs = [(seen.truth[:, k], known[:, k]) for k in range(seen.truth.shape[1])]
    agreement = np.array(
        [
            [float(((answer == truth) & sure).sum() / max(sure.sum(), 1)) for truth, sure in pairs]
            for answer in seen.answer.T
        ]
    )
    agreement[np.diag_indices(len(agreement))] += 1e-9
    best = np.asarray(linear_sum_assignment(-agreement)[1], np.int64)
    rows = np.argsort(best)
    likelier = replace(seen, answer=seen.answer[:, rows])
    gains = likelier.accuracies() - seen.accuracies()
    if gains.mean() < GAIN / 3 or not _sure(gains):
        return ()
    names = order.names or tuple(str(i) for i in range(len(best)))
    swapped = [i for i in range(len(best)) if best[i] != i]
    likely = ", ".join(f"output {i} ({names[i]}) as {names[best[i]]}" for i in swapped[:_SHOWN])
    text = (
        f"another order of the labels explains the answers far better: {seen.accuracy:.3f} of them are right "
        f"as given, {likelier.accuracy:.3f} with {likely}"
    )
    if order.stated:
        return (f"{WARNING}{text}; the order that --classes states was kept",)
    raise LabelError(f"{text}. Give the model's labels in the order of its outputs with --classes names.txt")


def chance_note(seen: Answered) -> tuple[str, ...]:
    """Returns a warning if always giving the commonest class would be right as often."""
    own = seen.accuracies()
    margin = 2 * float(own.std()) / max(np.sqrt(len(own)), 1)
    if seen.accuracy > seen.chance + margin:
        return ()
    return (
        f"{WARNING}accuracy {seen.accuracy:.3f} on {len(own)} frames is no better than always answering the "
        f"commonest class ({seen.chance:.3f}): check the order of the classes, normalisation and colours",
    )


def normalisation_note(
    seen: Answered,
    frames: Examples,
    contract: InputContract,
    data: InputContract,
    answers: Callable[[Examples, InputContract], Answered],
) -> tuple[str, ...]:
    """Returns a hint if another usual normalisation does much better than the contract's.

    A few hundred frames are enough, and each normalisation is a pass over them.

    Args:
        seen: answers to `frames`.
        frames: labelled frames.
        contract: of the model.
        data: the data set's own contract.
        answers: computes the model's answers to frames under a contract.
    """
    if contract.dtype == "uint8" or seen.accuracy > 1 - GAIN / 3:
        return ()
    rows = np.linspace(0, len(frames) - 1, min(_TRIED, len(frames))).astype(int)
    seen, few = seen.take(rows), frames.take(rows)
    best, gain = None, 0.0
    for name, mean, std in _normalisations(contract, data):
        other = contract.model_copy(update={"mean": mean, "std": std})
        if _same(other, contract):
            continue
        try:
            gains = answers(few, other).accuracies() - seen.accuracies()
        except OutputError:  # of pixels far from what it was trained on it may make infinity
            continue
        if gains.mean() > max(gain, GAIN / 3) and _sure(gains):
            best, gain = (name, other), float(gains.mean())
    if best is None:
        return ()
    name, found = best
    asked = f"""--image '{{"mean": {list(found.mean)}, "std": {list(found.std)}}}'"""
    return (
        f"{WARNING}with {name} the accuracy on {len(seen.truth)} frames is {seen.accuracy + gain:.3f} and "
        f"not {seen.accuracy:.3f}: the model was probably trained with it; try {asked}",
    )


def _normalisations(
    contract: InputContract, data: InputContract
) -> list[tuple[str, tuple[float, ...], tuple[float, ...]]]:
    # ImageNet's statistics; the grey ones are the means over its channels, which serve a fourth one.
    grey, colour = ((0.449,), (0.226,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    four = ((*colour[0], *grey[0]), (*colour[1], *grey[1]))
    means, stds = {1: grey, 4: four}.get(contract.channels, colour)
    usual: list[tuple[str, tuple[float, ...], tuple[float, ...]]] = [
        ("pixels from 0 to 1", (0.0,), (1.0,)),
        ("ImageNet's mean and deviation", means, stds),
        ("pixels from -1 to 1", (0.5,), (0.5,)),
        ("pixels from 0 to 255", (0.0,), (1 / 255,)),
    ]
    if data.channels == contract.channels:
        usual.append(("the data set's own mean and deviation", data.mean, data.std))
    return usual


def _same(a: InputContract, b: InputContract) -> bool:
    def full(values: tuple[float, ...]) -> NDArray[np.float64]:
        return np.broadcast_to(np.asarray(values, np.float64), (a.channels,))

    return bool(
        np.allclose(full(a.mean), full(b.mean), atol=0.01)
        and np.allclose(full(a.std), full(b.std), rtol=0.05)
    )


def _sure(gains: NDArray[np.float64]) -> bool:
    """Returns whether the mean gain is more than SURE standard errors above zero.

    One frame of doubt is added.
    """
    error = float(np.sqrt((gains.var() + 1 / len(gains)) / len(gains)))
    return bool(gains.mean() > SURE * error)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more
