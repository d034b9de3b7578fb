"""The bare loops that benchmarks/speed/throughput.py compares with, and what it prepares."""

from __future__ import annotations

import multiprocessing
import os
import queue
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path
from types import TracebackType
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from misfire_runtime.spool import Spool
from misfire_runtime.testing import make_offer

GROUP = 64
"""As CollectorSettings.group_samples."""


def fill_spool(spool: Spool, payloads: list[bytes]) -> None:
    """Not part of what is measured."""
    for number, payload in enumerate(payloads):
        assert spool.add(payload, make_offer(payload, vehicle="car", number=number))


def spread_over_disk(folder: Path) -> None:
    """Gives the folders in it places of their own on an ext4 disk, as those of two machines have.

    Else the vehicle, which deletes what is stored, slows down whoever makes files beside it: an ext4 without
    a journal steps over every inode that was freed in the last minutes.
    """
    chattr = shutil.which("chattr")
    if chattr:
        subprocess.run([chattr, "+T", str(folder)], check=False, capture_output=True)


class BarePublisher:
    """Publishes at QoS 1, at most eight messages unacknowledged; the receiver is a process of its own."""

    def __init__(self, port: int, folder: Path, *, writers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ready: Event = context.Event()
        self._receiver = context.Process(
            target=_receive, args=(port, str(folder), writers, self._ready), daemon=True
        )
        self._root = f"{folder.name}-{writers}"
        self._port = port
        self._slots = threading.Semaphore(8)
        self._durable = 0
        self._all = threading.Event()

    def __enter__(self) -> BarePublisher:
        self._receiver.start()
        assert self._ready.wait(30)
        self._client = _plain_client(f"publisher-{self._root}")
        self._client.on_connect = lambda client, *_: client.subscribe(f"{self._root}/durable", qos=1)
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_publish = lambda *_: self._slots.release()
        self._client.on_message = self._on_durable
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        assert subscribed.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._receiver.terminate()
        self._receiver.join(10)

    def rate(self, payloads: list[bytes]) -> float:
        """Messages per second, from the first publish until the receiver says that all are on its disk."""
        self._expected, self._durable = len(payloads), 0
        self._all.clear()
        began = time.perf_counter()
        for number, payload in enumerate(payloads):
            self._slots.acquire()
            self._client.publish(f"{self._root}/data/{number}", payload, qos=1)
        assert self._all.wait(300)
        return len(payloads) / (time.perf_counter() - began)

    def _on_durable(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self._durable += int(message.payload)
        if self._durable >= self._expected:
            self._all.set()


def _plain_client(name: str) -> paho.Client:
    """As anybody would make it: MQTT 5, a clean session, paho's own network thread."""
    return paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)


def _receive(port: int, folder: str, writers: int, ready: Event) -> None:
    """Writes and fsyncs each message; one answer, and one fsync of the folder, per group."""
    root = Path(folder)
    prefix = f"{root.name}-{writers}"
    root.mkdir()
    arrived: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
    client = _plain_client(f"receiver-{prefix}")
    client.on_connect = lambda c, *_: c.subscribe(f"{prefix}/data/#", qos=1)
    client.on_subscribe = lambda *_: ready.set()
    client.on_message = lambda _c, _d, message: arrived.put(
        (message.topic.rsplit("/", 1)[1], message.payload)
    )
    client.connect("127.0.0.1", port)
    client.loop_start()
    pool = ThreadPoolExecutor(writers)
    while True:
        group = [arrived.get()]
        while len(group) < GROUP:
            try:
                group.append(arrived.get_nowait())
            except queue.Empty:
                break
        if writers > 1:
            list(pool.map(lambda item: _write(root / item[0], item[1]), group))
        else:
            for number, data in group:
                _write(root / number, data)
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(handle)
        os.close(handle)
        client.publish(f"{prefix}/durable", str(len(group)), qos=1)


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    os.write(handle, data)
    os.fsync(handle)
    os.close(handle)
