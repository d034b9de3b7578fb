"""Defines the choices that command line, configuration and bundles share, as types that `--help` prints.

This module imports nothing of misfire, so that a command's help need not load what the command uses.
"""

from __future__ import annotations

from typing import Literal

TaskName = Literal[
    "classification", "regression", "keypoints", "segmentation", "detection", "multi-label", "custom"
]
Precision = Literal["fp32", "fp16", "int8"]
Provider = Literal["auto", "cpu", "cuda", "tensorrt-provider", "tensorrt"]
"""What runs a bundle's graph. `auto` takes the fastest that works here."""
MqttVersion = Literal["5", "3.1.1"]
