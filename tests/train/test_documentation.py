"""Names that a reader looks for are documented; --doctest-modules checks that their examples are right."""

from __future__ import annotations

import doctest
from pathlib import Path

import misfire_train
from misfire_train import scores
from misfire_train.scores import SCORES


def test_the_four_names_of_a_notebook_each_have_an_example() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    for function in (misfire_train.attach, misfire_train.evaluate, misfire_train.select, scores.compute):
        (found,) = finder.find(function, function.__name__)
        assert found.examples, function.__name__


def test_the_documentation_lists_every_score() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scores.md").read_text(encoding="utf-8")
    missing = [name for name in (*SCORES, "vaal", "ta_vaal", "ta_vaal_ranker") if f"`{name}`" not in page]
    assert not missing
