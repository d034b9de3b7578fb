"""Shows long work as a bar on a terminal and as plain lines elsewhere, on stderr; results go to stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Reporter:
    """Reports progress to a person. quiet: prints nothing."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.quiet = quiet
        self._bar: Progress | None = None

    def line(self, text: str) -> None:
        """Prints one line, above the bar if there is one."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    @contextmanager
    def steps(self, what: str, total: int) -> Iterator[Steps]:
        """Shows a bar of `total` steps on a terminal; nothing elsewhere."""
        if self.quiet or not self.stream.isatty():
            yield Steps(None, TaskID(0))
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        bar = Progress(*columns, TimeRemainingColumn(), console=Console(file=self.stream), transient=True)
        with bar:
            self._bar = bar
            try:
                yield Steps(bar, bar.add_task(what, total=total))
            finally:
                self._bar = None


class Steps:
    """Counts steps on a bar, or nowhere."""

    def __init__(self, bar: Progress | None, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def advance(self, count: int = 1) -> None:
        """Counts `count` more steps as done."""
        if self._bar is not None:
            self._bar.advance(self._task, count)
