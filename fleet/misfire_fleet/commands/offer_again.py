"""Implements `misfire fleet offer-again`: makes a vehicle offer again after it stopped at many rejections."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Annotated

import typer

from misfire_fleet.commands.options import (
    AsJson,
    BrokerOptions,
    show,
    with_options,
)
from misfire_runtime.errors import ConfigError

if TYPE_CHECKING:
    from misfire_runtime.mqtt.connection import Connection

_ANSWER_S = 5.0
"""Seconds to wait for the broker, which answers within milliseconds unless the network is bad."""


@with_options(at=BrokerOptions)
def offer_again(
    vehicle: Annotated[str, typer.Argument(help="Tell this vehicle.")],
    *,
    at: BrokerOptions,
    as_json: AsJson = False,
) -> None:
    """Tell a vehicle to offer its samples again, those that were rejected last as well.

    Connects with the rights of a collector. The vehicle must be connected to the broker.
    """
    from misfire_runtime.messages import Reply, Topics, encode
    from misfire_runtime.mqtt.connection import Connection

    topics = Topics(at.fleet, vehicle)
    name = f"misfire-offer-again-{secrets.token_hex(4)}"
    connection = Connection(at.connection(), client_id=name, subscriptions=(topics.state,))
    try:
        connection.open()
        if not _is_online(connection):
            raise ConfigError(f"vehicle {vehicle} is not connected in fleet {at.fleet}; try again when it is")
        mid = connection.publish(topics.reply, encode(Reply(verdicts=[], offer_again=True)))
        _wait_for_receipt(connection, mid, vehicle)
    finally:
        connection.close(in_order=True)
    show({"vehicle": vehicle, "told": True}, as_json=as_json, text=f"{vehicle} was told to offer again")


def _is_online(connection: Connection) -> bool:
    """Returns True if the vehicle's retained state is online; False if there is no retained state."""
    from misfire_runtime.messages import State, decode

    until = time.monotonic() + _ANSWER_S
    while not connection.inbox and time.monotonic() < until:
        connection.poll(0.2, wake=None)
    return bool(connection.inbox) and decode(State, connection.inbox[-1].payload).online


def _wait_for_receipt(connection: Connection, mid: int, vehicle: str) -> None:
    from misfire_runtime.mqtt.connection import LinkError

    until = time.monotonic() + _ANSWER_S
    while time.monotonic() < until:
        for receipt in connection.receipts:
            if receipt.mid == mid and not receipt.accepted:
                raise LinkError(f"the broker does not let this client reply to {vehicle}: {receipt.reason}")
            if receipt.mid == mid:
                return
        connection.poll(0.2, wake=None)
    raise LinkError(f"the broker did not acknowledge the message to {vehicle} within {_ANSWER_S:g} s")
