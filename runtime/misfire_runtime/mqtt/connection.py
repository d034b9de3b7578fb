"""Runs one connection to the broker in the caller's thread: paho's external loop, no background thread.

open -> CONNACK -> subscriptions granted -> up;  poll() moves bytes and fills `inbox` and `receipts`

A connection is used once. If it breaks, the messages in paho are dropped with it, because the uplink's
Machine offers again; so no outdated message is ever sent on a new connection.
"""

from __future__ import annotations

import logging
import select
import time
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from misfire_runtime.errors import MisfireError
from misfire_runtime.mqtt.client import BrokerConfig, acknowledge_at_once, make_client
from misfire_runtime.mqtt.errors import closed, in_words, reason_in_words
from misfire_runtime.mqtt.socket import BufferedClient, Publish

_LOG = logging.getLogger(__name__)
_TAKEN_OVER = 0x8E
"""MQTT 5 reason code "session taken over"."""
_MAX_PACKETS = 64
"""Packets per read, so that answers are sent in between."""


class LinkError(MisfireError):
    """Reports why a connection failed or ended."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """Holds a message from the broker."""

    topic: str
    payload: bytes
    retained: bool


@dataclass(frozen=True, slots=True)
class Receipt:
    """Reports that the broker acknowledged a message, or refused it for a reason."""

    mid: int
    accepted: bool
    reason: str = ""


@dataclass(frozen=True)
class Will:
    """Holds the last will: the message that the broker publishes when the connection is lost."""

    topic: str
    payload: bytes


class Connection:
    """Runs one connection. Not thread-safe. `open` and `poll` raise LinkError if there is no connection.

    Args:
        broker: address and credentials.
        client_id: unique among the broker's clients.
        subscriptions: topics to subscribe to.
        will: published by the broker if the connection is lost.
        max_message_bytes: announced to the broker as limit in MQTT 5; MQTT 3.1.1 has no such field.
    """

    def __init__(
        self,
        broker: BrokerConfig,
        *,
        client_id: str,
        subscriptions: tuple[str, ...],
        will: Will | None = None,
        max_message_bytes: int | None = None,
    ) -> None:
        self._broker = broker
        self._v5 = broker.protocol == "5"
        self._subscriptions = subscriptions
        self._max_message_bytes = max_message_bytes
        self._failure: str | None = None
        self._granted = False
        self._answered = False
        self.taken_over = False
        self.packet_limit: int | None = None
        self.inbox: list[Arrived] = []
        self.receipts: list[Receipt] = []
        client = make_client(broker, client_id=client_id, kind=BufferedClient)
        assert isinstance(client, BufferedClient)
        self._client = client
        self._client.manual_ack_set(True)  # `_take` acknowledges messages that paho does not see
        if will is not None:
            self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish

    def open(self) -> None:
        """Connects and subscribes, within about three times `connect_timeout_s`. Raises LinkError."""
        try:
            self._client.connect(
                self._broker.host,
                self._broker.port,
                keepalive=self._broker.keepalive_s,
                properties=self._connect_properties(),
            )
        except (OSError, ValueError) as error:
            raise LinkError(f"{self._broker.url}: {in_words(error, self._broker)}") from error
        # CONNACK and SUBACK need a round trip each; TCP and TLS have had their own timeout.
        until = time.monotonic() + 2 * self._broker.connect_timeout_s
        while not self._granted:
            left = until - time.monotonic()
            if left <= 0:
                raise LinkError(
                    f"{self._broker.url}: no answer within {2 * self._broker.connect_timeout_s:g} s"
                )
            self.poll(min(left, 0.2), wake=None)

    def poll(self, timeout_s: float, *, wake: int | None) -> None:
        """Waits for the network, `wake` or the timeout, then reads and writes what is possible.

        Args:
            timeout_s: maximum wait in seconds.
            wake: a file descriptor that ends the wait when it is readable.

        Raises:
            LinkError: the connection is lost.
        """
        sock: Any = self._client.socket()
        if sock is None:
            self._raise(self._closed())
        # Bytes that were read ahead, or are in TLS's buffer, do not make the socket readable for select.
        if sock.pending():
            timeout_s = 0.0
        reading = [sock] if wake is None else [sock, wake]
        try:
            # A socket that can be written is always ready: select would return at once, without end.
            writing = [] if sock.flush() and not self._client.want_write() else [sock]
            readable, writable, _ = select.select(reading, writing, [], timeout_s)
            if sock in readable or timeout_s == 0.0:
                self._read()
            if (sock in writable or self._client.want_write()) and self._client.socket() is not None:
                self._client.loop_write()
            # Sends the keep-alive pings and notices their missing answers.
            self._client.loop_misc()
            if self._client.socket() is not None:
                sock.flush()
        except (OSError, ValueError) as error:
            self._raise(in_words(error, self._broker, answered=self._answered))
        if self._client.socket() is None or self._failure is not None:
            self._raise(self._closed())

    def _read(self) -> None:
        """Handles at least all packets of one read of the socket."""
        self._client.loop_read()
        for _ in range(_MAX_PACKETS):
            message = self._client.take_publish()
            if message is not None:
                self._take(message)
                continue
            sock: Any = self._client.socket()
            if sock is None or not sock.pending():
                break
            self._client.loop_read()
        # After the last read, because a read switches it off again.
        acknowledge_at_once(self._client.socket())

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        attributes: dict[str, str] | None = None,
    ) -> int:
        """Queues a message; returns the id of its `Receipt` (QoS 1).

        Args:
            topic: topic of the message.
            payload: its content.
            qos: 0 or 1.
            retain: whether the broker keeps it for later subscribers.
            attributes: user properties; left out in MQTT 3.1.1, which has none.
        """
        properties = None
        if attributes and self._v5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.UserProperty = list(attributes.items())
        return self._client.publish(topic, payload, qos=qos, retain=retain, properties=properties).mid

    def subscribe(self, *topics: str, retain_as_published: bool = False) -> None:
        """Subscribes to further topics at QoS 1; a refusal is only logged.

        Args:
            topics: the topics.
            retain_as_published: new messages keep their retain flag (MQTT 5 only).
        """
        option = self._option(retain_as_published=retain_as_published)
        self._client.subscribe([(topic, option) for topic in topics])

    def unsubscribe(self, *topics: str) -> None:
        """Unsubscribes from topics."""
        self._client.unsubscribe(list(topics))

    def close(self, *, in_order: bool, last: int | None = None, timeout_s: float = 2.0) -> None:
        """Ends the connection.

        Args:
            in_order: sends all queued messages and a DISCONNECT, so that the broker publishes no last will.
            last: id of a message whose acknowledgement to wait for before.
            timeout_s: maximum duration in seconds.
        """
        if not in_order:
            sock: Any = self._client.socket()
            if sock is not None:
                # Without a DISCONNECT, so that the broker publishes the last will.
                sock.close()
            return
        until = time.monotonic() + timeout_s
        try:
            while self._unsaid(last) and time.monotonic() < until:
                self.poll(0.05, wake=None)
            self._client.disconnect()
            while self._client.socket() is not None and time.monotonic() < until:
                self.poll(0.05, wake=None)
        except LinkError:
            return

    def _unsaid(self, last: int | None) -> bool:
        acknowledged = last is None or any(receipt.mid == last for receipt in self.receipts)
        sock: Any = self._client.socket()
        return not acknowledged or self._client.want_write() or (sock is not None and not sock.flush())

    def _closed(self) -> str:
        """Returns why the MQTT client has no socket any more, as far as known."""
        buffered = self._client.buffered
        if buffered is not None and buffered.error is not None:
            return in_words(buffered.error, self._broker, answered=self._answered)
        return closed(self._broker, answered=self._answered)

    def _raise(self, reason: str) -> None:
        raise LinkError(f"{self._broker.url}: {self._failure or reason}")

    def _connect_properties(self) -> Properties | None:
        if not self._v5 or self._max_message_bytes is None:
            return None
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = self._max_message_bytes
        return properties

    def _option(self, *, retain_as_published: bool = False) -> Any:
        return SubscribeOptions(qos=1, retainAsPublished=retain_as_published) if self._v5 else 1

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:
        self._answered = True
        if reason.is_failure:
            self._failure = f"the broker refuses the connection: {reason_in_words(reason)}"
            return
        self.packet_limit = getattr(properties, "MaximumPacketSize", None)
        client.subscribe([(topic, self._option()) for topic in self._subscriptions])

    def _on_subscribe(
        self, _client: paho.Client, _data: Any, _mid: int, reasons: Any, _properties: Any
    ) -> None:
        refused = [reason_in_words(reason) for reason in reasons if reason.is_failure]
        if self._granted and refused:
            _LOG.error("%s: subscription refused: %s", self._broker.url, refused[0])
        elif refused:
            self._failure = f"the broker refuses the subscriptions: {refused[0]}"
        else:
            self._granted = True

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, flags: Any, reason: Any, _properties: Any
    ) -> None:
        self.taken_over |= getattr(reason, "value", 0) == _TAKEN_OVER
        # Without a DISCONNECT packet, paho invents a reason ("Unspecified error").
        if self._failure is None and flags.is_disconnect_packet_from_server:
            self._failure = f"the broker ended the connection: {reason_in_words(reason)}"

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        if message.qos == 1:
            self._client.ack(message.mid, 1)
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        self.inbox.append(Arrived(topic, bytes(message.payload), bool(message.retain)))

    def _take(self, message: Publish) -> None:
        """Does the same as `_on_message` for a message that paho has not seen."""
        if message.mid is not None:
            self._client.ack(message.mid, 1)
        try:
            topic = message.topic.decode()
        except UnicodeDecodeError:
            return
        self.inbox.append(Arrived(topic, message.payload, message.retained))

    def _on_publish(self, _client: paho.Client, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        refused = getattr(reason, "is_failure", False)
        self.receipts.append(Receipt(mid, not refused, reason_in_words(reason) if refused else ""))
