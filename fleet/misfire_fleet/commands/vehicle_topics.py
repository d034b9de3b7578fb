"""Reads a vehicle's retained messages from the broker, and publishes its desired configuration.

retained desired, reported --> next version --publish, retained--> vehicle --reported--> the answer
"""

from __future__ import annotations

import secrets
import time

import typer

from misfire_runtime.clock import wall_time
from misfire_runtime.errors import MessageError
from misfire_runtime.messages import Desired, Reported, State, Topics, decode, encode
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.mqtt.connection import Arrived, Connection

_RETAINED_S = 1.0
"""Seconds to wait for retained messages: the broker does not say when it has sent the last one."""
_ACKNOWLEDGED_S = 10.0


class VehicleTopics:
    """Holds a vehicle's retained messages, and a connection to change the desired one."""

    def __init__(self, broker: BrokerConfig, *, fleet: str, vehicle: str) -> None:
        self._names = Topics(fleet, vehicle)
        self.desired: Desired | None = None
        self.reported: Reported | None = None
        self.state: State | None = None
        listened = (self._names.desired, self._names.reported, self._names.state)
        # A random id: a broker ends a connection when another one with the same id begins.
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
        """Returns a version above all that the broker retains.

        It is at least the current time, because a broker that was restarted may have lost its messages.
        """
        known = [each.version + 1 for each in (self.desired, self.reported) if each is not None]
        return max([int(wall_time()), *known])

    def publish(self, desired: Desired, wait_s: float) -> tuple[Desired, Reported | None]:
        """Publishes a configuration and waits for the vehicle's answer.

        If the vehicle has accepted a higher version before, its answer names it, and the configuration is
        published again with a version above that.

        Args:
            desired: the configuration.
            wait_s: seconds to wait for the answer.

        Returns:
            The configuration published last, and the answer or None.
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
        """Publishes and waits for the acknowledgement. Raises MessageError if it is refused or missing."""
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
        """Returns the vehicle's next `reported` message; None if none comes before `until`."""
        while time.monotonic() < until:
            if any(message.topic == self._names.reported for message in self._listen()):
                return self.reported
        return None

    def _listen(self) -> list[Arrived]:
        """Receives messages for a tenth of a second and returns them."""
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
