"""Defines and verifies model bundles: a folder with a graph, a manifest, and a checksum for every file.

    bundle/manifest.json   this module's `Manifest`
    bundle/model.onnx      image [N,C,H,W] -> task outputs, score.<name> [N], embedding [N,D]
    bundle/...             golden inputs and other files, each listed in the manifest

`Bundle.open` verifies a bundle before anything uses it: the schema, every listed file, and that there is no
unlisted file. The `engine/` folder is a cache that the device writes; it is neither verified nor shipped.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from misfire_runtime.boxes import BoxRule
from misfire_runtime.choices import Precision, TaskName
from misfire_runtime.errors import BundleError
from misfire_runtime.files import write_durably
from misfire_runtime.preprocess import InputContract
from misfire_runtime.toml import explain

MANIFEST = "manifest.json"
MODEL = "model.onnx"
ENGINE_CACHE = "engine"
SCHEMA_VERSION: Literal[1] = 1
OutputKind = Literal[
    "logits", "values", "heatmaps", "segmentation", "boxes", "box", "score", "embedding", "other"
]
# A bundle may come from elsewhere: its manifest must not fill the memory.
MAX_MANIFEST_BYTES = 16 * 1024 * 1024


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Interval(_Part):
    """Holds an estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float


class OutputSpec(_Part):
    """Describes one output of the graph; a dimension of `shape` that depends on the batch is -1.

    `boxes` are detections [N,M,6] in network pixels (x0 y0 x1 y1 score class, best first, padded with zeros);
    `box` is a value per row of them, [N,M], such as `box.p_tp`.
    """

    name: str
    kind: Literal[
        "logits",
        "values",
        "heatmaps",
        "segmentation",
        "labels",
        "boxes",
        "box",
        "score",
        "embedding",
        "other",
    ]
    shape: tuple[int, ...]


class FurtherAnswer(_Part):
    """Describes a further answer of a network with several tasks.

    Scores of it are named NAME_SCORE. The kind of its output is `other`, which older vehicles pass over.
    """

    name: str = Field(min_length=1, max_length=64)
    output: str
    kind: Literal["logits", "values", "heatmaps", "segmentation", "labels"]
    classes: tuple[str, ...] = ()


