"""Defines `misfire fleet`: its commands and their order in the help."""

from __future__ import annotations

import typer

from misfire_fleet.commands.accounts.tokens import tokens
from misfire_fleet.commands.accounts.users import users
from misfire_fleet.commands.candidates.bought import bought
from misfire_fleet.commands.candidates.gate import candidates, gate, publish
from misfire_fleet.commands.collect import collect
from misfire_fleet.commands.configure import configure
from misfire_fleet.commands.labelling.exporting import export, formats
from misfire_fleet.commands.labelling.importing import import_
from misfire_fleet.commands.offer_again import offer_again
from misfire_fleet.commands.rescue import backup, check, rebuild
from misfire_fleet.commands.retraining.lineage import lineage
from misfire_fleet.commands.retraining.loop import loop
from misfire_fleet.commands.scores import scores
from misfire_fleet.commands.serve import serve
from misfire_fleet.commands.simulate import simulate
from misfire_fleet.commands.snapshot import classes, snapshot, snapshots
from misfire_fleet.commands.steering.campaign import campaign
from misfire_fleet.commands.store import audit, delete, hold, holds, release, retention, status
from misfire_fleet.commands.truth import truth
from misfire_fleet.commands.verdicts import verdicts

app = typer.Typer(
    name="fleet",
    help="Collect, show and simulate uploads.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
for _command in (
    *(collect, serve, simulate, status, delete, hold, release, holds, retention, audit),
    *(check, backup, rebuild, offer_again, configure, snapshots, classes, export, formats),
    *(truth, verdicts, lineage, scores, gate, candidates, publish, bought, loop),
):
    app.command()(_command)
app.command("import")(import_)
app.add_typer(snapshot)
app.add_typer(campaign)
app.add_typer(users)
app.add_typer(tokens)
