"""Defines the errors of export.

ExportError (a MisfireError)   catch this; nothing was written
├── TraceError                 a torch model cannot become a graph: names the layer or operator
├── GraphError                 an ONNX graph cannot be used: names the node, input or output
├── LabelError                 classes of data and model do not fit: names both
├── OutputError                an output holds NaN or infinity: names the output and the image
├── ParityError                graph and trained model differ: names the output and the image
├── CalibrationError           too few frames to calibrate on: gives the number needed
├── PrecisionError             a graph cannot be made fp16 or int8
└── ConformanceError           TensorRT's parser or builder refuses the graph: names the node
"""

from __future__ import annotations

from misfire_runtime.errors import MisfireError


class ExportError(MisfireError):
    """Is the base of all; nothing was written."""


class TraceError(ExportError):
    """Is raised if a torch model cannot become a graph."""


class GraphError(ExportError):
    """Is raised if an ONNX graph cannot be used."""


class LabelError(ExportError):
    """Is raised if the classes of the data are not the model's, or in another order."""


class OutputError(ExportError):
    """Is raised if an output holds NaN or infinity."""


class ParityError(ExportError):
    """Is raised if the graph's answers are not the trained model's."""


class CalibrationError(ExportError):
    """Is raised if there are too few frames to calibrate on."""


class PrecisionError(ExportError):
    """Is raised if a graph cannot be made fp16 or int8."""


class ConformanceError(ExportError):
    """Is raised if TensorRT's parser or builder refuses the graph."""
