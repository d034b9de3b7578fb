"""The buffered socket keeps bytes and their order, whatever the socket below takes; a waker wakes once."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misfire_runtime.mqtt.socket import BufferedSocket
from misfire_runtime.mqtt.waking import Waking

Pair = tuple[BufferedSocket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.settimeout(5.0)
    buffered = BufferedSocket(near)
    yield buffered, far
    buffered.close()
    far.close()


def test_packets_are_read_byte_by_byte_from_one_read_of_the_socket(pair: Pair) -> None:
    near, far = pair
    far.sendall(b"\x30\x05hello\x40")
    assert near.recv(1) == b"\x30" and near.pending() == 7
    assert near.recv(1) == b"\x05" and near.recv(100) == b"hello\x40" and near.pending() == 0
    with pytest.raises(BlockingIOError):
        near.recv(1)
    far.shutdown(socket.SHUT_WR)
    assert near.recv(1) == b""


def test_small_packets_wait_for_the_flush_and_large_ones_go_behind_them(pair: Pair) -> None:
    near, far = pair
    assert near.send(b"a" * 10) == 10 and near.send(b"b" * 10) == 10
    assert not select.select([far], [], [], 0.05)[0]
    assert near.send(b"c" * 20_000) == 20_000
    assert far.recv(20_020, socket.MSG_WAITALL) == b"a" * 10 + b"b" * 10 + b"c" * 20_000
    near.send(b"d")
    assert near.flush() and far.recv(1) == b"d"


def test_what_waits_goes_out_with_the_end(pair: Pair) -> None:
    near, far = pair
    near.send(b"good-bye")
    near.close()
    assert far.recv(100) == b"good-bye" and far.recv(1) == b""


def test_a_socket_that_takes_no_more_loses_nothing(pair: Pair) -> None:
    near, far = pair
    sent = b""
    block = bytes(range(256)) * 4
    with pytest.raises(BlockingIOError):
        while True:
            taken = near.send(block)
            sent += block[:taken]
    assert not near.flush()
    received = b""
    while len(received) < len(sent):
        received += far.recv(65536)
        near.flush()
    assert received == sent


@given(sizes=st.lists(st.sampled_from([1, 7, 300, 8192, 8193, 30_000]), max_size=30))
def test_the_order_of_bytes_is_kept_for_any_mixture_of_packets(sizes: list[int]) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    buffered = BufferedSocket(near)
    far.setblocking(False)
    sent, received = b"", b""

    def drain() -> bytes:
        try:
            return far.recv(1 << 20)
        except BlockingIOError:
            return b""

    for number, size in enumerate(sizes):
        data = bytes([number]) * size
        while data:
            try:
                taken = buffered.send(data)
            except BlockingIOError:
                received += drain()
                continue
            sent, data = sent + data[:taken], data[taken:]
    while not buffered.flush() or len(received) < len(sent):
        received += drain()
    assert received == sent
    buffered.close()
    far.close()


def test_many_wakes_are_one_byte_and_none_is_lost_after_a_clear() -> None:
    waking = Waking()
    for _ in range(100_000):
        waking.wake()
    assert select.select([waking.handle], [], [], 0)[0]
    waking.clear()
    assert not select.select([waking.handle], [], [], 0)[0]
    waking.wake()
    assert select.select([waking.handle], [], [], 0)[0]
    waking.close()
    waking.clear()
    waking.wake()
