"""Messages that were read ahead are parsed beside the MQTT client: none is lost, doubled, or out of order."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.mqtt.connection import Arrived, Connection
from misfire_runtime.mqtt.socket import BufferedClient, BufferedSocket, Publish

Protocol = Literal["5", "3.1.1"]
PROTOCOLS: tuple[Protocol, ...] = ("5", "3.1.1")
_PING_RESPONSE = b"\xd0\x00"


def varint(value: int) -> bytes:
    out = b""
    while True:
        value, low = divmod(value, 128)
        out += bytes([low | (128 if value else 0)])
        if not value:
            return out


@dataclass(frozen=True)
class Message:
    """What the broker sends: `mid` None is QoS 0."""

    topic: str
    size: int
    retained: bool
    mid: int | None
    note: str = ""
    """Becomes a user property, where the protocol has them."""

    @property
    def arrived(self) -> Arrived:
        return Arrived(self.topic, self.payload, self.retained)

    @property
    def payload(self) -> bytes:
        return bytes([self.size % 251]) * self.size

    def packet(self, protocol: Protocol) -> bytes:
        topic = self.topic.encode()
        body = len(topic).to_bytes(2, "big") + topic
        if self.mid is not None:
            body += self.mid.to_bytes(2, "big")
        if protocol == "5":
            note = self.note.encode()
            properties = b"&\x00\x01n" + len(note).to_bytes(2, "big") + note if note else b""
            body += varint(len(properties)) + properties
        body += self.payload
        head = 0x30 | (2 if self.mid is not None else 0) | self.retained
        return bytes([head]) + varint(len(body)) + body


@dataclass
class Broker:
    """Grants everything, then sends these bytes in these pieces, and notes what was acknowledged."""

    protocol: Protocol
    pieces: list[bytes]
    acknowledged: list[int] = field(default_factory=list)

    def serve(self, listening: socket.socket) -> None:
        opened, _ = listening.accept()
        with opened:
            opened.settimeout(20.0)
            v5 = self.protocol == "5"
            self._read(opened)
            opened.sendall(b"\x20\x03\0\0\0" if v5 else b"\x20\x02\0\0")
            mid = self._read(opened)[:2]
            opened.sendall(b"\x90\x04" + mid + b"\0\1" if v5 else b"\x90\x03" + mid + b"\1")
            threading.Thread(target=self._hear, args=(opened,), daemon=True).start()
            with suppress(OSError):
                for piece in self.pieces:
                    opened.sendall(piece)
                    time.sleep(0.001)
            self.over.wait(20.0)

    def _read(self, opened: socket.socket) -> bytes:
        """A short packet without its header."""
        size = opened.recv(2, socket.MSG_WAITALL)[1]
        return opened.recv(size, socket.MSG_WAITALL)

    def _hear(self, opened: socket.socket) -> None:
        with suppress(OSError):  # the other side hung up, or `serve` ended
            while len(packet := opened.recv(4, socket.MSG_WAITALL)) == 4 and packet[:2] == b"\x40\x02":
                self.acknowledged.append(int.from_bytes(packet[2:], "big"))
        self.over.set()

    def __post_init__(self) -> None:
        self.over = threading.Event()


@contextmanager
def connected(protocol: Protocol, pieces: list[bytes]) -> Iterator[tuple[Connection, Broker]]:
    broker = Broker(protocol, pieces)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=broker.serve, args=(listening,), daemon=True)
        thread.start()
        config = BrokerConfig(port=listening.getsockname()[1], protocol=protocol)
        connection = Connection(config, client_id="c", subscriptions=("a",))
        try:
            connection.open()
            yield connection, broker
        finally:
            connection.close(in_order=False)
            broker.over.set()
            thread.join(20.0)


def poll_until(connection: Connection, count: int) -> None:
    until = time.monotonic() + 20.0
    while len(connection.inbox) < count and time.monotonic() < until:
        connection.poll(0.2, wake=None)


MESSAGES = st.builds(
    Message,
    topic=st.sampled_from(["a/b", "ä" * 40, "misfire/v1/default/car/data/collector/0/0"]),
    size=st.sampled_from([0, 1, 2, 100, 127, 128, 5_000, 20_000, 140_000]),
    retained=st.booleans(),
    mid=st.none() | st.integers(1, 65535),
    note=st.sampled_from(["", "x", "long" * 100]),
)


@settings(max_examples=40, deadline=None)
@given(
    protocol=st.sampled_from(PROTOCOLS),
    messages=st.lists(MESSAGES, min_size=1, max_size=20),
    pings=st.booleans(),
    piece=st.sampled_from([700, 9_000, 131_073, 10**9]),
)
def test_every_message_arrives_once_in_order_and_is_acknowledged(
    protocol: Protocol, messages: list[Message], pings: bool, piece: int
) -> None:
    between = _PING_RESPONSE if pings else b""
    stream = between.join(message.packet(protocol) for message in messages)
    pieces = [stream[at : at + piece] for at in range(0, len(stream), piece)]
    with connected(protocol, pieces) as (connection, broker):
        poll_until(connection, len(messages))
        mids = [message.mid for message in messages if message.mid is not None]
        until = time.monotonic() + 20.0
        while len(broker.acknowledged) < len(mids) and time.monotonic() < until:
            connection.poll(0.01, wake=None)
        assert connection.inbox == [message.arrived for message in messages]
        assert broker.acknowledged == mids


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_most_of_a_flood_passes_the_mqtt_client_by(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    take = BufferedClient.take_publish

    def noting(client: BufferedClient) -> Publish | None:
        found = take(client)
        taken.extend([] if found is None else [found])
        return found

    monkeypatch.setattr(BufferedClient, "take_publish", noting)
    packet = Message("a/b", 2, False, None).packet(protocol)
    with connected(protocol, [packet * 1000]) as (connection, _broker):
        poll_until(connection, 1000)
    assert len(connection.inbox) == 1000 and len(taken) > 900


@given(
    data=st.binary(max_size=40), head=st.sampled_from([0x30, 0x31, 0x32, 0x33, 0x34, 0xD0]), v5=st.booleans()
)
def test_arbitrary_bytes_are_a_message_or_are_left_as_they_are(data: bytes, head: int, v5: bool) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        buffered = BufferedSocket(near)
        far.sendall(b"?" + bytes([head]) + data)
        buffered.recv(1)
        found = buffered.take_publish(v5=v5)
        left = buffered.pending()
        if found is None:
            assert buffered.recv(100) == bytes([head]) + data
        else:
            assert head in (0x30, 0x33, 0x3A) and left < 1 + len(data)
            assert len(found.topic) + len(found.payload) <= len(data) - left
