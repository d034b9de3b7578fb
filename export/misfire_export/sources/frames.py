"""Provides the labelled frames that a model is exported on, by use.

run, data set --frames_of_run--> the run's own training, holdout and calibration parts
data set --frames_of_dataset--> training half, and a holdout and calibration part of the test half
images:PATH --frames_of_pictures--> pictures without labels, all of them for calibration

A model from elsewhere has presumably been trained on the data set's training half, so its holdout and its
calibration frames come from the test half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from misfire_export.errors import LabelError
from misfire_export.sources.pictures import PREFIX, read_pictures
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_runtime.toml import explain
from misfire_train.data import Dataset, Examples, load_dataset, split
from misfire_train.data.examples import Labels, join
from misfire_train.fitting.frames import frames_to_fit
from misfire_train.runs import Run, run_splits

# Of the test half; calibration, which also sets thresholds and feeds the gate, gets the larger part.
HOLDOUT_SHARE = 0.4
ASSUMED_PIXELS = (
    "no data set states a normalisation, so pixels from 0 to 1 were assumed: if the model was trained with "
    "another, state mean and std with --image"
)
_SIZED = ("masks:", "coco-keypoints:")


@dataclass(frozen=True)
class Frames:
    """Holds frames by use, and what is known of them.

    Args:
        calibration: Frames that nothing was trained on: quantiles, thresholds and the gate.
        fit: Frames that the model was trained on, for banks of embeddings and class means.
        holdout: Frames that the network never fitted, for scores that learn from its losses.
        classes: Class names that the targets count.
        contract: How the data set itself provides its images. None: as the model expects them.
        task: Task of the data set, "" if unknown.
        dataset: Name and sha256 of their source.
        labelled: Whether they have labels; without, `targets` are empty and nothing may read them.
        notes: What must be reported of them, one sentence each.
        answers: Of labels of several outputs, task and classes by output; targets have a field for each.
    """

    calibration: Examples
    fit: Examples | None = None
    holdout: Examples | None = None
    classes: tuple[str, ...] = ()
    contract: InputContract | None = None
    task: str = ""
    dataset: tuple[str, str] = ("unknown", "0" * 64)
    labelled: bool = True
    notes: tuple[str, ...] = ()
    answers: Mapping[str, Labels] = field(default_factory=dict)

    def of(self, output: str) -> Frames:
        """Returns the frames with the labels of one output."""
        labels = self.answers[output]
        chosen = self.relabelled(lambda part: part.of(output))
        return replace(chosen, classes=labels.classes, task=labels.task, answers={})

    def without_labels(self) -> Frames:
        """Returns the frames as if they had no labels."""
        return replace(self, labelled=False, classes=(), task="", answers={})

    def relabelled(self, change: Callable[[Examples], Examples]) -> Frames:
        """Returns the same frames with targets that count the model's outputs."""
        if not self.labelled:
            return self
        fit, holdout = (None if part is None else change(part) for part in (self.fit, self.holdout))
        return replace(self, calibration=change(self.calibration), fit=fit, holdout=holdout)


@dataclass(frozen=True)
class LabelsByOutput:
    """Says which frames have the labels of which output of a network.

    Attributes:
        output, task: of the main answer, "" if nothing is known of it.
        frames: for it.
        also: task of each further output.
        further: frames with labels of further outputs, None for an output without.
    """

    output: str
    task: str
    frames: Frames
    also: Mapping[str, str]
    further: Mapping[str, Frames | None]


