"""What the broker retains of one vehicle, and what `misfire fleet configure` publishes there.

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
"""How long the broker may take to hand over what it retains."""
_ACKNOWLEDGED_S = 10.0


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
