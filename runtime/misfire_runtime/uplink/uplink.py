"""Uploads the samples in the spool over a broker, until the fleet confirms that they are stored.

spool --Pending--> Machine --actions--> Connection --> broker --replies, receipts--> Machine --> spool

One thread does everything. The Machine decides (machine.py), the Connection moves bytes, and this module
connects them with the spool and the rest of the vehicle. Nothing is lost if the thread or the process ends at
any point.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable

from misfire_runtime import __version__, clock
from misfire_runtime.errors import MessageError, MisfireError, SpoolError
from misfire_runtime.messages import (
    MIN_CHUNK_BYTES,
    Declined,
    Desired,
    Rejected,
    Reply,
    Reported,
    State,
    Telemetry,
    Topics,
    decode,
    encode,
)
from misfire_runtime.mqtt.backoff import full_jitter
from misfire_runtime.mqtt.client import BrokerConfig, make_client
from misfire_runtime.mqtt.connection import Arrived, Connection, LinkError, Will
from misfire_runtime.mqtt.waking import Waking
from misfire_runtime.service.logs import Throttle
from misfire_runtime.service.worker import Worker
from misfire_runtime.spool import Spool
from misfire_runtime.uplink.bandwidth import Bandwidth, TokenBucket
from misfire_runtime.uplink.health import LinkHealth
from misfire_runtime.uplink.machine import Action, Machine, PublishChunk, PublishOffer, Reconnect, Settle
from misfire_runtime.uplink.settings import UplinkSettings
from misfire_runtime.uplink.side import DesiredWorker, Identity, fit_offer, offer_attributes
from misfire_runtime.uplink.verdict_writer import VerdictWriter

__all__ = ["BrokerConfig", "Uplink", "make_client"]

_LOG = logging.getLogger(__name__)
# Also the period of checks that no event announces: the schedule, the clock, the file `resume`.
_MAX_WAIT_S = 1.0
_MAX_MESSAGE_BYTES = 128 * 1024
"""Largest message that a vehicle accepts."""


class Uplink:
    """Runs one vehicle's uplink. `start` runs it in its own thread, `run` in the caller's.

    Args:
        spool: the samples to upload.
        fleet: name of the fleet, part of all topics.
        vehicle: name of the vehicle, part of all topics.
        broker: address and credentials.
        stop: ends the uplink when set.
        settings: windows and timers.
        bandwidth: limits of the rate.
        bundle: label of the bundle, `name@version`, for the vehicle's state.
        on_desired: called in its own thread with each desired configuration; returns the report.
        on_declined: called with the id of a declined sample, so that its budget can be returned.
        on_clone: called with the boot id of another machine that uses this vehicle's name.
        boot_id: id of this boot; None reads the kernel's.
        seed: random seed of the jitter.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        fleet: str,
        vehicle: str,
        broker: BrokerConfig,
        stop: threading.Event | None = None,
        settings: UplinkSettings | None = None,
        bandwidth: Bandwidth | None = None,
        bundle: str = "",
        on_desired: Callable[[Desired], Reported] | None = None,
        on_declined: Callable[[str], None] | None = None,
        on_clone: Callable[[str], None] | None = None,
        boot_id: str | None = None,
        seed: int | None = None,
    ) -> None:
        self._spool, self._broker = spool, broker
        self._topics = Topics(fleet, vehicle)
        self._stop = stop or threading.Event()
        self._settings = settings or UplinkSettings()
        self._bandwidth = bandwidth or Bandwidth()
        self._metered = self._bandwidth.metered
        self._on_declined = on_declined
        self._rng = random.Random(seed)
        self._bucket = TokenBucket(burst=self._bandwidth.burst_bytes, now=time.monotonic())
        self._machine = Machine(self._settings, self._bucket, self._rng)
        self._identity = Identity(boot_id or clock.boot_id(), on_clone=on_clone)
        self._birth = State(
            online=True,
            boot_id=self._identity.boot_id,
            session=spool.session,
            bundle=bundle,
            software=__version__,
        )
        # Unique per process: a broker ends the older of two connections with one client id.
        self._client_id = f"{vehicle}-{self._identity.boot_id[:8]}-{secrets.token_hex(4)}"
        self._desired = DesiredWorker(on_desired, self.publish_reported) if on_desired else None
        self._often = Throttle(_LOG)
        self._rejections = Throttle(_LOG, burst=20)
        # Bounded: if the loop is slow, the oldest messages are dropped.
        self._outbox: deque[tuple[str, bytes, int, bool]] = deque(maxlen=64)
        self._tokens: dict[int, int] = {}
        self._offers: dict[str, bytes] = {}
        self._waking = Waking()
        self._writer = VerdictWriter(spool, self._waking.wake)
        self._bytes_sent = 0
        self._seen_version = -1
        self._rate_checked_at = self._asked_at = float("-inf")
        self._failures = 0
        self._health = LinkHealth(broker, vehicle=vehicle, base=self._topics.base)
        self._online = threading.Event()
        self._worker = Worker("uplink", self._loop, stop=self._stop, wake=self._waking.wake)
        self.connects = 0
        spool.listen(self._waking.wake)

    # ---- for the rest of the vehicle, from any thread

    @property
    def online(self) -> bool:
        """Returns True while connected and subscribed."""
        return self._online.is_set()

    @property
    def clones(self) -> tuple[str, ...]:
        """Returns the boot ids of other machines that used this vehicle's name."""
        return self._identity.clones

    @property
    def problem(self) -> str | None:
        """Returns why messages do not reach the fleet, as a sentence; None if the last one did."""
        return self._health.problem

    @property
    def counts(self) -> dict[str, int]:
        """Returns the number of events since the start, by name."""
        return {
            "connections": self.connects,
            "reoffers": self._machine.reoffers,
            "ignored": self._machine.ignored,
        }

    def wait_online(self, timeout_s: float) -> bool:
        """Waits until connected; returns False after `timeout_s`."""
        return self._online.wait(timeout_s)

    def start(self) -> None:
        """Starts the thread, which runs until `close` or the stop event."""
        self._worker.start()

    def close(self, *, timeout_s: float = 10.0) -> None:
        """Disconnects and ends the thread. Samples that are not yet stored stay in the spool."""
        if self._worker.close(timeout_s=timeout_s):
            self._writer.close()  # needed only if the thread never ran; otherwise it closed the writer itself
            self._waking.close()
        if self._desired is not None:
            self._desired.close()

    def drain(self, timeout_s: float) -> bool:
        """Waits until nothing is pending; returns False after `timeout_s`, as always during a hold."""
        return self._spool.wait_empty(timeout_s)

    def publish_reported(self, reported: Reported) -> None:
        """Publishes the answer to a desired configuration.

        While offline it is dropped: the broker sends the retained desired configuration again, and it is
        answered then.
        """
        self._enqueue(self._topics.reported, encode(reported), qos=1, retain=True)

    def publish_telemetry(self, telemetry: Telemetry) -> bool:
        """Publishes a heartbeat; returns False, and keeps nothing, if there is no connection.

        The birth message is repeated with it, which corrects a state that was lost or replaced by a late last
        will.
        """
        self._enqueue(self._topics.state, encode(self._birth), qos=1, retain=True)
        return self._enqueue(self._topics.telemetry, encode(telemetry), qos=0, retain=False)

    def set_metered(self, metered: bool) -> None:
        """Sets whether the link is metered now; see Bandwidth."""
        self._metered = metered
        self._rate_checked_at = float("-inf")
        self._waking.wake()

    def set_bandwidth(self, bandwidth: Bandwidth) -> None:
        """Replaces the limits of the rate."""
        self._bandwidth = bandwidth
        self._rate_checked_at = float("-inf")
        self._waking.wake()

    def set_bundle(self, label: str) -> None:
        """Publishes a new bundle's label in the vehicle's state."""
        self._birth = self._birth.model_copy(update={"bundle": label})
        self._enqueue(self._topics.state, encode(self._birth), qos=1, retain=True)

    # ---- the loop

    def run(self) -> None:
        """Runs the uplink in the caller's thread until the stop event."""
        self._worker.run()

    def _loop(self, stop: threading.Event) -> None:
        self._health.began()
        while not stop.is_set():
            began = time.monotonic()
            try:
                self._session()
            except MisfireError as error:
                self._health.down(str(error), lasted_s=time.monotonic() - began)
            except Exception as error:  # noqa: BLE001  (without this thread nothing is ever uploaded again)
                problem = f"{type(error).__name__}: {error}"
                self._often.log(
                    logging.ERROR, "uplink_failed", {"problem": problem}, key=type(error).__name__
                )
                self._health.down(problem, lasted_s=time.monotonic() - began)
            if not stop.is_set():
                wait_s = full_jitter(
                    self._failures,
                    base_s=self._settings.reconnect_s,
                    cap_s=self._settings.reconnect_max_s,
                    rng=self._rng,
                )
                self._failures += 1
                stop.wait(wait_s)
        self._writer.close()
        self._handle_recorded()
        self._waking.close()

    def _session(self) -> None:
        death = encode(self._birth.model_copy(update={"online": False}))
        connection = Connection(
            self._broker,
            client_id=self._client_id,
            will=Will(self._topics.state, death),
            # Its own state too: another machine of the same name shows itself there.
            subscriptions=(self._topics.reply, self._topics.desired, self._topics.state),
            max_message_bytes=_MAX_MESSAGE_BYTES,
        )
        last: int | None = None
        try:
            connection.open()
            self._up(connection)
            while not self._stop.is_set():
                self._step(connection)
            # A last heartbeat may have come with the order to stop.
            self._send_outbox(connection)
            # After a DISCONNECT the broker publishes no last will, so the vehicle reports its end itself.
            farewell = encode(self._birth.model_copy(update={"online": False}))
            last = connection.publish(self._topics.state, farewell, retain=True)
        finally:
            # First: other threads must not queue messages for a connection that ends.
            self._online.clear()
            # Without the farewell the session broke, and the broker must publish the last will.
            connection.close(in_order=last is not None, last=last)
            self._machine.disconnected(now := time.monotonic())
            for action in self._machine.actions(now):  # only verdicts are left to be booked
                self._perform(connection, action, now)
            self._tokens.clear()
            self._outbox.clear()
            if connection.taken_over:
                self._identity.taken_over()

    def _up(self, connection: Connection) -> None:
        self.connects += 1
        self._machine.connected(time.monotonic(), packet_limit=connection.packet_limit)
        connection.publish(self._topics.state, encode(self._birth), retain=True)
        self._seen_version = -1
        self._online.set()
        self._health.up(pending=self._spool.counters().pending)

    def _step(self, connection: Connection) -> None:
        """Performs all due actions, waits for an event, and handles it."""
        now = time.monotonic()
        self._limit(now)
        self._watch_hold()
        self._supply(now)
        for action in self._machine.actions(now):
            self._perform(connection, action, now)
        connection.poll(self._timeout(time.monotonic()), wake=self._waking.handle)
        # Before the queues are read, so that a wake in between is not lost.
        self._waking.clear()
        self._handle_recorded()
        now = time.monotonic()
        for receipt in connection.receipts:
            token = self._tokens.pop(receipt.mid, None)
            self._health.receipt(receipt)
            if token is not None:
                self._failures = 0
                (self._machine.acked if receipt.accepted else self._machine.nacked)(token, now)
        connection.receipts.clear()
        for message in connection.inbox:
            self._take(connection, message, now)
        connection.inbox.clear()
        self._send_outbox(connection)

    def _send_outbox(self, connection: Connection) -> None:
        while self._outbox:
            topic, payload, qos, retain = self._outbox.popleft()
            connection.publish(topic, payload, qos=qos, retain=retain)

    def _watch_hold(self) -> None:
        """Stops offers during a hold of the spool, and handles other processes' requests to end it."""
        now = time.monotonic()
        if now - self._asked_at >= _MAX_WAIT_S:
            self._asked_at = now
            try:
                self._spool.resume_if_asked()
            except SpoolError as error:
                self._often.log(logging.ERROR, "resume_failed", {"problem": str(error)})
        hold = self._spool.hold
        if self._machine.offering and hold is not None:
            since = clock.utc_text(hold.since)
            _LOG.error("uploads_held", extra={"fields": {"reason": hold.reason, "since": since}})
        self._machine.offering = hold is None

    def _timeout(self, now: float) -> float:
        return max(0.0, min(self._machine.wake_at(now) - now, _MAX_WAIT_S))

    def _supply(self, now: float) -> None:
        """Fills the window from the spool, unless the spool had too few samples and has not changed since.

        While messages are in flight, a gap is filled only when it is a quarter of the window: each query
        passes over all samples that are in the window already.
        """
        wanted = self._machine.wanted()
        version = self._spool.version
        if not wanted or version == self._seen_version:
            return
        if self._tokens and wanted < self._settings.max_samples // 4:
            return
        least = self._bandwidth.metered_min_priority if self._metered else 0
        found = self._spool.next_offers(wanted, skip=self._machine.ids, min_priority=least)
        if len(found) < wanted:
            self._seen_version = version
        for sample in found:
            self._offers[sample.id] = sample.offer
        self._machine.supply(found, now)

    def _perform(self, connection: Connection, action: Action, now: float) -> None:
        if isinstance(action, PublishChunk):
            self._publish_chunk(connection, action)
        elif isinstance(action, PublishOffer):
            payload = fit_offer(self._offers[action.id], connection.packet_limit)
            attributes = None
            if self._settings.cloud_events:
                attributes = offer_attributes(action.id, source=self._topics.base)
            self._tokens[connection.publish(self._topics.offer, payload, attributes=attributes)] = (
                action.token
            )
            self._bytes_sent += len(payload)
        elif isinstance(action, Settle):
            self._writer.put(action.verdicts, bytes_sent=self._bytes_sent)
            self._bytes_sent = 0
        elif isinstance(action, Reconnect):
            raise LinkError(f"{self._broker.url}: {action.reason}")

    def _publish_chunk(self, connection: Connection, action: PublishChunk) -> None:
        try:
            data = self._spool.read(action.id, action.offset, action.size, total=action.total)
        except SpoolError as error:
            fields = {"sample": action.id, "problem": str(error)}
            self._often.log(logging.ERROR, "sample_unreadable", fields, key=type(error).__name__)
            self._machine.nacked(action.token, time.monotonic())
            return
        if data is None:
            self._machine.nacked(action.token, time.monotonic())
            self._forget(action.id)
            return
        topic = self._topics.data(action.collector, action.id, action.offset)
        self._tokens[connection.publish(topic, data)] = action.token
        self._bytes_sent += len(data) + len(topic)

    def _handle_recorded(self) -> None:
        """Handles the verdicts that the spool has recorded, or could not record."""
        for recorded in self._writer.results():
            ids = [verdict.id for verdict in recorded.verdicts]
            if recorded.news is None:
                self._machine.unsettled(ids, time.monotonic())
                continue
            self._machine.settled(ids)
            offers = {sample: self._offers.pop(sample, b"") for sample in ids}
            for verdict in recorded.news:
                if isinstance(verdict, Rejected):
                    self._log_rejection(verdict, offers[verdict.id])
                if isinstance(verdict, Declined) and self._on_declined is not None:
                    self._on_declined(verdict.id)

    def _log_rejection(self, verdict: Rejected, offer: bytes) -> None:
        """Logs a rejection; `offer` is empty if the verdict came after the sample had left the window."""
        trigger = json.loads(offer)["trigger"]["name"] if offer else ""
        fields = {"reason": verdict.reason, "sample": verdict.id, "trigger": trigger}
        self._rejections.log(logging.WARNING, "sample_rejected", fields)

    def _take(self, connection: Connection, message: Arrived, now: float) -> None:
        try:
            if message.topic == self._topics.reply and not message.retained:
                self._replied(decode(Reply, message.payload), now)
            elif message.topic == self._topics.desired and self._desired is not None and message.payload:
                self._desired.put(decode(Desired, message.payload))
            elif message.topic == self._topics.state and message.payload:
                state = decode(State, message.payload)
                if message.retained and self.connects < 2:
                    self._identity.follows(state)
                elif self._identity.sees(state):
                    connection.publish(self._topics.state, encode(self._birth), retain=True)
        except MessageError as error:
            fields = {"topic": message.topic, "problem": str(error)}
            self._often.log(logging.WARNING, "message_refused", fields, key=message.topic)

    def _replied(self, reply: Reply, now: float) -> None:
        self._health.answered()
        before = self._machine.small_chunks
        self._machine.replied(reply.verdicts, now)
        if self._machine.small_chunks > before:
            least = {"least_chunk_bytes": MIN_CHUNK_BYTES, "count": self._machine.small_chunks}
            self._often.log(logging.WARNING, "send_ignored", least)
        if reply.offer_again:
            try:
                self._spool.resume()
            except SpoolError as error:
                self._often.log(logging.ERROR, "resume_failed", {"problem": str(error)})

    def _limit(self, now: float) -> None:
        if now - self._rate_checked_at < _MAX_WAIT_S:
            return
        self._rate_checked_at = now
        rate = self._bandwidth.rate_at(clock.wall_time(), metered=self._metered)
        if rate != self._bucket.rate:
            self._bucket.set(rate=rate, burst=self._bandwidth.burst_bytes, now=now)
            self._seen_version = -1

    def _forget(self, sample: str) -> None:
        self._machine.discard(sample)
        self._offers.pop(sample, None)

    def _enqueue(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> bool:
        if not self.online:
            return False
        self._outbox.append((topic, payload, qos, retain))
        self._waking.wake()
        return True
