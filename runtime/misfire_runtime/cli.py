"""Runs the `misfire` command. Subcommands are loaded lazily: a vehicle never imports what only a server has.

Each row of COMMANDS names where a command lives and which extra it needs; it is imported when it is called.
The modules of commands import what they use inside their functions, so that `--help` is there at once.
A library that is missing because an extra is becomes one line that says what to install.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from misfire_runtime import __version__
from misfire_runtime.errors import MisfireError, MissingExtraError


@dataclass(frozen=True)
class Command:
    """Locates a command: `target` is "module:attribute", a function or a typer.Typer."""

    target: str
    extra: str
    help: str


COMMANDS = {
    "demo": Command("misfire_fleet.demo.command:demo", "all", "Run the whole loop on embedded defaults."),
    "data": Command("misfire_train.commands.data:app", "train", "List, fetch and inspect datasets."),
    "train": Command("misfire_train.commands.train:train", "train", "Train a model and its failure score."),
    "evaluate": Command(
        "misfire_train.judge.command:evaluate", "train", "Judge failure scores on held-out data."
    ),
    "select": Command("misfire_train.selection.command:select", "train", "Choose what to label next."),
    "experiment": Command("misfire_train.experiments.commands:app", "train", "Reproduce published numbers."),
    "export": Command("misfire_export.command:export", "export", "Turn a model into a verified bundle."),
    "bundle": Command("misfire_runtime.commands.bundle:app", "cpu", "Inspect and verify bundles."),
    "bench": Command("misfire_runtime.commands.bench:bench", "cpu", "Measure what a bundle's scores cost."),
    "run": Command(
        "misfire_runtime.commands.run:run", "cpu", "Score frames and upload the informative ones."
    ),
    "spool": Command("misfire_runtime.commands.spool:app", "cpu", "Inspect, empty and export a spool."),
    "doctor": Command(
        "misfire_runtime.commands.doctor:doctor", "cpu", "Check this machine for what a vehicle needs."
    ),
    "schemas": Command(
        "misfire_runtime.commands.schemas:schemas", "cpu", "Write the JSON Schemas of bundle and messages."
    ),
    "labels": Command(
        "misfire_fleet.commands.labelling.app:app",
        "fleet",
        "Label samples: votes of models, and label tools.",
    ),
    "fleet": Command("misfire_fleet.commands.app:app", "fleet", "Collect, show and simulate uploads."),
    "retrain": Command(
        "misfire_fleet.retrain.command:retrain", "all", "Train on with what the fleet uploaded."
    ),
}


def load(name: str) -> Any:
    """Imports the click command of that name.

    Raises MissingExtraError where a library that is not part of misfire is missing.
    """
    command = COMMANDS[name]
    module, attribute = command.target.split(":")
    try:
        target = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise missing_extra(name, error) from error
    if isinstance(target, typer.Typer):
        return get_command(target)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name)(target)
    return get_command(app)


def missing_extra(name: str, error: ModuleNotFoundError) -> Exception:
    """Returns the error that says what to install, or `error` itself if a module of misfire is missing."""
    missing = error.name or str(error)
    if missing.startswith("misfire_"):
        return error
    return MissingExtraError(
        f"`misfire {name}` needs {missing.split('.')[0]}, which is not installed: "
        f"pip install 'misfire[{COMMANDS[name].extra}]' -c constraints.txt"
    )


class LazyGroup(TyperGroup):
    """Knows its commands by name and help line; imports one when it runs."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command. Raises MissingExtraError if it uses a library that is not installed."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if ctx.invoked_subcommand not in COMMANDS:
                raise
            raise missing_extra(ctx.invoked_subcommand, error) from error

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns all names, also of commands whose extra is missing: those fail with a hint when called."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Returns the command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        return load(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes plain help, because rich's panel would import every command to list it."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"misfire {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print and exit."
    ),
) -> None:
    """Find the frames that a vehicle's perception model gets wrong, and turn them into a better model."""


def main() -> None:
    """Runs the command line. A MisfireError becomes one line on standard error, and exit status 1 or 2."""
    try:
        app()
    except MisfireError as error:
        typer.echo(f"misfire: {error}", err=True)
        sys.exit(2 if isinstance(error, MissingExtraError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
