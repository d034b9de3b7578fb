"""Defines the options that several fleet commands share: those of the broker, and those of the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from misfire_runtime.choices import MqttVersion
from misfire_runtime.errors import ConfigError

if TYPE_CHECKING:
    from misfire_fleet.store import Store
    from misfire_runtime.mqtt.client import BrokerConfig

FleetDir = Annotated[
    Path, typer.Option("--fleet-dir", help="Use the store in this folder: fleet.sqlite and blobs/.")
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar="MISFIRE_DATABASE",
        help="Use this database: postgresql://USER@HOST/NAME. Default: fleet.sqlite in --fleet-dir.",
    ),
]
BlobsUrl = Annotated[
    str | None,
    typer.Option(
        "--blobs",
        envvar="MISFIRE_BLOBS",
        help="Keep blobs in this folder or s3://BUCKET/PREFIX. Default: blobs/ in --fleet-dir.",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", envvar="MISFIRE_INSECURE", help="Allow plain mqtt:// to another machine."),
]
BrokerUrl = Annotated[
    str,
    typer.Option(
        "--broker", envvar="MISFIRE_BROKER", help="Connect to mqtt[s]://[USER:PASSWORD@]HOST[:PORT]."
    ),
]
FleetName = Annotated[str, typer.Option("--fleet", help="Use this fleet's name in topics.")]
Protocol = Annotated[MqttVersion, typer.Option("--protocol", help="Speak this version of MQTT.")]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca-file", help="Trust the CA certificates in this file, for mqtts://. Default: the system's."
    ),
]
CertFile = Annotated[
    Path | None, typer.Option("--cert-file", help="Use the client certificate in this file, for mqtts://.")
]
KeyFile = Annotated[
    Path | None, typer.Option("--key-file", help="Use the private key of --cert-file in this file.")
]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", help="Read the password from this file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JsonLogs = Annotated[bool, typer.Option("--json", help="Log one JSON object per line.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Count what would be done, and change nothing.")]
WHERE_HELP = (
    "Take only samples with KEY=VALUE (repeat for more): vehicle, bundle, trigger, random, from, to, "
    "percentile, labelled, class, verdict, snapshot, selection, pinned, ids (@FILE)."
)
"""Written out: `misfire_fleet.store.where` has the keys, but its imports would delay every `--help`."""
DEFAULT_DIR = Path("fleet")


@dataclass(frozen=True)
class BrokerOptions:
    """Holds the options that describe the fleet's broker."""

    broker: BrokerUrl = "mqtt://127.0.0.1:1883"
    fleet: FleetName = "default"
    protocol: Protocol = "5"
    insecure: Insecure = False
    ca_file: CaFile = None
    cert_file: CertFile = None
    key_file: KeyFile = None
    password_file: PasswordFile = None

    def connection(self) -> BrokerConfig:
        """Returns the broker's configuration. Raises ConfigError, which never contains the password."""
        from misfire_runtime.mqtt.client import BrokerConfig

        options = {name: value for name, value in vars(self).items() if name not in ("broker", "fleet")}
        return BrokerConfig.from_url(self.broker, **options)


@dataclass(frozen=True)
class StoreOptions:
    """Holds the options that name the fleet's store."""

    fleet_dir: FleetDir = DEFAULT_DIR
    database: DatabaseUrl = None
    blobs: BlobsUrl = None

    @property
    def database_or_file(self) -> str | Path:
        """Returns the database's URL, or the path of fleet.sqlite."""
        return self.database or self.fleet_dir / "fleet.sqlite"

    @property
    def blobs_or_folder(self) -> str | Path:
        """Returns the URL or folder of the blobs."""
        return self.blobs or self.fleet_dir / "blobs"

    def open(self, *, checked: bool = False) -> Store:
        """Opens the store.

        Args:
            checked: for daemons: checks the SQLite file for damage, and creates what does not exist.

        Raises:
            StoreError: the database is damaged (`checked`) or does not exist (otherwise: a query of a new,
                empty database would give a wrong answer).
        """
        from misfire_fleet.errors import StoreError
        from misfire_fleet.store import Store
        from misfire_fleet.store.care.integrity import refuse_damaged

        file = self.fleet_dir / "fleet.sqlite"
        if checked:
            refuse_damaged(self.database_or_file)
        elif self.database is None and not file.exists():
            raise StoreError(f"{file}: no such database; name the fleet's folder with --fleet-dir")
        return Store.open(self.database_or_file, self.blobs_or_folder)


def with_options(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the options of dataclasses to a command.

    Args:
        groups: a dataclass by the parameter of the command that takes it, such as `at=BrokerOptions`. Each
            field is an option.

    Returns:
        A decorator.
    """
    options = {name: _options_of(group) for name, group in groups.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = signature(command, eval_str=True)
        parameters = [each for each in own.parameters.values() if each.name not in groups]
        parameters += [each for of_group in options.values() for each in of_group]

        @wraps(command)
        def called(*arguments: Any, **given: Any) -> None:
            for name, group in groups.items():
                of_group = [each.name for each in options[name] if each.name in given]
                given[name] = group(**{option: given.pop(option) for option in of_group})
            command(*arguments, **given)

        # typer reads the options from the signature and the annotations, not from the function itself.
        called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        return called

    return decorate


def _options_of(group: type) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
        for each in fields(group)
    ]


def moment(option: str, text: str | None) -> float | None:
    """Returns an option's ISO 8601 time (UTC without a zone) as seconds since 1970. Raises ConfigError."""
    from misfire_fleet.moments import parse_moment

    try:
        return None if text is None else parse_moment(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: {error}") from error


def show(result: Mapping[str, Any], *, as_json: bool, text: str) -> None:
    """Prints a result: as one JSON object, or as `text`."""
    typer.echo(json.dumps(result) if as_json else text)
