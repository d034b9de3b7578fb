"""The examples in the docstrings of tasks, data, models, heads, judge and selection do what they show."""

from __future__ import annotations

import doctest
import importlib

import pytest

import misfire_train
from misfire_train import scores

MODULES = (
    "misfire_train.attaching",
    "misfire_train.data.corruptions",
    "misfire_train.data.loading",
    "misfire_train.data.splits",
    "misfire_train.heads.training",
    "misfire_train.judge.metrics",
    "misfire_train.judge.gate",
    "misfire_train.judge.evaluating",
    "misfire_train.models.cost",
    "misfire_train.scores.computing",
    "misfire_train.selection.choosing",
    "misfire_train.signals",
    "misfire_train.tasks.shapes",
    "misfire_train.tasks.tasks",
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_the_four_names_of_a_notebook_each_have_an_example_that_runs() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    for function in (misfire_train.attach, misfire_train.evaluate, misfire_train.select, scores.compute):
        (found,) = finder.find(function, function.__name__)
        assert found.examples, function.__name__
        assert doctest.DocTestRunner().run(found).failed == 0
