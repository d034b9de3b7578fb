"""Implements `misfire fleet configure`: changes a vehicle's configuration over the broker, prints the answer.

retained desired, reported --> next version --publish, retained--> vehicle --reported--> accepted, or the
reason A desired configuration is complete: `--set` changes the one that the broker retains, `--file` replaces
it.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_fleet.commands.options import (
    AsJson,
    BrokerOptions,
    show,
    with_options,
)
from misfire_runtime.errors import ConfigError

if TYPE_CHECKING:
    from misfire_runtime.messages import Desired, Reported

VehicleName = Annotated[str, typer.Argument(help="Configure the vehicle of this name in topics.")]
Wait = Annotated[float, typer.Option(min=0, help="Wait this many seconds for the vehicle's answer.")]


@with_options(at=BrokerOptions)
def configure(
    vehicle: VehicleName,
    *,
    at: BrokerOptions,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change TABLE.FIELD=VALUE over what is desired now; repeat it for several."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help='Replace what is desired now by all tables in this JSON file: {"limits": {...}, ...}.'
        ),
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(help="Run the bundle NAME@VERSION. Default: as before.")
    ] = None,
    wait: Wait = 30.0,
    as_json: AsJson = False,
) -> None:
    """Change a vehicle's configuration. Exit with 1 unless the vehicle accepts it in time."""
    from misfire_fleet.commands.vehicle_topics import VehicleTopics
    from misfire_runtime.config.desired import with_desired
    from misfire_runtime.config.tables import VehicleConfig
    from misfire_runtime.messages import Desired

    if not set_ and file is None and bundle is None:
        raise ConfigError("nothing to change: give --set, --file or --bundle")
    with VehicleTopics(at.connection(), fleet=at.fleet, vehicle=vehicle) as topics:
        last = topics.desired
        config: dict[str, Any] = copy.deepcopy(last.config) if last is not None else {}
        if file is not None:
            config = _read(file)
        for assignment in set_ or ():
            _assign(config, assignment)
        with_desired(VehicleConfig(), config)  # raises, naming the key, before anything is published
        label = bundle if bundle is not None or last is None else last.bundle
        wanted = Desired(version=topics.next_version, bundle=label, config=config)
        desired, answer = topics.publish(wanted, wait)
        online = topics.state is not None and topics.state.online
    _print(vehicle, desired, answer, online=online, as_json=as_json)
    if answer is None or not answer.accepted:
        raise typer.Exit(1)


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: expected an object of tables")
    return config


def _assign(config: dict[str, Any], assignment: str) -> None:
    """Puts the value of TABLE.FIELD=VALUE into `config`. A value that is not JSON is a text."""
    key, equals, text = assignment.partition("=")
    *tables, field = key.strip().split(".")
    if not equals or not tables or not all((*tables, field)):
        raise ConfigError(f"--set {assignment!r}: expected TABLE.FIELD=VALUE")
    for name in tables:
        config = config.setdefault(name, {})
        if not isinstance(config, dict):
            raise ConfigError(f"--set {assignment!r}: {name} is no table")
    try:
        config[field] = json.loads(text)
    except ValueError:
        config[field] = text


def _print(vehicle: str, desired: Desired, answer: Reported | None, *, online: bool, as_json: bool) -> None:
    if answer is None:
        where = "is online" if online else "is not known to be online"
        kept = f"The broker keeps version {desired.version} for it until it restarts"
        text = f"no answer; {vehicle} {where}. {kept}"
    elif answer.accepted:
        text = f"accepted: version {desired.version} is in force on trial; {vehicle} runs {answer.bundle}"
    else:
        text = f"refused: version {desired.version}: {answer.reason}"
    result = {
        "vehicle": vehicle,
        "version": desired.version,
        "bundle": desired.bundle,
        "config": desired.config,
        "accepted": None if answer is None else answer.accepted,
        "reason": "" if answer is None else answer.reason,
        "online": online,
    }
    show(result, as_json=as_json, text=text)
