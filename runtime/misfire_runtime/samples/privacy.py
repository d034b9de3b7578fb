"""Changes a picture before any disk or network sees it: masks, blurred detections, crops.

image --masks--> --each detector's boxes blurred--> --crop--> image + what was done (for the offer)

It fails closed: if a detector is missing, does not load or breaks, no picture leaves this vehicle
(PrivacyError, counted by the writer), while scoring and telemetry go on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from misfire_runtime.errors import MisfireError, PrivacyError
from misfire_runtime.placement import Placement
from misfire_runtime.preprocess import Image, InputContract, to_tensor
from misfire_runtime.tables import Rate, RelativePath, Table

_LOG = logging.getLogger(__name__)
Boxes = NDArray[np.float32]
"""[n,4] x0, y0, x1, y1."""


class MaskTable(Table):
    """A rectangle painted black: x, y, width, height as shares 0..1 of the picture; "" is every source."""

    box: tuple[Rate, Rate, Rate, Rate]
    source: str = ""


class BlurTable(Table):
    """A detector whose boxes are blurred."""

    model: RelativePath
    label: str = Field(
        default="blur", pattern=r"^[a-z0-9-]{1,32}$", description="what it finds: faces, plates"
    )
    threshold: Rate = 0.3
    grow: float = Field(default=0.15, ge=0, le=2, description="share of the box added on each side")
    layout: Literal["boxes+scores", "detections", "yolo"] = "detections"
    normalised: bool = False
    classes: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="class numbers that count; none: all (detections: the sixth column; yolo)"
    )
    size: tuple[Annotated[int, Field(ge=16, le=4096)], Annotated[int, Field(ge=16, le=4096)]] | None = Field(
        default=None, description="height, width to run at, if the graph leaves them free"
    )
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: Literal["stretch", "letterbox", "letterbox-center", "letterbox-topleft"] = "stretch"
    pad: int = Field(default=0, ge=0, le=255, description="grey value around a letterboxed picture")


class CropsTable(Table):
    """Keeps only a region, as shares 0..1: x, y, width, height."""

    box: tuple[Rate, Rate, Rate, Rate]
    source: str = ""


class PrivacyTable(Table):
    """What happens to a picture before it is written anywhere."""

    masks: tuple[MaskTable, ...] = ()
    blur: tuple[BlurTable, ...] = ()
    crops: tuple[CropsTable, ...] = ()


class Privacy:
    """Applies the configured stage. `problem` says why nothing leaves, or is None."""

    def __init__(self, table: PrivacyTable) -> None:
        """Loads all detectors. Never raises for them: a stage that cannot work refuses every picture."""
        self._table = table
        self._detectors: list[Detector] = []
        self.problem: str | None = None
        for blur in table.blur:
            try:
                self._detectors.append(Detector(blur))
            except PrivacyError as error:
                self.problem = str(error)
                _LOG.error("privacy_closed", extra={"fields": {"problem": self.problem}})

    def apply(self, image: Image, *, source: str) -> tuple[Image, list[str], bool]:
        """Masks, blurs and crops a picture.

        Args:
            image: [H,W,3] uint8 RGB, never written to.
            source: masks and crops may be those of one source.

        Returns:
            The picture that may leave, what was done to it, and whether a pixel changed.

        Raises:
            PrivacyError: the stage cannot do its work.
        """
        # First of all: it fails closed.
        if self.problem is not None:
            raise PrivacyError(self.problem)
        labels: list[str] = []
        result = image
        masks = [mask.box for mask in self._table.masks if mask.source in ("", source)]
        boxes = [detector.find(image) for detector in self._detectors]
        if masks or any(len(found) for found in boxes):
            result = image.copy()
        for box in masks:
            x0, y0, x1, y1 = _pixels(box, image)
            result[y0:y1, x0:x1] = 0
        if masks:
            labels.append("mask")
        for detector, found in zip(self._detectors, boxes, strict=True):
            _blur(result, found)
            labels.append(f"blur:{detector.label}:{len(found)}")
        # Last, because boxes and masks are in coordinates of the whole picture.
        region = self.region(image, source=source)
        if region is not None:
            x0, y0, x1, y1 = region
            result = np.ascontiguousarray(result[y0:y1, x0:x1])
            labels.append("crop")
        return result, labels, result is not image

    def region(self, image: Image, *, source: str) -> tuple[int, int, int, int] | None:
        """Returns the part of a picture that `apply` keeps, x0, y0, x1, y1 in pixels; None if it is whole.

        Raises:
            PrivacyError: nothing of the picture is kept.
        """
        for crop in self._table.crops:
            if crop.source in ("", source):
                x0, y0, x1, y1 = _pixels(crop.box, image)
                if x1 <= x0 or y1 <= y0:
                    raise PrivacyError(
                        f"crop {crop.box} keeps nothing of a picture of {image.shape[1]}x{image.shape[0]}"
                    )
                return x0, y0, x1, y1
        return None


class Detector:
    """Runs an ONNX detector of things to blur, in one of three output layouts.

    detections: one output [N,5+] or [1,N,5+] of rows x0, y0, x1, y1, score, class, ...
    boxes+scores: [1,N,4] corners and [1,N] or [1,N,2] scores (the last column counts).
    yolo: one output [1,4+C,N] of centre x, centre y, width, height, then C class scores.
    Coordinates are in pixels of the detector's input, or 0..1 where `normalised`.
    """

    def __init__(self, table: BlurTable) -> None:
        """Loads the model and runs it once.

        Raises:
            PrivacyError: the model is missing, or ONNX Runtime refuses it.
        """
        self.label = table.label
        self._table = table
        self._session = _load(table.model)
        self._input = self._session.get_inputs()[0]
        self._outputs = [output.name for output in self._session.get_outputs()]
        try:
            self._contract = _contract(self._input, table)
            blank = np.zeros((self._contract.height, self._contract.width, 3), np.uint8)
            # One run now: a model that fails does so at the start, not at the first face.
            self.find(blank)
        except (MisfireError, ValueError) as error:
            raise PrivacyError(f"blur model {table.model}: {error}") from error

    def find(self, image: Image) -> Boxes:
        """Finds what has to be blurred.

        Args:
            image: [H,W,3] uint8 RGB.

        Returns:
            [n,4] boxes in pixels of `image`, grown by the configured share.

        Raises:
            PrivacyError: the detector broke, or gave values that are not finite.
        """
        try:
            values = self._session.run(self._outputs, {self._input.name: to_tensor(image, self._contract)})
            boxes, scores = _parse(values, self._table.layout, self._table.classes)
        except PrivacyError:
            raise
        except Exception as error:
            raise PrivacyError(f"blur model {self._table.model}: {error}") from error
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise PrivacyError(f"blur model {self._table.model}: gave values that are not finite")
        kept = boxes[scores >= self._table.threshold]
        return self._grow(self._to_image(kept, image))

    def _to_image(self, boxes: Boxes, image: Image) -> Boxes:
        """Undoes the resize rule."""
        contract = self._contract
        if self._table.normalised:
            boxes = boxes * np.asarray([contract.width, contract.height] * 2, np.float32)
        return Placement.of(image.shape[1], image.shape[0], contract).to_image(boxes)

    def _grow(self, boxes: Boxes) -> Boxes:
        size = (boxes[:, 2:] - boxes[:, :2]) * np.float32(self._table.grow)
        return np.concatenate([boxes[:, :2] - size, boxes[:, 2:] + size], axis=1)


def _load(model: Path) -> Any:
    if not model.is_file():
        raise PrivacyError(f"blur model {model} is not there; no picture leaves without it")
    try:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        available = ort.get_available_providers()
        wanted = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
        return ort.InferenceSession(str(model), options, providers=wanted)
    except Exception as error:
        raise PrivacyError(
            f"blur model {model} does not load: {str(error).strip().splitlines()[0]}"
        ) from error


def _contract(graph_input: Any, table: BlurTable) -> InputContract:
    shape = graph_input.shape
    fixed = len(shape) == 4 and all(isinstance(size, int) for size in shape[2:])
    if len(shape) != 4 or not (fixed or table.size):
        raise PrivacyError(
            f"input {graph_input.name!r} is {shape}; expected [1,C,H,W] with fixed H and W, or a `size`"
        )
    height, width = table.size or shape[2:]
    return InputContract(
        name=graph_input.name,
        height=height,
        width=width,
        color=table.color,
        dtype="uint8" if graph_input.type == "tensor(uint8)" else "float32",
        mean=table.mean,
        std=table.std,
        resize=table.resize,
        pad=table.pad,
    )


def _parse(
    values: Sequence[NDArray[Any]], layout: str, classes: tuple[int, ...]
) -> tuple[Boxes, NDArray[np.float32]]:
    """Returns [n,4] corners and [n] scores of the classes that count; all classes if none is named."""
    arrays = [np.asarray(value, np.float32) for value in values]
    if layout == "boxes+scores":
        boxes = next((a for a in arrays if a.shape[-1] == 4), None)
        scores = next((a for a in arrays if a is not boxes), None)
        if boxes is None or scores is None:
            raise PrivacyError("layout boxes+scores needs two outputs, one of them [...,4]")
        flat = boxes.reshape(-1, 4)
        return flat, scores.reshape(len(flat), -1)[:, -1] if len(flat) else np.zeros(0, np.float32)
    if layout == "yolo":
        rows = arrays[0].reshape(arrays[0].shape[-2], -1).T
        if rows.shape[1] < 5:
            raise PrivacyError(f"layout yolo needs [1,4+C,N], got {list(arrays[0].shape)}")
        if classes and max(classes) >= rows.shape[1] - 4:
            raise PrivacyError(f"class {max(classes)}: the model tells {rows.shape[1] - 4} apart, from 0 on")
        scores = rows[:, 4:][:, list(classes)] if classes else rows[:, 4:]
        half = rows[:, 2:4] / 2
        return np.concatenate([rows[:, :2] - half, rows[:, :2] + half], axis=1), scores.max(1)
    if arrays[0].shape[-1] < 5:
        raise PrivacyError(f"layout detections needs rows of at least 5, got {list(arrays[0].shape)}")
    rows = arrays[0].reshape(-1, arrays[0].shape[-1])
    if not classes:
        return rows[:, :4], rows[:, 4]
    if rows.shape[1] < 6:
        raise PrivacyError(f"classes need rows of at least 6, got {list(arrays[0].shape)}")
    counts = np.isin(rows[:, 5], classes)
    return rows[counts, :4], rows[counts, 4]


def _blur(image: Image, boxes: Boxes) -> None:
    """Replaces each box by at most 8x8 averages, in place: nothing finer is left to restore."""
    height, width = image.shape[:2]
    for box in boxes:
        # Outwards: a pixel that is partly inside is blurred.
        x0, y0 = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
        x1, y1 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
        if x1 <= x0 or y1 <= y0:
            continue
        region = image[y0:y1, x0:x1]
        # INTER_AREA averages all pixels; other kinds would keep single ones.
        coarse = cv2.resize(region, (min(8, x1 - x0), min(8, y1 - y0)), interpolation=cv2.INTER_AREA)
        image[y0:y1, x0:x1] = cv2.resize(coarse, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)


def _pixels(box: tuple[float, float, float, float], image: Image) -> tuple[int, int, int, int]:
    """Turns shares of the picture into x0, y0, x1, y1, rounded outwards."""
    height, width = image.shape[:2]
    x, y, w, h = box
    x1, y1 = min(width, int(np.ceil((x + w) * width))), min(height, int(np.ceil((y + h) * height)))
    # int() rounds down, which is outwards at the top left.
    return int(x * width), int(y * height), x1, y1