class QuantileTable(_Part):
    """Holds the distribution of a score on held-out frames: `values[i]` is its `levels[i]` quantile."""

    levels: tuple[float, ...]
    values: tuple[float, ...]
    count: int = Field(gt=0)

    @model_validator(mode="after")
    def _is_a_distribution(self) -> QuantileTable:
        if len(self.levels) != len(self.values) or len(self.levels) < 2:
            raise ValueError("levels and values must have the same length, at least 2")
        if any(b <= a for a, b in zip(self.levels, self.levels[1:], strict=False)):
            raise ValueError("levels must rise")
        if any(b < a for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ValueError("values must not fall")
        if self.levels[0] < 0 or self.levels[-1] > 1:
            raise ValueError("levels lie in [0, 1]")
        return self


class LossTable(_Part):
    """Holds the expected loss of a frame by score, in the task's own units, as measured on held-out frames.

    Between the points it is interpolated in the logarithm of the loss; beyond them it is flat.
    """

    scores: tuple[float, ...]
    losses: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _rises(self) -> LossTable:
        if len(self.scores) != len(self.losses) or not self.scores:
            raise ValueError("scores and losses must have the same length, at least 1")
        if any(b <= a for a, b in zip(self.scores, self.scores[1:], strict=False)):
            raise ValueError("scores must rise")
        if any(b < a for a, b in zip(self.losses, self.losses[1:], strict=False)):
            raise ValueError("losses must not fall")
        return self

    def expected(self, score: float) -> float:
        """Returns the expected loss at a score."""
        place = bisect.bisect_right(self.scores, score)
        if place in (0, len(self.scores)):
            return self.losses[min(place, len(self.losses) - 1)]
        left, right = self.scores[place - 1], self.scores[place]
        share = (score - left) / (right - left)
        low, high = math.log(self.losses[place - 1]), math.log(self.losses[place])
        return math.exp(low + share * (high - low))


class Calibration(_Part):
    """Calibrates a score on one engine at one precision; another engine needs its own calibration.

    `loss_scale` is c in predicted loss = c * exp(score); None if the score is no log-loss. `expected_loss` is
    more accurate, and there for every score; None if the frames had no labels.
    """

    engine: str
    precision: Precision
    quantiles: QuantileTable
    loss_scale: float | None = None
    expected_loss: LossTable | None = None


class OperatingPoint(_Part):
    """Describes a threshold: its upload rate, and recall and precision of failures on held-out frames.

    Recall and precision are None if the frames had no labels.
    """

    threshold: float
    upload_rate: float = Field(ge=0, le=1)
    failure_recall: Interval | None = None
    failure_precision: Interval | None = None


class ScoreSpec(_Part):
    """Describes a failure score of the graph; a higher value means a more likely failure."""

    name: str
    definition: str
    free: bool
    """True if the score needs only the task's outputs."""
    of: str = ""
    """Name of the further answer that it scores; "" for the task's own."""
    calibration: Calibration
    operating_points: tuple[OperatingPoint, ...] = ()

    @property
    def output(self) -> str:
        """Returns the name of the graph's output with this score."""
        return f"score.{self.name}"


class RateScore(_Part):
    """Names the score that finds most failures if this share of the frames is uploaded, and why."""

    upload_rate: float = Field(gt=0, lt=1)
    score: str
    reason: str = ""


class Parity(_Part):
    """Holds the largest absolute difference from the trained model, per output, on real images."""

    images: int = Field(gt=0)
    tolerance: float
    max_abs: dict[str, float]


class Lineage(_Part):
    """Records the origin of the model, with everything needed to train it again."""

    run_id: str
    parent_run_id: str | None = None
    dataset: str
    dataset_sha256: str
    snapshot_id: str | None = None
    git_commit: str | None = None
    config: dict[str, Any] = {}
    metrics: dict[str, float] = {}


class HeadPlace(_Part):
    """Says where the learned head of a score is in the graph, so that a delta can replace it.

    `tensors` has the graph's initialiser for each tensor of the head, `base` and `statistics` are the tensors
    of the graph that it computes on, `recipe` and `options` build a head of the same shapes.
    """

    score: str
    recipe: str
    options: dict[str, Any]
    base: str
    statistics: str
    tensors: dict[str, str] = Field(min_length=1, max_length=64)


class FileEntry(_Part):
    """Holds size and hash of one file of the bundle."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(_Part):
    """Describes a model completely, so that a vehicle need not open the graph."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    version: str = Field(pattern=r"^\d+\.\d+\.\d+([.+-][0-9A-Za-z.+-]+)?$")
    task: TaskName
    created_at: str
    precision: Precision = "fp32"
    input: InputContract
    outputs: tuple[OutputSpec, ...]
    classes: tuple[str, ...] = ()
    detection: BoxRule | None = None
    """How a detector's boxes were chosen, and when they count as right; None for other tasks."""
    further: tuple[FurtherAnswer, ...] = Field(default=(), max_length=8)
    """Answers beside that of `task`, for a network with several."""
    scores: tuple[ScoreSpec, ...]
    default_score: str
    scores_by_rate: tuple[RateScore, ...] = ()
    """Scores to trigger on by upload rate, if they differ from or confirm `default_score`."""
    upload_rate: float | None = Field(default=None, gt=0, lt=1)
    """The share of frames that the bundle is meant to upload; None if none was declared."""
    head: HeadPlace | None = None
    """The learned head that `misfire retrain --head-only` can fit again; None if the graph has none."""
    parity: Parity | None = None
    """None only if there is no trained model to compare with (a foreign ONNX graph)."""
    lineage: Lineage
    extra: dict[str, Any] = {}
    """Reports of the exporter (quantization, TensorRT conformance, gate); the runtime ignores them."""
    files: dict[str, FileEntry]

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            parts = Path(name).parts
            if (
                not parts
                or Path(name).is_absolute()
                or ".." in parts
                or "\\" in name
                or parts[0] == ENGINE_CACHE
            ):
                raise ValueError(f"file name {name!r} leaves the bundle")
        if MODEL not in files:
            raise ValueError(f"{MODEL} is not listed")
        return files

    @model_validator(mode="after")
    def _scores_are_outputs(self) -> Manifest:
        outputs = {output.name for output in self.outputs}
        for score in self.scores:
            if score.output not in outputs:
                raise ValueError(f"score {score.name!r} has no output {score.output!r}")
        for answer in self.further:
            if answer.output not in outputs:
                raise ValueError(f"further answer {answer.name!r} has no output {answer.output!r}")
        self.score(self.default_score)
        if self.head is not None:
            self.score(self.head.score)
        for choice in self.scores_by_rate:
            self.score(choice.score)
        return self

    def score_at(self, rate: float) -> str:
        """Returns the score to trigger on at an upload rate: the choice of the nearest rate, or the default.

        Nearest by ratio: 3 % is as far from 1 % as from 9 %.
        """
        if not self.scores_by_rate or rate <= 0:
            return self.default_score
        return min(self.scores_by_rate, key=lambda each: abs(math.log(each.upload_rate / rate))).score

    def score(self, name: str) -> ScoreSpec:
        """Returns the score of that name. Raises ValueError, with the existing names, if there is none."""
        for score in self.scores:
            if score.name == name:
                return score
        raise ValueError(f"no score {name!r}; there are {', '.join(s.name for s in self.scores)}")

    @property
    def rates_text(self) -> str:
        """Returns which score triggers at which upload rates, in words; "" if none were judged.

        Rates that follow one another with one score are one range.
        """
        runs: list[list[RateScore]] = []
        for choice in sorted(self.scores_by_rate, key=lambda each: each.upload_rate):
            if not runs or runs[-1][0].score != choice.score:
                runs.append([])
            runs[-1].append(choice)
        texts = []
        for run in runs:
            first, last = f"{100 * run[0].upload_rate:g} %", f"{100 * run[-1].upload_rate:g} %"
            texts.append(f"{first if len(run) == 1 else f'{first} to {last}'}: {run[0].score}")
        return "; ".join(texts)

    @property
    def label(self) -> str:
        """Returns `name@version`, as in offers and reports."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Bundle:
    """Holds a verified bundle on disk."""

    path: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """Returns the path of the graph."""
        return self.path / MODEL

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Reads and verifies a bundle.

        Args:
            path: folder of the bundle.

        Raises:
            BundleError: a file is missing, changed or unlisted, or the manifest is invalid.
        """
        manifest = read_manifest(path)
        problems = verify_files(path, manifest)
        if problems:
            raise BundleError(f"{path}: " + "; ".join(problems))
        return cls(path, manifest)


def read_manifest(path: Path) -> Manifest:
    """Reads `path/manifest.json` and validates its schema, but not the files. Raises BundleError."""
    file = path / MANIFEST
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{file}: larger than {MAX_MANIFEST_BYTES} bytes")
        return Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}; is this a bundle?") from error
    except ValidationError as error:
        raise BundleError(explain(error, file=str(file), most=1)) from error


