"""Acts as the fleet for what travels beside samples: repeats wishes until reported, receives states."""

from __future__ import annotations

import threading
from collections import defaultdict
from types import TracebackType
from typing import Any

from misfire_runtime.errors import MessageError
from misfire_runtime.messages import Desired, Reported, State, Topics, decode, encode
from misfire_runtime.mqtt.client import BrokerConfig, make_client

FLEET = "faults"
_AGAIN_S = 0.3


class Wishes:
    """Runs as a context. `reported` holds each vehicle's last word, `states` all that it said of itself."""

    def __init__(self, port: int) -> None:
        self.reported: dict[str, Reported] = {}
        self.states: defaultdict[str, list[State]] = defaultdict(list)
        self._wanted: dict[str, Desired] = {}
        self._stop = threading.Event()
        self._heard = threading.Event()
        self._port = port
        self._client = make_client(BrokerConfig(port=port), client_id="console")
        # One second each time: by default paho doubles its waits up to two minutes.
        self._client.reconnect_delay_set(1, 1)
        self._client.on_message = self._on_message
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._heard.set()
        self._thread = threading.Thread(target=self._repeat, name="wishes", daemon=True)

    def __enter__(self) -> Wishes:
        # Asynchronous: the broker may be away when the test begins, and paho goes on trying.
        self._client.connect_async("127.0.0.1", self._port)
        self._client.loop_start()
        self._thread.start()
        assert self._heard.wait(60), "the console found no broker"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)
        self._client.disconnect()
        self._client.loop_stop()

    def desire(self, vehicle: str, version: int, **config: Any) -> None:
        """Publishes this version for the vehicle, which must be above the last one."""
        self._wanted[vehicle] = Desired(version=version, config=config)
        self._publish(vehicle, self._wanted[vehicle])

    def leave(self, vehicle: str, version: int) -> None:
        """Leaves a wish with the broker that nobody repeats; what was heard before is forgotten."""
        self._wanted.pop(vehicle, None)
        self.reported.pop(vehicle, None)
        self._publish(vehicle, Desired(version=version))

    @property
    def connected(self) -> bool:
        """Returns False while the broker is away."""
        return bool(self._client.is_connected())

    def in_force(self, vehicle: str) -> int:
        """Returns the version that the vehicle reported last as its own; -1 before any report."""
        word = self.reported.get(vehicle)
        return -1 if word is None else word.version

    def _publish(self, vehicle: str, desired: Desired) -> None:
        self._client.publish(Topics(FLEET, vehicle).desired, encode(desired), qos=1, retain=True)

    def _repeat(self) -> None:
        while not self._stop.wait(_AGAIN_S):
            for vehicle, desired in list(self._wanted.items()):
                word = self.reported.get(vehicle)
                if word is None or word.version < desired.version:
                    self._publish(vehicle, desired)

    def _on_connect(self, client: Any, *_: Any) -> None:
        # At each connect: the session is clean, so the broker forgets subscriptions.
        client.subscribe([(f"misfire/v1/{FLEET}/+/{kind}", 1) for kind in ("reported", "state")])

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        vehicle, kind = message.topic.split("/")[3:5]
        try:
            if kind == "reported":
                self.reported[vehicle] = decode(Reported, bytes(message.payload))
            # A retained state is an old one; only those that vehicles send now are counted.
            elif not message.retain:
                self.states[vehicle].append(decode(State, bytes(message.payload)))
        except MessageError:
            return
