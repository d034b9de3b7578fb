"""`misfire fleet configure`: changes a vehicle's configuration over the broker, and prints the answer.

retained desired, reported --> next version --publish, retained--> vehicle --reported--> accepted, or why not
What is desired is whole: `--set` changes what the broker retains, `--file` replaces it.
"""

from __future__ import annotations

import copy
import json
import secrets
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from misfire_fleet.commands.options import (
    AsJson,
    BrokerOptions,
    show,
    with_broker_options,
)
from misfire_runtime.clock import wall_time
from misfire_runtime.config.desired import with_desired
from misfire_runtime.config.tables import VehicleConfig
from misfire_runtime.errors import ConfigError, MessageError
from misfire_runtime.messages import Desired, Reported, State, Topics, decode, encode
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.mqtt.connection import Arrived, Connection

_RETAINED_S = 1.0
"""How long the broker may take to hand over what it retains."""
_ACKNOWLEDGED_S = 10.0
VehicleName = Annotated[str, typer.Argument(help="The vehicle's name in topics.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for the vehicle's answer.")]


@with_broker_options
def configure(
    vehicle: VehicleName,
    *,
    at: BrokerOptions,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="TABLE.FIELD=VALUE over what is desired now. Repeatable."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help='JSON file with all tables: {"limits": {...}, ...}. Replaces the last.'),
    ] = None,
    bundle: Annotated[str | None, typer.Option(help="NAME@VERSION to run. Default: as before.")] = None,
    wait: Wait = 30.0,
    as_json: AsJson = False,
) -> None:
    """Change a vehicle's configuration. Exit with 1 unless the vehicle accepts it in time."""
    if not set_ and file is None and bundle is None:
        raise ConfigError("nothing to change: give --set, --file or --bundle")
    with VehicleTopics(at.connection(), fleet=at.fleet, vehicle=vehicle) as topics:
        last = topics.desired
        config: dict[str, Any] = copy.deepcopy(last.config) if last is not None else {}
        if file is not None:
            config = _read(file)
        for assignment in set_ or ():
            _assign(config, assignment)
        with_desired(VehicleConfig(), config)  # names the key that no vehicle would take
        label = bundle if bundle is not None or last is None else last.bundle
        wanted = Desired(version=topics.next_version, bundle=label, config=config)
        desired, answer = topics.publish(wanted, wait)
        online = topics.state is not None and topics.state.online
    _print(vehicle, desired, answer, online=online, as_json=as_json)
    if answer is None or not answer.accepted:
        raise typer.Exit(1)


class VehicleTopics:
    """What the broker retains of one vehicle, and a connection to change it."""

    def __init__(self, broker: BrokerConfig, *, fleet: str, vehicle: str) -> None:
        self._names = Topics(fleet, vehicle)
        self.desired: Desired | None = None
        self.reported: Reported | None = None
        self.state: State | None = None
        listened = (self._names.desired, self._names.reported, self._names.state)
        self._connection = Connection(
            broker, client_id=f"misfire-configure-{secrets.token_hex(8)}", subscriptions=listened
        )

    def __enter__(self) -> VehicleTopics:
        self._connection.open()
        until = time.monotonic() + _RETAINED_S
        while time.monotonic() < until:
            self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close(in_order=True)

    @property
    def next_version(self) -> int:
        """Above all that the broker knows. The clock, because a broker that was restarted knows none."""
        known = [each.version + 1 for each in (self.desired, self.reported) if each is not None]
        return max([int(wall_time()), *known])

    def publish(self, desired: Desired, wait_s: float) -> tuple[Desired, Reported | None]:
        """Publishes until the vehicle answers; returns what was published last, and the answer or None.

        A vehicle that took a higher version before, of which the broker knows nothing, names it: it is
        repeated above that.
        """
        until = time.monotonic() + wait_s
        self._publish(desired)
        while (reported := self._answer(until)) is not None:
            if reported.version == desired.version:
                return desired, reported
            if reported.version > desired.version and not reported.accepted:
                desired = desired.model_copy(update={"version": reported.version + 1})
                self._publish(desired)
        return desired, None

    def _publish(self, desired: Desired) -> None:
        """Returns when the broker has it. Raises MessageError if it refuses, or does not acknowledge."""
        ticket = self._connection.publish(self._names.desired, encode(desired), retain=True)
        until = time.monotonic() + _ACKNOWLEDGED_S
        while time.monotonic() < until:
            self._connection.poll(0.05, wake=None)
            receipts = {receipt.mid: receipt for receipt in self._connection.receipts}
            self._connection.receipts.clear()
            if ticket in receipts:
                if not receipts[ticket].accepted:
                    raise MessageError(f"the broker refuses {self._names.desired}: {receipts[ticket].reason}")
                return
        raise MessageError(f"the broker did not acknowledge {self._names.desired}")

    def _answer(self, until: float) -> Reported | None:
        """The next `reported` of the vehicle; None if none comes until then."""
        while time.monotonic() < until:
            if any(message.topic == self._names.reported for message in self._listen()):
                return self.reported
        return None

    def _listen(self) -> list[Arrived]:
        """Takes what arrives within a moment."""
        self._connection.poll(0.1, wake=None)
        arrived = self._connection.inbox.copy()
        self._connection.inbox.clear()
        for message in arrived:
            self._take(message)
        return arrived

    def _take(self, message: Arrived) -> None:
        try:
            if not message.payload:
                return
            if message.topic == self._names.desired:
                self.desired = decode(Desired, message.payload)
            elif message.topic == self._names.reported:
                self.reported = decode(Reported, message.payload)
            elif message.topic == self._names.state:
                self.state = decode(State, message.payload)
        except MessageError as error:
            typer.echo(f"{message.topic}: {error}", err=True)


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
    """Puts the value of TABLE.FIELD=VALUE into `config`. A value that is no JSON is a text."""
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
