"""The examples in the docstrings run and are true."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = ("command", "measure.folds", "sources.inputs", "sources.labels", "graph.rename")


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str) -> None:
    module = importlib.import_module(f"misfire_export.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
