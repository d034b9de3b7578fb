"""Converts dataclasses, mappings and numpy numbers to plain JSON values; NaN and infinity become None."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def json_value(value: Any) -> Any:
    """Returns the same value, fit for `json.dumps(..., allow_nan=False)`."""
    if isinstance(value, Mapping):
        return {str(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "item"):
        return json_value(value.item())
    return value
