"""Receives signals of the vehicle beside the picture: GPS, speed, gear, anything that is a key and a value.

sender --Unix socket, UDP, or a file that is rewritten--> Context --snapshot--> triggers, offers

Each datagram or line is `key=value key=value` or one JSON object. A signal older than `max_age_s` is gone: an
old speed is not a speed. What cannot be understood is counted and dropped.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pydantic import Field

from misfire_runtime.errors import ConfigError
from misfire_runtime.files import read_bounded
from misfire_runtime.service.worker import Worker
from misfire_runtime.tables import RelativePath, Table

_LOG = logging.getLogger(__name__)
MAX_DATAGRAM = 64 * 1024
"""The largest that UDP carries, and far more than a file of signals needs."""
MAX_KEYS = 60
"""An offer carries 64: room is left for what clips add."""
MAX_TEXT = 256
"""As long as an offer takes."""
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}")
Value = float | str | bool


class ContextTable(Table):
    """Where signals of the vehicle (GPS, speed, ...) come from; each optional."""

    socket: RelativePath | None = Field(default=None, description="Unix datagram socket to create")
    udp: str | None = Field(
        default=None, pattern=r"^[0-9A-Za-z.:\[\]-]+:\d{1,5}$", description="HOST:PORT to bind"
    )
    file: RelativePath | None = Field(default=None, description="file that another program rewrites")
    max_age_s: float = Field(default=10.0, gt=0)


class Context:
    """Holds the newest value of every signal. Thread-safe."""

    def __init__(self, *, max_age_s: float = 10.0, now: Callable[[], float] = time.monotonic) -> None:
        self.refused = 0
        self._max_age_s = max_age_s
        self._now = now
        self._lock = threading.Lock()
        self._values: dict[str, tuple[float, Value]] = {}

    def update(self, text: str) -> int:
        """Takes one or more lines of signals; returns how many signals were understood."""
        taken = 0
        for line in text.splitlines():
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            try:
                signals = parse_signals(line)
            except ValueError:
                self.refused += 1
                continue
            taken += self._put(signals)
        return taken

    def snapshot(self) -> dict[str, Value]:
        """Returns all signals that are not too old."""
        if not self._values:
            return {}
        oldest = self._now() - self._max_age_s
        with self._lock:
            return {key: value for key, (at, value) in self._values.items() if at >= oldest}

    def _put(self, signals: dict[str, Value]) -> int:
        now, taken = self._now(), 0
        with self._lock:
            for key, value in signals.items():
                # Known keys are always taken, so a flood of new ones cannot stop the speed.
                if key not in self._values and len(self._values) >= MAX_KEYS:
                    self.refused += 1
                    continue
                self._values[key] = (now, value)
                taken += 1
        return taken


class ContextListener:
    """Owns the thread that receives signals."""

    def __init__(self, context: Context, table: ContextTable) -> None:
        """Raises ConfigError where a socket cannot be made."""
        self._context = context
        self._table = table
        self._stop = threading.Event()
        self._sockets = _open_sockets(table)
        self._stamp: tuple[int, int] | None = None
        # One thread per input: a silent socket must not delay the file.
        works = [partial(self._receive, sock) for sock in self._sockets]
        if table.file is not None:
            works.append(partial(self._watch, table.file))
        self._workers = [Worker("context", work, stop=self._stop) for work in works]
        for worker in self._workers:
            worker.start()

    @property
    def udp_port(self) -> int | None:
        """Returns the bound UDP port; None without UDP (0 in the configuration lets the system choose)."""
        for sock in self._sockets:
            if sock.family != socket.AF_UNIX:
                return int(sock.getsockname()[1])
        return None

    def close(self) -> None:
        """Ends the threads and removes the socket."""
        for worker in self._workers:
            worker.close(timeout_s=2.0)
        for sock in self._sockets:
            sock.close()
        if self._table.socket is not None:
            self._table.socket.unlink(missing_ok=True)

    def _receive(self, sock: socket.socket, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                data = sock.recv(MAX_DATAGRAM)
            except TimeoutError:
                continue
            except OSError:
                return
            self._context.update(data.decode("utf-8", "replace"))

    def _watch(self, file: Path, stop: threading.Event) -> None:
        # Polled: a rename over the file would end a watch of its inode.
        while not stop.wait(0.2):
            try:
                stat = file.stat()
                # Before the read: what is written meanwhile has another stamp, and is read the next time.
                stamp = (stat.st_mtime_ns, stat.st_size)
                if stamp == self._stamp:
                    continue
                text = read_bounded(file, max_bytes=MAX_DATAGRAM).decode("utf-8", "replace")
            except (OSError, ValueError):
                continue
            self._stamp = stamp
            self._context.update(text)


def parse_signals(line: str) -> dict[str, Value]:
    """Parses one line: a JSON object, or key=value pairs. Raises ValueError if it is neither.

    Nested objects become dotted keys; numbers, true, false and text are values, anything else is refused.
    """
    text = line.strip()
    if text.startswith("{"):
        loaded = json.loads(text)
        if not isinstance(loaded, dict):
            raise ValueError("not an object")
        return {_key(key): _json_value(value) for key, value in _flat(loaded, "", 0)}
    pairs = (token.partition("=") for token in shlex.split(text))
    found = {}
    for key, equals, value in pairs:
        if not equals:
            raise ValueError(f"{key!r} is not key=value")
        found[_key(key)] = _text_value(value)
    return found


def _flat(tree: dict[str, object], prefix: str, depth: int) -> list[tuple[str, object]]:
    # Bounds the recursion: anybody who may send could nest without end.
    if depth > 4:
        raise ValueError("nested too deeply")
    found: list[tuple[str, object]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found += _flat(value, f"{name}.", depth + 1) if isinstance(value, dict) else [(name, value)]
    return found


def _key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key[:64]!r} is not a key")
    return key


def _json_value(value: object) -> Value:
    # Before the numbers: in Python a bool is an int.
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _finite(float(value))
    if isinstance(value, str):
        return value[:MAX_TEXT]
    raise ValueError(f"{type(value).__name__} is not a value")


def _text_value(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    try:
        return _finite(float(text))
    except ValueError:
        # float() takes these words, and `_finite` refused them: they are not text either.
        if text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            raise
        return text[:MAX_TEXT]


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("not finite")
    return value


def _open_sockets(table: ContextTable) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        if table.socket is not None:
            # Left by a process that was killed; a bind to an existing name fails.
            if table.socket.is_socket():
                table.socket.unlink()
            unix = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            sockets.append(unix)
            unix.bind(str(table.socket))
            # Members of the vehicle's group may send, too, and nobody else.
            table.socket.chmod(0o660)
        if table.udp is not None:
            host, _, port = table.udp.rpartition(":")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            udp = socket.socket(family, socket.SOCK_DGRAM)
            sockets.append(udp)
            udp.bind((host.strip("[]"), int(port)))
    except (OSError, OverflowError) as error:
        for sock in sockets:
            sock.close()
        raise ConfigError(f"context: cannot listen: {error}") from error
    for sock in sockets:
        # So that `stop` is seen within 0.3 s on a silent socket.
        sock.settimeout(0.3)
    return sockets
