"""Proxies TCP between a client and its broker, and makes and counts the faults of networks and brokers.

Bytes: cut (reset), half-open (nothing passes any more, nobody is told), delay, slow.  Messages, by reading
the MQTT packets that pass: lost although acknowledged, repeated, overtaken, a flipped bit in a chunk. A lost
message is acknowledged in the other side's name: what a broker does that says PUBACK and then dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field

_PUBLISH, _PUBACK = 3, 4
SAMPLES = ("offer", "data", "reply")
BESIDE = ("state", "telemetry", "desired", "reported")
"""Kinds of topics: what carries samples, and what travels beside them."""
# SO_LINGER with zero seconds: closing sends a reset instead of an orderly end.
_RESET = struct.pack("ii", 1, 0)
_HOLD_S = 0.05


@dataclass
class Trouble:
    """Chances per message (lose, repeat, reorder, spoil), and what bytes suffer. May change at any time."""

    lose: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0
    spoil: float = 0.0
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    half_open: bool = False
    alike: bool = False
    """What is spoiled is spoiled in the same way each time, as if it were wrong where it comes from."""
    kinds: tuple[str, ...] = SAMPLES
    """Topics' kinds that the chances apply to."""

    @property
    def active(self) -> bool:
        """Returns True if messages suffer."""
        return self.lose + self.repeat + self.reorder + self.spoil > 0


@dataclass
class Packet:
    """Holds one MQTT control packet as it passed."""

    raw: bytes
    body: int

    @property
    def kind(self) -> int:
        return self.raw[0] >> 4

    @property
    def qos(self) -> int:
        return (self.raw[0] >> 1) & 3

    @property
    def topic(self) -> str:
        length = int.from_bytes(self.raw[self.body : self.body + 2], "big")
        return self.raw[self.body + 2 : self.body + 2 + length].decode("utf-8", "replace")

    @property
    def packet_id(self) -> bytes:
        at = self.body + 2 + int.from_bytes(self.raw[self.body : self.body + 2], "big")
        return self.raw[at : at + 2]


@dataclass
class _Pipe:
    """Holds one direction of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    back: asyncio.StreamWriter
    buffer: bytearray = field(default_factory=bytearray)
    held: list[bytes] = field(default_factory=list)


class ChaosProxy:
    """Listens on a free loopback port, forwards to `target`, on a thread of its own; use as a context."""

    def __init__(self, target: int, *, seed: int = 0, trouble: Trouble | None = None) -> None:
        self.target = target
        self.trouble = trouble or Trouble()
        self.faults: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.connections = 0
        self._rng = random.Random(seed)
        self._troubled: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)
        self.port = 0

    def __enter__(self) -> ChaosProxy:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut(self) -> int:
        """Resets every connection now; returns their number."""
        return asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(10)

    def total(self) -> int:
        """Returns the number of faults so far."""
        return sum(self.faults.values())

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._cut())
        for task in list(self._tasks):
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _cut(self) -> int:
        ends = list(self._open)
        for writer in ends:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        if ends:
            self.faults["cut"] += 1
        return len(ends) // 2

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self.connections += 1
        self._open |= {writer, back}
        up = asyncio.ensure_future(self._pump(_Pipe(reader, back, writer), "up"))
        down = asyncio.ensure_future(self._pump(_Pipe(there, writer, back), "down"))
        with contextlib.suppress(asyncio.CancelledError):  # which is the end of the proxy
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        self._open -= {writer, back}
        writer.transport.abort()
        back.transport.abort()
        while not (up.done() and down.done()):  # wait_for may swallow a cancellation
            up.cancel()
            down.cancel()
            await asyncio.wait({up, down}, timeout=0.1)
        await asyncio.gather(up, down, return_exceptions=True)

    async def _pump(self, pipe: _Pipe, way: str) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._carry(pipe, way)
        await self._stand_still()

    async def _stand_still(self) -> None:
        """Waits while the link is half-open: nothing passes then, not even the end of a connection."""
        while self.trouble.half_open:
            await asyncio.sleep(0.02)

    async def _carry(self, pipe: _Pipe, way: str) -> None:
        while True:
            try:
                # A message that waits to be overtaken must not wait for ever if no other comes.
                timeout = _HOLD_S if pipe.held else None
                data = await asyncio.wait_for(pipe.reader.read(65536), timeout)
            except asyncio.TimeoutError:
                self._release(pipe)
                continue
            if not data:
                return
            self.bytes[way] += len(data)
            await self._stand_still()
            if self.trouble.delay_s:
                await asyncio.sleep(self.trouble.delay_s * self._rng.uniform(0.5, 1.5))
            if self.trouble.bytes_per_s:
                await asyncio.sleep(len(data) / self.trouble.bytes_per_s)
            pipe.buffer += data
            for packet in _packets(pipe.buffer):
                self._pass(pipe, packet, way)
            await pipe.writer.drain()

    def _pass(self, pipe: _Pipe, packet: Packet, way: str) -> None:
        """Forwards one packet, or does something to it."""
        kind = packet.topic.split("/")[4:5] if packet.kind == _PUBLISH else []
        if not kind or kind[0] not in self.trouble.kinds:
            pipe.writer.write(packet.raw)
            return
        # The first message of every kind suffers, so that no kind is spared by the luck of the draw.
        trouble, name = self.trouble, kind[0]
        first = trouble.active and name not in self._troubled
        if first:
            self._troubled.add(name)
        chance = 0.0 if first else self._rng.random()
        if chance < trouble.lose:
            self.faults[f"lost {name}"] += 1
            if packet.qos:
                pipe.back.write(bytes((_PUBACK << 4, 2)) + packet.packet_id)
            return
        chance -= trouble.lose
        if chance < trouble.reorder:
            self.faults[f"overtaken {name}"] += 1
            pipe.held.append(packet.raw)
            return
        chance -= trouble.reorder
        raw = packet.raw
        if chance < trouble.repeat:
            self.faults[f"repeated {name}"] += 1
            pipe.writer.write(raw)
            if packet.qos:
                # The DUP flag, which MQTT requires of a repeated packet with QoS 1.
                raw = bytes((raw[0] | 8,)) + raw[1:]
        elif name == "data" and chance - trouble.repeat < trouble.spoil:
            self.faults["spoiled data"] += 1
            # One of the last bytes belongs to the chunk, not to the topic.
            at = len(raw) - (1 if trouble.alike else self._rng.randint(1, 64))
            bit = 1 if trouble.alike else 1 << self._rng.randrange(8)
            raw = raw[:at] + bytes((raw[at] ^ bit,)) + raw[at + 1 :]
        pipe.writer.write(raw)
        self._release(pipe)

    @staticmethod
    def _release(pipe: _Pipe) -> None:
        for raw in pipe.held:
            pipe.writer.write(raw)
        pipe.held.clear()


def _packets(buffer: bytearray) -> list[Packet]:
    """Takes whole control packets off the front of the buffer."""
    found = []
    while len(buffer) >= 2:
        length, shift, at = 0, 0, 1
        # MQTT writes a length in at most four bytes of seven bits; the eighth bit announces another.
        while at < len(buffer) and at < 5:
            length |= (buffer[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if not buffer[at - 1] & 128:
                break
        else:
            break
        if len(buffer) < at + length:
            break
        found.append(Packet(bytes(buffer[: at + length]), at))
        del buffer[: at + length]
    return found
