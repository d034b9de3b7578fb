"""Makes detectors as their exporters write them, at 96x64 with seeded weights.

Every network is a strided convolution per level and the head of its family, so a file has the family's
operators, names and shapes in some dozen nodes. `truth` re-reads the file's own outputs, or for one that
chooses boxes itself, what its head gives before that.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from misfire_train.data import Examples
from misfire_train.data.images import ImageArray
from proving_ground.detector_truth import (
    CLASSES,
    HEIGHT,
    V5_ANCHORS,
    WIDTH,
    Array,
    cells,
    read_anchored,
    read_corners,
    read_nanodet,
    read_parts,
    read_picodet,
    read_queries,
    read_rows,
    read_v5,
    read_v5_maps,
    read_v8,
    read_yolox,
)


def pictures(count: int, *, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Examples:
    """Returns coloured rectangles on noise, without labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 120, (count, height, width, 3)).astype(np.uint8)
    for image in images:
        for _ in range(int(rng.integers(1, 5))):
            x, y = int(rng.integers(0, width - 8)), int(rng.integers(0, height - 8))
            w, h = int(rng.integers(8, width // 2)), int(rng.integers(8, height // 2))
            image[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    ids = tuple(f"picture-{i}" for i in range(count))
    return Examples(ImageArray(images), np.zeros((count, 0), np.float32), ids, ids)


class Pyramid(nn.Module):
    """Maps [N,3,H,W] to 8 channels for each stride."""

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__()
        first = strides[0]
        self.first = nn.Conv2d(3, 8, first, stride=first)
        self.more = nn.ModuleList(nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in strides[1:])

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns the answer."""
        maps = [torch.tanh(4 * self.first(image))]
        for layer in self.more:
            maps.append(torch.tanh(2 * layer(maps[-1])))
        return maps


class Head(nn.Module):
    """Is one 1x1 convolution a level; the last `bins` x 4 channels are distributions of short distances."""

    def __init__(self, levels: int, channels: int, *, bins: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, channels, 1) for _ in range(levels))
        for layer in self.layers:
            if bins:
                layer.bias.data[-4 * bins :] -= torch.arange(bins).repeat(4) * 0.5

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Returns the answer."""
        return [3 * layer(part) for layer, part in zip(self.layers, maps, strict=True)]


class Yolo8(nn.Module):
    """Is YOLOv8's head: DFL as a convolution with fixed weights, centres and sizes, classes as sigmoids."""

    anchors: Tensor
    strides: Tensor

    def __init__(self, *, corners: bool = False) -> None:
        super().__init__()
        self.pyramid, self.corners = Pyramid((8, 16, 32)), corners
        self.boxes, self.classes = Head(3, 64, bins=16), Head(3, CLASSES)
        self.dfl = nn.Conv2d(16, 1, 1, bias=False)
        self.dfl.weight.data[:] = torch.arange(16.0).view(1, 16, 1, 1)
        grid = torch.from_numpy(cells((8, 16, 32), offset=0.5)).float().T
        self.register_buffer("anchors", grid[None, :2] / grid[2])
        self.register_buffer("strides", grid[None, 2:])

    def forward(self, image: Tensor) -> Tensor:
        """Returns the answer."""
        maps = self.pyramid(image)
        levels = [torch.cat(p, 1).flatten(2) for p in zip(self.boxes(maps), self.classes(maps), strict=True)]
        box, cls = torch.cat(levels, 2).split((64, CLASSES), 1)
        count = box.shape[2]
        sides = self.dfl(box.view(-1, 4, 16, count).transpose(2, 1).softmax(1)).view(-1, 4, count)
        left_top, right_bottom = sides.chunk(2, 1)
        first, last = self.anchors - left_top, self.anchors + right_bottom
        parts = (first, last) if self.corners else ((first + last) / 2, last - first)
        return torch.cat((torch.cat(parts, 1) * self.strides, cls.sigmoid()), 1)


class Yolo26(Yolo8):
    """Is an end-to-end head: no suppression, two TopK."""

    def __init__(self) -> None:
        super().__init__(corners=True)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the answer."""
        answer = super().forward(image).permute(0, 2, 1)
        boxes, scores = answer.split((4, CLASSES), -1)
        index = scores.amax(-1).topk(20)[1].unsqueeze(-1)
        boxes, scores = boxes.gather(1, index.repeat(1, 1, 4)), scores.gather(1, index.repeat(1, 1, CLASSES))
        best, index = scores.flatten(1).topk(20)
        boxes = boxes.gather(1, (index // CLASSES).unsqueeze(-1).repeat(1, 1, 4))
        return torch.cat((boxes, best.unsqueeze(-1), (index % CLASSES).unsqueeze(-1).float()), -1)


class Yolo5(nn.Module):
    """Is YOLOv5's head, decoded or as three maps."""

    def __init__(self, *, maps: bool = False) -> None:
        super().__init__()
        self.pyramid, self.head, self.maps = Pyramid((8, 16, 32)), Head(3, 3 * (5 + CLASSES)), maps
        for layer in self.head.layers if maps else ():
            # Published anchors are as large as this picture: the network has to shrink them.
            layer.bias.data.view(3, -1)[:, 2:4] -= 1

    def forward(self, image: Tensor) -> Any:
        """Returns the answer."""
        rows, raw = [], []
        for level, (s, part) in enumerate(zip((8, 16, 32), self.head(self.pyramid(image)), strict=True)):
            h, w = part.shape[2:]
            level_map = part.view(-1, 3, 5 + CLASSES, h, w).permute(0, 1, 3, 4, 2).contiguous()
            raw.append(level_map)
            anchors = torch.tensor(V5_ANCHORS[level]).float().view(1, 3, 1, 1, 2) / 8
            y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            grid = torch.stack((x, y), 2).float()
            xy, wh, rest = level_map.sigmoid().split((2, 2, 1 + CLASSES), 4)
            xy, wh = (xy * 2 + (grid - 0.5)) * s, (wh * 2) ** 2 * anchors
            rows.append(torch.cat((xy, wh, rest), 4).view(-1, 3 * h * w, 5 + CLASSES))
        return tuple(raw) if self.maps else torch.cat(rows, 1)


class Yolox(nn.Module):
    """Is YOLOX's head: raw places, objectness and classes after their sigmoids."""

    grid: Tensor

    def __init__(self, *, decoded: bool = False) -> None:
        super().__init__()
        self.pyramid, self.decoded = Pyramid((8, 16, 32)), decoded
        self.reg, self.obj, self.cls = Head(3, 4), Head(3, 1), Head(3, CLASSES)
        self.register_buffer("grid", torch.from_numpy(cells((8, 16, 32), offset=0.0)).float())

    def forward(self, image: Tensor) -> Tensor:
        """Returns the answer."""
        maps = self.pyramid(image)
        levels = [
            torch.cat((r / 4, o.sigmoid(), c.sigmoid()), 1).flatten(2)
            for r, o, c in zip(self.reg(maps), self.obj(maps), self.cls(maps), strict=True)
        ]
        rows = torch.cat(levels, 2).permute(0, 2, 1)
        if not self.decoded:
            return rows
        xy = rows[..., :2] * self.grid[:, 2:] + self.grid[:, :2]
        wh = torch.exp(rows[..., 2:4]) * self.grid[:, 2:]
        return torch.cat((xy, wh, rows[..., 4:]), -1)


class Nanodet(nn.Module):
    """Is NanoDet-Plus: sigmoids and raw distributions in one tensor, four levels."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid, self.head = Pyramid((8, 16, 32, 64)), Head(4, CLASSES + 32, bins=8)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the answer."""
        rows = []
        for part in self.head(self.pyramid(image)):
            scores, sides = part.split((CLASSES, 32), 1)
            rows.append(torch.cat((scores.sigmoid(), sides), 1).flatten(2))
        return torch.cat(rows, 2).permute(0, 2, 1)


class Picodet(nn.Module):
    """Is PicoDet without post-processing: four class maps, then four of distributions."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid, self.head = Pyramid((8, 16, 32, 64)), Head(4, CLASSES + 32, bins=8)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Returns the answer."""
        parts = [part.split((CLASSES, 32), 1) for part in self.head(self.pyramid(image))]
        scores = [cls.sigmoid().flatten(2).permute(0, 2, 1) for cls, _ in parts]
        return (*scores, *(sides.flatten(2).permute(0, 2, 1) for _, sides in parts))


class Queries(nn.Module):
    """Is RT-DETR's end: queries chosen by a first TopK, boxes refined from references, a second TopK."""

    references: Tensor

    def __init__(self, *, raw: bool = False) -> None:
        super().__init__()
        self.pyramid, self.raw = Pyramid((8, 16, 32)), raw
        self.encoder, self.classes, self.boxes = nn.Linear(8, CLASSES), nn.Linear(8, CLASSES), nn.Linear(8, 4)
        grid = torch.from_numpy(cells((8, 16, 32), offset=0.5)).float()
        centre = grid[:, :2] / torch.tensor([WIDTH, HEIGHT])
        size = 2 * grid[:, 2:] / torch.tensor([WIDTH, HEIGHT])
        self.register_buffer("references", torch.logit(torch.cat((centre, size), 1).clamp(0.05, 0.95)))

    def forward(self, image: Tensor, orig_target_sizes: Tensor | None = None) -> Any:
        """Returns the answer."""
        memory = torch.cat([part.flatten(2) for part in self.pyramid(image)], 2).permute(0, 2, 1)
        index = self.encoder(memory).max(-1)[0].topk(24)[1].unsqueeze(-1)
        reference = self.references.expand(memory.shape[0], -1, -1).gather(1, index.repeat(1, 1, 4))
        memory = memory.gather(1, index.repeat(1, 1, 8))
        logits = 4 * self.classes(memory)
        boxes = (0.5 * self.boxes(memory) + reference).sigmoid()
        if self.raw:
            return boxes, logits
        x, y, w, h = boxes.unbind(-1)
        corners = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), -1)
        assert orig_target_sizes is not None
        corners = corners * orig_target_sizes.repeat(1, 2).unsqueeze(1)
        best, index = logits.sigmoid().flatten(1).topk(24)
        labels, index = index % CLASSES, index // CLASSES
        return labels, corners.gather(1, index.unsqueeze(-1).repeat(1, 1, 4)), best


class Chosen(nn.Module):
    """Gives boxes that come straight out of a layer: nothing before the choice can be seen."""

    def __init__(self, *, parts: bool = False) -> None:
        super().__init__()
        self.pyramid, self.layer, self.parts = Pyramid((8,)), nn.Linear(8, 12 * 6), parts

    def forward(self, image: Tensor) -> Any:
        """Returns the answer."""
        rows = 2 * self.layer(5 * self.pyramid(image)[0].mean((2, 3))).view(-1, 12, 6)
        first, size = rows[..., :2].sigmoid() * 0.6, rows[..., 2:4].sigmoid() * 0.3 + 0.05
        score = rows[..., 4].sigmoid()
        label = (rows[..., 5].sigmoid() * (CLASSES - 0.01)).floor()
        if self.parts:  # TensorFlow's: y first, in 0..1, classes from 1, a count
            corners = torch.cat((first, first + size), -1)
            count = (score > 0.2).sum(1).float()
            return corners, label + 1, score, count
        scale = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]).float()
        corners = torch.cat((first, first + size), -1) * scale
        return torch.cat((corners, score[..., None], label[..., None]), -1)


