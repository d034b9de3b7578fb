"""Hundreds of vehicles in one thread: their sockets on one selector, samples arriving as a Poisson stream.

connect all -> arrivals for the plan's duration -> wait for the last verdicts -> disconnect
"""

from __future__ import annotations

import heapq
import itertools
import random
import selectors
import threading
import time
from collections.abc import Callable

import paho.mqtt.client as paho

from misfire_fleet.simulate.samples import SampleFactory
from misfire_fleet.simulate.vehicle import Counts, Plan, SimulatedVehicle
from misfire_runtime.mqtt.client import BrokerConfig

_POLL_S = 0.05
_MISC_S = 1.0
_CONNECT_S = 60.0


class FleetSimulator:
    """All vehicles of a plan; `run` returns when the plan is done or `stop` is set."""

    def __init__(self, broker: BrokerConfig, plan: Plan, *, samples: SampleFactory) -> None:
        self.plan = plan
        self.counts = Counts()
        self._chance = random.Random(plan.seed)
        self._selector = selectors.DefaultSelector()
        self._numbers = itertools.count()
        self._again: list[tuple[float, int]] = []
        self._dirty: set[int] = set()
        self._watched: dict[int, int] = {}
        self._vehicles = [
            SimulatedVehicle(
                f"sim-{plan.seed}-{index:04d}",
                broker=broker,
                plan=plan,
                samples=samples,
                counts=self.counts,
                chance=self._chance,
            )
            for index in range(plan.vehicles)
        ]

    @property
    def pending(self) -> int:
        """Samples captured and not yet settled."""
        return sum(vehicle.pending for vehicle in self._vehicles)

    def run(self, stop: threading.Event) -> Counts:
        """Connects everybody, lets samples arrive, waits for the last verdicts, disconnects."""
        for index in range(len(self._vehicles)):
            self._connect(index)
        self._spin(
            stop, seconds=_CONNECT_S, done=lambda: all(vehicle.subscribed for vehicle in self._vehicles)
        )
        self._spin(stop, seconds=self.plan.duration_s, arriving=True)
        self._spin(stop, seconds=self.plan.drain_s, done=lambda: self.pending == 0)
        for index, vehicle in enumerate(self._vehicles):
            self._forget(index)
            vehicle.client.disconnect()
        self._selector.close()
        return self.counts

    def _spin(
        self,
        stop: threading.Event,
        *,
        seconds: float,
        arriving: bool = False,
        done: Callable[[], bool] = lambda: False,
    ) -> None:
        now = next_arrival = next_misc = time.monotonic()
        until = now + seconds
        while not stop.is_set() and (now := time.monotonic()) < until:
            wait_s = _POLL_S
            if arriving:
                next_arrival = self._arrive(now, next_arrival)
                wait_s = max(0.0, min(_POLL_S, next_arrival - now))
            for key, mask in self._selector.select(wait_s):
                self._serve(key.data, mask)
            self._flush()
            if now >= next_misc:
                next_misc = now + _MISC_S
                self._misc(now)
                if done():
                    return

    def _arrive(self, now: float, next_arrival: float) -> float:
        """Captures what is due; a backlog above a second is skipped, so that the rate never bursts."""
        next_arrival = max(next_arrival, now - 1.0)
        while next_arrival <= now:
            index = self._chance.randrange(len(self._vehicles))
            self._vehicles[index].capture(next(self._numbers), now)
            self._dirty.add(index)
            next_arrival += self._chance.expovariate(self.plan.rate)
        return next_arrival

    def _serve(self, index: int, mask: int) -> None:
        client = self._vehicles[index].client
        self._dirty.add(index)
        if mask & selectors.EVENT_READ and client.loop_read() != paho.MQTT_ERR_SUCCESS:
            self._lose(index)
        elif mask & selectors.EVENT_WRITE:
            client.loop_write()

    def _flush(self) -> None:
        """Writes what was queued; a socket that is full is watched until it takes more."""
        for index in self._dirty:
            client = self._vehicles[index].client
            socket = client.socket()
            if socket is None or index not in self._watched:
                continue
            if client.want_write():
                client.loop_write()
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.want_write() else 0)
            if wanted != self._watched[index]:
                self._selector.modify(socket, wanted, index)
                self._watched[index] = wanted
        self._dirty.clear()

    def _misc(self, now: float) -> None:
        for index, vehicle in enumerate(self._vehicles):
            if index not in self._watched:
                continue
            if vehicle.client.socket() is None or vehicle.client.loop_misc() != paho.MQTT_ERR_SUCCESS:
                self._lose(index)
                continue
            vehicle.overdue(now)
            self._dirty.add(index)
            chance = self.plan.faults.reconnect_per_s
            if chance and self._chance.random() < chance:
                self.counts.faults += 1
                self._lose(index)
        while self._again and self._again[0][0] <= now:
            self._connect(heapq.heappop(self._again)[1])

    def _connect(self, index: int) -> None:
        vehicle = self._vehicles[index]
        try:
            vehicle.connect()
        except OSError:
            heapq.heappush(self._again, (time.monotonic() + self._chance.uniform(0.5, 3.0), index))
            return
        socket = vehicle.client.socket()
        if socket is not None:
            self._selector.register(socket, selectors.EVENT_READ, index)
            self._watched[index] = selectors.EVENT_READ

    def _lose(self, index: int) -> None:
        """The connection is gone, or is cut here; another one in a moment, with a clean session."""
        if index not in self._watched:
            return
        self._forget(index)
        socket = self._vehicles[index].client.socket()
        if socket is not None:
            socket.close()
        self.counts.reconnects += 1
        heapq.heappush(self._again, (time.monotonic() + self._chance.uniform(0.2, 2.0), index))

    def _forget(self, index: int) -> None:
        """Looks at a socket no longer; paho may have closed it, so it is found by its vehicle."""
        self._vehicles[index].subscribed = False
        if self._watched.pop(index, None) is not None:
            keys = [key for key in self._selector.get_map().values() if key.data == index]
            for key in keys:
                self._selector.unregister(key.fileobj)
