"""The choices that `--help` prints are the keys of the tables that the commands use."""

from __future__ import annotations

from typing import get_args

from misfire_fleet.demo.plan import PLANS, DemoDataset
from misfire_train.data.corruptions import FAMILIES
from misfire_train.experiments.wrong_prediction import METHODS as EXPERIMENT_METHODS
from misfire_train.heads.recipes import RECIPES
from misfire_train.options import (
    CorruptionName,
    ExperimentMethod,
    HeadRecipeName,
    JudgedPart,
    SelectionMethod,
)
from misfire_train.runs import PARTS
from misfire_train.selection.choosing import METHODS


def test_choices_of_the_command_line_are_those_of_the_tables() -> None:
    assert get_args(HeadRecipeName) == (*RECIPES, "none")
    assert get_args(SelectionMethod) == tuple(METHODS)
    assert get_args(CorruptionName) == tuple(FAMILIES)
    assert get_args(DemoDataset) == tuple(PLANS)
    assert tuple(method.value for method in ExperimentMethod) == EXPERIMENT_METHODS


def test_a_run_is_judged_on_parts_that_it_has() -> None:
    assert set(get_args(JudgedPart)) <= {*PARTS, "test"}
