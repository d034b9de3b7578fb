"""Defines `misfire labels`: its commands and their order in the help."""

from __future__ import annotations

import typer

from misfire_fleet.commands.labelling.tools import pull, push, status
from misfire_fleet.commands.labelling.vote import vote

app = typer.Typer(
    name="labels",
    help="Label samples: votes of models, and label tools.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
for _command in (push, pull, status, vote):
    app.command()(_command)


@app.callback()
def labels() -> None:
    """Label samples: votes of models, and label tools."""