def verify_files(path: Path, manifest: Manifest) -> list[str]:
    """Returns a sentence per changed, missing or unlisted file; an empty list if the bundle is intact."""
    problems = []
    for name, entry in sorted(manifest.files.items()):
        file = path / name
        # A link could lead out of the bundle, to a file that changes after this check.
        if file.is_symlink() or not file.is_file():
            problems.append(f"{name} is missing")
        # The size first: it needs no read.
        elif file.stat().st_size != entry.bytes or sha256_file(file) != entry.sha256:
            problems.append(f"{name} is not what the manifest says (sha256 differs)")
    return problems + [f"{name} is not listed in the manifest" for name in sorted(_unlisted(path, manifest))]


def hash_files(path: Path) -> dict[str, FileEntry]:
    """Returns the entries of all files of a bundle folder, except the manifest and the engine cache."""
    return {
        name: FileEntry(sha256=sha256_file(path / name), bytes=(path / name).stat().st_size)
        for name in sorted(_shipped(path))
    }


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes `path/manifest.json` durably: completely or not at all. Raises OSError."""
    write_durably(path / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        # 1 MiB at a time: a graph may be larger than the memory that is free.
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _shipped(path: Path) -> set[str]:
    names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    return {name for name in names if name != MANIFEST and not name.startswith(f"{ENGINE_CACHE}/")}


def _unlisted(path: Path, manifest: Manifest) -> set[str]:
    return _shipped(path) - set(manifest.files)