def labels_by_output(
    frames: Frames, outputs: Sequence[str], *, output: str, also: Mapping[str, str]
) -> LabelsByOutput:
    """Returns whose labels the frames have: those of one output, or by name or position of several.

    Args:
        frames: Of a data set.
        outputs: Names of the network's outputs, in order.
        output: Name of the main answer, "" for the first that has labels.
        also: Task of each further output that is to have scores.

    Raises:
        LabelError: the data set has labels of an output that the network lacks, or of another task than
            is stated.
    """
    if not frames.answers:
        return LabelsByOutput(output, "", frames, also, dict.fromkeys(also))
    named = {_output_named(key, outputs): key for key in frames.answers}
    main = output or next(iter(named))
    if main not in named:
        raise LabelError(
            f"the data set has labels of {', '.join(frames.answers)}, not of {main}: name one of them with "
            "--output"
        )
    labels = {name: frames.answers[key] for name, key in named.items()}
    wrong = [n for n, task in also.items() if n in labels and labels[n].task != task]
    if wrong:
        raise LabelError(f"--also {wrong[0]}={also[wrong[0]]}: its labels are of {labels[wrong[0]].task}")
    tasks = {**{name: label.task for name, label in labels.items() if name != main}, **also}
    further = {name: frames.of(named[name]) if name in named else None for name in tasks}
    return LabelsByOutput(main, labels[main].task, frames.of(named[main]), tasks, further)


def quantiles_only(names: Sequence[str]) -> str:
    """Returns a note on further answers without labels."""
    return f"{', '.join(names)}: scores with quantiles only, because the frames have no labels of them"


def _output_named(key: str, outputs: Sequence[str]) -> str:
    """Returns the output that labels are of, by name or position."""
    if key in outputs:
        return key
    if key.isdigit() and int(key) < len(outputs):
        return outputs[int(key)]
    raise LabelError(
        f"the data set has labels of an output {key}, which the model lacks; it has {', '.join(outputs)}"
    )


def parse_further(text: str) -> dict[str, str]:
    """Returns {output: task} of OUTPUT=TASK, comma-separated; the task is classification if none is named.

    Raises ConfigError if an output is named twice.

    >>> parse_further("scene, lanes=segmentation")
    {'scene': 'classification', 'lanes': 'segmentation'}
    """
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        output, _, task = (word.strip() for word in part.partition("="))
        if output in found or not output:
            raise ConfigError(f"--also is {text!r}; expected OUTPUT=TASK, each output once")
        found[output] = task or "classification"
    return found


def frames_of_run(run: Run, dataset: Dataset) -> Frames:
    """Returns a run's own parts. Raises ConfigError if it set no calibration frames aside."""
    record, parts = run.record, run_splits(run, dataset)
    fitted = frames_to_fit(run, parts)
    if "calibration" not in parts:
        raise ConfigError(f"{run.path} set no calibration part aside; train with a calibration share above 0")
    return Frames(
        calibration=parts["calibration"],
        fit=fitted.fit,
        holdout=fitted.holdout,
        classes=tuple(record.classes),
        contract=run.contract,
        task=record.task,
        dataset=(record.dataset.name, record.dataset.sha256),
    )


def frames_of_dataset(
    name: str,
    *,
    data: Path | None,
    parts: Mapping[str, str] | None = None,
    image: str = "",
    seed: int = 0,
    size: tuple[int, int, int] | None = None,
) -> tuple[Frames, InputContract]:
    """Returns a data set's halves for a model trained elsewhere, and what the model's input expects.

    Args:
        name: Name of the data set.
        data: Folder of the published data sets.
        parts: The user's own split instead, as `frames_of_parts` takes it.
        image: What the input expects, as JSON; what it leaves out is the data set's.
        seed: Random seed of the division of the test half.
        size: Channels, height and width that the graph takes, for what neither `image` nor the name states.

    Raises:
        ConfigError: `image` is another text, or does not describe an input.
    """
    given = read_image(image)
    if parts and parts.get("test"):
        return frames_of_parts(parts, data=data, image=image, size=size)
    if name.startswith(PREFIX):
        return frames_of_pictures(Path(name.removeprefix(PREFIX)), given, size=size)
    dataset = load_dataset(_with_size(name, given, size), root=data, several=True)
    contract = laid_over(dataset.contract, _sized(name, given, size))
    require_channels(dataset.test, contract, name=name)
    halves = split(
        dataset.test, fractions={"holdout": HOLDOUT_SHARE, "calibration": 1 - HOLDOUT_SHARE}, seed=seed
    )
    frames = Frames(
        calibration=halves["calibration"],
        fit=dataset.train,
        holdout=halves["holdout"],
        classes=dataset.classes,
        contract=laid_over(dataset.contract, {"color": contract.color}),
        task=dataset.task,
        dataset=(dataset.name, dataset.sha256),
        answers=dataset.answers,
    )
    return frames, contract


