"""Defines what every label tool does: takes pictures, reports labels that changed, and counts what it has.

    store --ExportItem--> LabelTool.push --> tasks --people--> LabelTool.changes --ImportedLabel--> ledger

All three can be ended at any instruction and run again: a task is looked up by its sample before it is
created, and a label that was recorded before is not recorded again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from misfire_fleet.labels.formats.base import ExportItem, ImportedLabel, Problem


@dataclass
class Pushed:
    """Counts what a push did.

    Attributes:
        created: tasks that are new.
        present: samples whose task was there already.
        predictions: answers of vehicles that are new, with the tasks or to tasks that were there.
        refreshed: tasks whose picture's address was replaced.
        duplicates_removed: second tasks or predictions of a sample that nobody had worked on.
        duplicates_kept: second tasks of a sample in which both have a person's work.
        left_out: what was not sent, by reason.
    """

    created: int = 0
    present: int = 0
    predictions: int = 0
    refreshed: int = 0
    duplicates_removed: int = 0
    duplicates_kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Changes:
    """Holds labels that changed in the tool.

    Attributes:
        labels: one per sample and annotator, or more if an annotator made more.
        problems: annotations that are no labels.
        until: every earlier change was told; None if there was none.
        skipped: tasks that their annotators skipped.
        foreign: annotations of tasks that are no samples of any fleet.
    """

    labels: tuple[ImportedLabel, ...] = ()
    problems: tuple[Problem, ...] = ()
    until: datetime | None = None
    skipped: int = 0
    foreign: int = 0


@dataclass(frozen=True)
class ToolStatus:
    """Counts what a tool has.

    Attributes:
        tasks: of the project.
        annotated: tasks with at least one submitted annotation.
        annotations: submitted.
        skipped: annotations by which a task was skipped.
        predictions: answers of vehicles, and others.
    """

    tasks: int
    annotated: int
    annotations: int
    skipped: int
    predictions: int


class LabelTool(Protocol):
    """Talks to one project of a label tool.

    Every method raises LabelToolError if the tool refuses something, and LabelToolUnavailableError if it does
    not work now; then the call can be repeated.
    """

    @property
    def source(self) -> str:
        """Returns the name of the tool in label records."""

    @property
    def place(self) -> str:
        """Returns server and project, for messages."""

    @property
    def identity(self) -> str:
        """Returns what no other project is called, also none of a new server at the same address."""

    def push(self, items: Iterable[ExportItem]) -> Pushed:
        """Creates the tasks that are missing, in the order of the items."""

    def changes(self, since: datetime | None) -> Iterator[Changes]:
        """Yields the labels that changed at or after a time, oldest first; None yields all."""

    def samples(self) -> Iterator[list[str]]:
        """Yields the ids of the samples that have a task, in groups."""

    def status(self) -> ToolStatus:
        """Returns the tool's own counts."""