class Anchored(nn.Module):
    """Is an SSD: softmax with a background, boxes in 0..1 by corners, boxes a cell that no pyramid has."""

    centres: Tensor
    sizes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.pyramid, self.head = Pyramid((8, 16)), Head(2, 2 * (CLASSES + 5))
        grid = torch.from_numpy(cells((8, 16), offset=0.5)).float()
        self.register_buffer("centres", grid[:, :2].repeat_interleave(2, 0))
        self.register_buffer("sizes", grid[:, 2:].repeat_interleave(2, 0))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the answer."""
        parts = [
            p.permute(0, 2, 3, 1).reshape(p.shape[0], -1, CLASSES + 5) for p in self.head(self.pyramid(image))
        ]
        rows = torch.cat(parts, 1)
        bias = torch.tensor([3.0, 0, 0, 0])
        scores = (rows[..., : CLASSES + 1] + bias).softmax(-1)
        centre = self.centres + rows[..., CLASSES + 1 : CLASSES + 3]
        half = self.sizes * torch.exp(rows[..., CLASSES + 3 :] / 6)
        scale = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]).float()
        return scores, torch.cat((centre - half, centre + half), -1) / scale


@dataclass(frozen=True)
class Case:
    """Describes one exporter's file.

    Attributes:
        layout: its name here.
        outputs, inputs: names that the exporter gives.
        truth: (the outputs of the file, or of `raw`) -> boxes [P,4] by corners, scores [P,K].
        raw: the head alone, of a file that chooses boxes by itself.
        final: only chosen boxes can be seen.
        suppression: of the box rule that the bundle should have.
        stated: layout that the user has to name, because two fit.
    """

    name: str
    layout: str
    module: Callable[[], nn.Module]
    outputs: tuple[str, ...]
    truth: Callable[..., tuple[Array, Array]]
    raw: Callable[[], nn.Module] | None = None
    final: bool = False
    suppression: float = 0.6
    inputs: tuple[str, ...] = ("images",)
    stated: str = ""


CASES = (
    Case("yolov8", "ultralytics", Yolo8, ("output0",), read_v8),
    Case(
        "yolo26",
        "ultralytics",
        Yolo26,
        ("output0",),
        read_corners,
        raw=lambda: Yolo8(corners=True),
        suppression=1.0,
    ),
    Case("yolov5", "yolov5", Yolo5, ("output0",), read_v5),
    Case(
        "yolov5-maps",
        "yolov5",
        lambda: Yolo5(maps=True),
        ("p3", "p4", "p5"),
        read_v5_maps,
        stated="yolov5",
    ),
    Case("yolox", "yolox", Yolox, ("output",), read_yolox),
    Case("yolox-decoded", "yolox", lambda: Yolox(decoded=True), ("output",), read_v5),
    Case("nanodet", "nanodet", Nanodet, ("output",), read_nanodet),
    Case("picodet", "picodet", Picodet, tuple(f"transpose_{i}.tmp_0" for i in range(8)), read_picodet),
    Case(
        "rt-detr",
        "rt-detr",
        Queries,
        ("labels", "boxes", "scores"),
        read_queries,
        raw=lambda: Queries(raw=True),
        suppression=1.0,
        inputs=("images", "orig_target_sizes"),
    ),
    Case("rf-detr", "rf-detr", lambda: Queries(raw=True), ("dets", "labels"), read_queries, suppression=1.0),
    Case("chosen", "chosen-rows", Chosen, ("output0",), read_rows, final=True, suppression=1.0),
    Case(
        "ssd",
        "chosen-parts",
        lambda: Chosen(parts=True),
        ("detection_boxes", "detection_classes", "detection_scores", "num_detections"),
        read_parts,
        final=True,
        suppression=1.0,
    ),
    Case("rfb", "boxes-and-scores", Anchored, ("scores", "boxes"), read_anchored),
)
BY_NAME = {case.name: case for case in CASES}


def save(
    module: nn.Module,
    path: Path,
    *,
    outputs: Sequence[str],
    inputs: Sequence[str] = ("images",),
    batch: int = 1,
) -> Path:
    """Writes a module as its project would: torch's script exporter, opset 17, a fixed batch of one."""
    args: list[Tensor] = [torch.rand(batch, 3, HEIGHT, WIDTH)]
    if len(inputs) > 1:
        args.append(torch.tensor([[WIDTH, HEIGHT]]))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(args),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=list(inputs),
            output_names=list(outputs),
        )
    path.write_bytes(buffer.getvalue())
    return path


