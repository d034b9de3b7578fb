"""The examples in the docstrings of judge and selection do what they show."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "misfire_train.judge.metrics",
    "misfire_train.judge.gate",
    "misfire_train.judge.evaluating",
    "misfire_train.selection.choosing",
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