def require_one_split(dataset: str, parts: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the parts.

    Raises ConfigError unless frames are named once: by a data set, or by parts of which one is the test.
    """
    given = [f"--{part}" for part, name in parts.items() if name]
    if dataset and given:
        raise ConfigError(f"--dataset and {', '.join(given)}: name a data set, or your own parts")
    if given and not parts.get("test"):
        raise ConfigError(f"{', '.join(given)}: an own split needs --test, the frames to calibrate on")
    if not dataset and not given:
        raise ConfigError(
            "--torch and --onnx need --dataset: frames to calibrate on; or your own split: --train, "
            "--holdout, --test"
        )
    names = [name for name in parts.values() if name]
    if len(set(names)) != len(names):
        raise ConfigError(
            "two of --train, --holdout and --test name the same data set: they must not share frames"
        )
    return parts


def frames_of_parts(
    parts: Mapping[str, str],
    *,
    data: Path | None,
    image: str = "",
    size: tuple[int, int, int] | None = None,
) -> tuple[Frames, InputContract]:
    """Returns the user's own split, each part whole, and what the model's input expects.

    Args:
        parts: data sets by part: test, and perhaps train and holdout.
        data: Folder of the published data sets.
        image: What the input expects, as JSON; what it leaves out is the test set's.
        size: Channels, height and width that the graph takes.

    Raises:
        ConfigError: parts differ in task or classes, or `image` does not describe an input.
    """
    given = read_image(image)
    loaded = {
        part: load_dataset(_with_size(name, given, size), root=data, several=True)
        for part, name in parts.items()
        if name
    }
    test = loaded["test"]
    for part, other in loaded.items():
        if (other.task, other.classes, other.answers) != (test.task, test.classes, test.answers):
            raise ConfigError(
                f"--{part} has {other.task} with classes {', '.join(other.classes)}, --test {test.task} with "
                f"{', '.join(test.classes)}; parts must agree (an empty folder is a class, too)"
            )
    contract = laid_over(test.contract, _sized(parts["test"], given, size))
    require_channels(test.test, contract, name=parts["test"])
    whole = {part: _whole(dataset, part) for part, dataset in loaded.items()}
    frames = Frames(
        calibration=whole["test"],
        fit=whole.get("train"),
        holdout=whole.get("holdout"),
        classes=test.classes,
        contract=laid_over(test.contract, {"color": contract.color}),
        task=test.task,
        dataset=(test.name, test.sha256),
        answers=test.answers,
    )
    return frames, contract


def _whole(dataset: Dataset, part: str) -> Examples:
    """Returns both halves as one set; file names of two folders may be the same, so the part is named."""
    both = join([dataset.train, dataset.test])
    return replace(both, ids=tuple(f"{part}/{identity}" for identity in both.ids))


def frames_of_pictures(
    path: Path, given: Mapping[str, Any], *, size: tuple[int, int, int] | None = None
) -> tuple[Frames, InputContract]:
    """Returns pictures without labels, and what the model's input expects: 0..1 where nothing is stated.

    given: fields of the contract. size: channels, height and width that the graph takes. Raises ConfigError
    if the size is unknown.
    """
    stated = _sized("", given, size)
    if not {"height", "width"} <= set(stated):
        raise ConfigError(
            f"{PREFIX}{path}: pictures do not tell the input's size; state it with --image "
            '\'{"height": 224, "width": 224}\''
        )
    channels = 4 if stated.get("channels") == 4 or stated.get("color") == "rgba" else 3
    frames, sha256, notes = read_pictures(path, channels=channels)
    base = InputContract(height=int(stated["height"]), width=int(stated["width"]))
    contract = laid_over(base, stated)
    unstated = not {"mean", "std"} & set(given) and contract.dtype == "float32"
    assumed = (ASSUMED_PIXELS,) if unstated else ()
    name = f"{PREFIX}{path}"
    found = Frames(frames, dataset=(name, sha256), labelled=False, notes=(*notes, *assumed))
    return found, contract


def require_channels(frames: Examples, contract: InputContract, *, name: str) -> None:
    """Raises ConfigError if the model takes four channels and the pictures have three."""
    if contract.channels == 4 and len(frames) and frames.images[0].shape[2] != 4:
        raise ConfigError(
            f"the model takes four channels, the pictures of {name} have three: give them as RGBA PNG in "
            "image-folder: or images:, or as [H,W,4] arrays from module:factory"
        )


def read_image(text: str, *, option: str = "--image") -> dict[str, Any]:
    """Returns the fields of a JSON object, {} for an empty text. Raises ConfigError that names the option."""
    if not text:
        return {}
    try:
        found = TypeAdapter(dict[str, Any]).validate_json(text)
    except ValidationError as error:
        raise ConfigError(
            f'{option} is {text!r}; expected JSON such as {{"height": 224, "width": 224, "color": "gray"}}'
        ) from error
    return found


def _with_size(name: str, given: Mapping[str, Any], size: tuple[int, int, int] | None) -> str:
    """Returns the data set's name with what the graph takes, for readers that have to know it.

    That is its size, if labels are in input pixels, and a fourth channel.
    """
    four = given.get("color") == "rgba" or (size is not None and size[0] == 4)
    if four and name.startswith("image-folder:") and "channels=" not in name:
        return f"{name}{'&' if '?' in name else '?'}channels=4"
    if size is None or not name.startswith(_SIZED) or "size=" in name or {"height", "width"} & set(given):
        return name
    return f"{name}{'&' if '?' in name else '?'}size={size[2]}x{size[1]}"


def _sized(name: str, given: Mapping[str, Any], size: tuple[int, int, int] | None) -> dict[str, Any]:
    """Returns what is stated of the input: by --image, and otherwise by the graph."""
    if size is None:
        return dict(given)
    found: dict[str, Any] = {"height": size[1], "width": size[2]} if "size=" not in name else {}
    return {**found, "channels": size[0], **given}


def laid_over(contract: InputContract, given: Mapping[str, Any]) -> InputContract:
    """Returns the data set's contract with the given fields.

    Mean and deviation follow the number of channels.

    given: fields of the contract, and `channels` if only their number is known. Raises ConfigError.

    >>> rgb = InputContract(height=8, width=8, mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))
    >>> found = laid_over(rgb, {"color": "gray"})
    >>> round(found.mean[0], 6), round(found.std[0], 6)
    (0.4, 0.2)
    """
    stated = dict(given)
    channels = stated.pop("channels", None)
    if "color" not in stated and channels not in (None, contract.channels):
        stated["color"] = {1: "gray", 4: "rgba"}.get(channels, "rgb")
    color = stated.get("color", contract.color)
    for key, values in (("mean", contract.mean), ("std", contract.std)):
        if key in stated or len(values) == 1:
            continue
        # A grey picture's mean is the channels' mean; one number serves any number of channels.
        mean = sum(values[:3]) / 3
        stated[key] = {"gray": (mean,), "rgba": (*values, mean)[:4]}.get(str(color), values[:3])
    try:
        return InputContract.model_validate({**contract.model_dump(), **stated})
    except ValidationError as error:
        raise ConfigError(explain(error, file="--image", most=1)) from error