def file_of(case: Case, path: Path) -> Path:
    """Writes the file of a case."""
    return save(seeded(case.module), path, outputs=case.outputs, inputs=case.inputs)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Returns a module whose weights depend on nothing else; two heads of one family get the same ones."""
    torch.manual_seed(3)
    return make()


def expected(case: Case, path: Path, image: NDArray[np.float32], folder: Path) -> tuple[Array, Array]:
    """Returns boxes and scores of a picture [1,3,H,W], read by numpy from the file or from its head."""
    if case.raw is not None:
        names = ("dets", "labels") if case.layout == "rt-detr" else ("output0",)
        path = save(seeded(case.raw), folder / "raw.onnx", outputs=names)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return case.truth(*session.run(None, {"images": image}))


def with_suppression(path: Path, *, plugin: bool = False) -> Path:
    """Puts a suppression behind a YOLOv5 file, as `NonMaxSuppression` or as TensorRT's plug-in."""
    model = onnx.load(path)
    graph = model.graph
    for name, value in {
        "four": np.array([4], np.int64),
        "five": np.array([5], np.int64),
        "zero": np.array([0], np.int64),
        "end": np.array([99], np.int64),
        "two": np.array([2], np.int64),
        "most": np.array([50], np.int64),
        "iou": np.array([0.45], np.float32),
        "least": np.array([0.25], np.float32),
        "half": np.array(0.5, np.float32),
    }.items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    nodes = [
        helper.make_node("Slice", ["output0", "zero", "four", "two"], ["xywh"]),
        helper.make_node("Slice", ["output0", "four", "five", "two"], ["objectness"]),
        helper.make_node("Slice", ["output0", "five", "end", "two"], ["class_scores"]),
        helper.make_node("Mul", ["objectness", "class_scores"], ["all_scores"]),
    ]
    del graph.output[:]
    if plugin:
        names = ["num_dets", "det_boxes", "det_scores", "det_classes"]
        settings = {"iou_threshold": 0.5, "score_threshold": 0.35, "max_output_boxes": 100, "box_coding": 1}
        nodes.append(
            helper.make_node("EfficientNMS_TRT", ["xywh", "all_scores"], names, domain="TRT", **settings)
        )
        graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
        model.opset_import.append(helper.make_opsetid("TRT", 1))
    else:
        nodes += [
            helper.make_node("Transpose", ["all_scores"], ["by_class"], perm=[0, 2, 1]),
            helper.make_node(
                "NonMaxSuppression",
                ["xywh", "by_class", "most", "iou", "least"],
                ["picked"],
                center_point_box=1,
            ),
            helper.make_node("Slice", ["picked", "two", "end", "one_axis"], ["rows"]),
            helper.make_node("Squeeze", ["rows", "one_axis"], ["row"]),
            helper.make_node("Squeeze", ["output0", "zero"], ["single"]),
            helper.make_node("Gather", ["single", "row"], ["detections"], axis=0),
        ]
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "one_axis"))
        graph.output.append(helper.make_tensor_value_info("detections", TensorProto.FLOAT, None))
    graph.node.extend(nodes)
    onnx.save(model, path)
    return path
