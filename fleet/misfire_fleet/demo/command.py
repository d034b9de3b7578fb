"""Implements `misfire demo`: the whole loop with defaults for everything, ending in one table."""

from __future__ import annotations

import json
import logging
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from misfire_fleet.demo.plan import DemoDataset, plan_for
from misfire_runtime.errors import ConfigError
from misfire_train.options import DataFolder

if TYPE_CHECKING:
    from rich.table import Table

    from misfire_fleet.demo.loop import Result


def demo(
    *,
    dataset: Annotated[DemoDataset, typer.Option(help="Drive through this data set.")] = "digits",
    data: DataFolder = None,
    out: Annotated[Path | None, typer.Option(help="Keep all files in this empty folder.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the console running until Ctrl-C.")] = False,
    seed: Annotated[int, typer.Option(help="Random seed.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as one JSON object.")] = False,
    embedded: Annotated[
        bool, typer.Option("--embedded-broker", help="Use amqtt even if mosquitto is installed.")
    ] = False,
) -> None:
    """Run the whole loop on embedded defaults."""
    from rich.console import Console

    from misfire_fleet.demo.broker import find_mosquitto
    from misfire_fleet.demo.loop import Demo
    from misfire_runtime.service.logs import logs_to

    plan = plan_for(dataset)
    progress = Console(stderr=True, highlight=False)
    with ExitStack() as stack:
        folder = (
            _folder(out) if out else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="misfire-")))
        )
        loop = Demo(
            folder,
            dataset=dataset,
            plan=plan,
            data=data,
            seed=seed,
            mosquitto=None if embedded else find_mosquitto(),
            say=lambda text: progress.print(f"[dim]·[/dim] {text}"),
        )
        stack.enter_context(logs_to(sys.stderr, level=logging.WARNING))
        with loop.running() as result:
            if as_json:
                typer.echo(json.dumps(result.as_dict()))
            else:
                Console().print(_table(result))
            if keep:
                progress.print("the console stays up; Ctrl-C ends it")
                _wait_for_signal()


def _wait_for_signal() -> None:
    """Waits for SIGINT or SIGTERM.

    Handlers are set for both: a shell starts background jobs with SIGINT ignored, and Python then raises no
    KeyboardInterrupt.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: ended.set())
    ended.wait()


def _folder(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: expected a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _table(result: Result) -> Table:
    from rich.table import Table

    table = Table(title=f"misfire demo: {result.dataset}", title_justify="left", show_header=False)
    ratio = result.failures_uploaded / result.failures_random if result.failures_random else float("inf")
    rows = [
        ("frames seen", f"{result.frames:,}"),
        ("uploaded, stored", f"{result.uploaded:,}, {result.stored:,}  ({result.bytes / 1024:,.1f} KiB)"),
        ("failures among the uploaded", f"{result.failures_uploaded:,}"),
        (
            "... in a random sample of that size",
            f"{result.failures_random:,.1f}  (uploads hold {ratio:.1f}x)",
        ),
        (
            f"{result.accuracy_name}, clean: before, after",
            _pair(result.accuracy_before_clean, result.accuracy_after_clean),
        ),
        (
            f"{result.accuracy_name}, shifted: before, after",
            _pair(result.accuracy_before_shifted, result.accuracy_after_shifted),
        ),
    ]
    for label, value in rows:
        table.add_row(label, value)
    return table


def _pair(before: float, after: float) -> str:
    return f"{before:.1%}, {after:.1%}  ({100 * (after - before):+.1f} points)"
