"""The examples in the docstrings of objectives, scores, VAAL, gamma and experiments run as written."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

from misfire_train.scores import SCORES

PACKAGES = ("misfire_train.scores", "misfire_train.vaal", "misfire_train.experiments")
WITH_EXAMPLES = (
    "misfire_train.gamma",
    "misfire_train.objectives",
    "misfire_train.scores.computing",
    "misfire_train.scores.fitting",
    "misfire_train.scores.registry",
    "misfire_train.vaal.training",
)


def modules() -> list[str]:
    names = ["misfire_train.gamma", "misfire_train.objectives"]
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        names += [package, *(f"{package}.{module.name}" for module in pkgutil.iter_modules(path))]
    return names


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0 or name not in WITH_EXAMPLES


def test_the_documentation_lists_every_score() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scores.md").read_text(encoding="utf-8")
    missing = [name for name in (*SCORES, "vaal", "ta_vaal", "ta_vaal_ranker") if f"`{name}`" not in page]
    assert not missing
