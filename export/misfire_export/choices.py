"""Defines the choices of `misfire export` as types that its `--help` prints. Imports nothing, to be quick."""

from __future__ import annotations

from typing import Literal

Target = Literal["onnxruntime-x86", "tensorrt"]
"""The engine that an int8 graph is built for: each needs its own way of quantization."""
AnswerKind = Literal["auto", "logits", "probabilities", "sigmoid"]
"""How the output of a foreign graph is to be read."""
