"""Simulates hundreds of vehicles in one thread: one selector for all sockets, samples as a Poisson process.

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
"""Upper bound for one wait on the selector, so that a set `stop` ends the run soon."""
_MISC_S = 1.0
"""Period of keepalives, timeouts and reconnects."""
_CONNECT_S = 60.0
"""Seconds that all vehicles have to connect; the run then starts with those that have."""


class FleetSimulator:
    """Runs all vehicles of a plan.

    Args:
        broker: address and credentials of the broker.
        plan: number of vehicles, rate, duration and faults.
        samples: makes the samples of all vehicles.
    """

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
        """Returns the number of captured samples without a final verdict."""
        return sum(vehicle.pending for vehicle in self._vehicles)

    def run(self, stop: threading.Event) -> Counts:
        """Connects all vehicles, captures samples, waits for the last verdicts and disconnects.

        Returns the counts when the plan is done or `stop` is set.
        """
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
        """Captures the samples that are due and returns the time of the next one.

        Arrivals that are more than a second late are skipped: a burst would measure the simulator's stalls
        instead of the collector.
        """
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
        """Writes queued packets. A socket that is full is watched until it is writable again."""
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
        """Closes a connection that failed or is to fail, and schedules a reconnect with a clean session."""
        if index not in self._watched:
            return
        self._forget(index)
        socket = self._vehicles[index].client.socket()
        if socket is not None:
            socket.close()
        self.counts.reconnects += 1
        heapq.heappush(self._again, (time.monotonic() + self._chance.uniform(0.2, 2.0), index))

    def _forget(self, index: int) -> None:
        """Removes a vehicle's socket from the selector."""
        self._vehicles[index].subscribed = False
        if self._watched.pop(index, None) is not None:
            # paho may already have closed the socket, which then has no file descriptor to look up.
            keys = [key for key in self._selector.get_map().values() if key.data == index]
            for key in keys:
                self._selector.unregister(key.fileobj)
