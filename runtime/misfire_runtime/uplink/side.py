"""Handles clones, desired configurations, and offers that must shrink, for the uplink."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from misfire_runtime.errors import MisfireError
from misfire_runtime.messages import Desired, Reported, State
from misfire_runtime.service.worker import Worker

_LOG = logging.getLogger(__name__)
# Bounds memory and answers if new boot ids come without end.
_MAX_CLONES = 16
_OFFER_ROOM = 512
"""Bytes of a packet for topic, header and properties of an offer."""
_FEW_BOXES = 8
_OPTIONAL = ("embedding", "context", "prediction", "privacy", "percentiles")
"""Fields that an offer can do without, in the order of removal; the embedding is the largest."""


class Identity:
    """Detects another machine that uses this vehicle's name: its state messages have another boot id."""

    def __init__(self, boot_id: str, *, on_clone: Callable[[str], None] | None) -> None:
        self.boot_id = boot_id
        self._predecessor = boot_id
        self._on_clone = on_clone
        self._clones: list[str] = []

    @property
    def clones(self) -> tuple[str, ...]:
        """Returns the other boot ids, in the order of their appearance."""
        return tuple(self._clones)

    def follows(self, state: State) -> None:
        """Notes the state that was retained before this session: that of the vehicle's previous boot."""
        self._predecessor = state.boot_id

    def sees(self, state: State) -> bool:
        """Handles a state on the vehicle's topic; returns True if the birth message must be sent again.

        This is the case after a clone's first message, and after a late last will (of this or the previous
        session), which reports the vehicle as offline.
        """
        if not state.online and state.boot_id in ("", self.boot_id, self._predecessor):
            self._predecessor = self.boot_id  # a session has one last will
            return True
        if state.boot_id in ("", self.boot_id, *self._clones):
            return False
        if len(self._clones) >= _MAX_CLONES:
            return False
        self._found(state.boot_id)
        return True

    def taken_over(self) -> None:
        """Notes that another client with the same id took over the session."""
        if "session taken over" not in self._clones:
            self._found("session taken over")

    def _found(self, other: str) -> None:
        self._clones.append(other)
        _LOG.error("clone", extra={"fields": {"boot_id": self.boot_id, "other": other}})
        if self._on_clone is not None:
            self._on_clone(other)


class DesiredWorker:
    """Applies desired configurations in its own thread, because loading a model must not stop the uplink.

    Only the newest one waits. The callback refuses versions older than the current one.
    """

    def __init__(self, apply: Callable[[Desired], Reported], report: Callable[[Reported], None]) -> None:
        self._apply, self._report = apply, report
        self._waiting: queue.Queue[Desired | None] = queue.Queue(maxsize=1)
        self._lock = threading.Lock()
        self._worker = Worker("desired", self._run, wake=lambda: self.put(None))
        self._worker.start()

    def put(self, desired: Desired | None) -> None:
        """Replaces the waiting configuration."""
        with self._lock:
            with contextlib.suppress(queue.Empty):
                # An older configuration that still waits is obsolete.
                self._waiting.get_nowait()
            self._waiting.put_nowait(desired)

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Ends the thread after its current configuration."""
        self._worker.close(timeout_s=timeout_s)

    def _run(self, _stop: threading.Event) -> None:
        while (desired := self._waiting.get()) is not None:
            with self._worker.guard():
                try:
                    self._report(self._apply(desired))
                except MisfireError as error:
                    fields = {"version": desired.version, "problem": str(error)}
                    _LOG.error("desired_failed", extra={"fields": fields})


def offer_attributes(sample: str, *, source: str) -> dict[str, str]:
    """Returns the CloudEvents attributes of an offer."""
    return {"specversion": "1.0", "type": "misfire.offer.v1", "source": source, "id": sample}


def fit_offer(offer: bytes, packet_limit: int | None) -> bytes:
    """Returns an offer that fits into the broker's packets, without as many optional fields as necessary."""
    if packet_limit is None or len(offer) + _OFFER_ROOM <= packet_limit:
        return offer
    fields = json.loads(offer)
    smaller = offer
    # The further boxes first: they are least of what a reader of the offer needs.
    for name in ("", *_OPTIONAL):
        if name:
            fields.pop(name, None)
        else:
            _keep_few_boxes(fields)
        # Without spaces, like `encode`: the aim is the size.
        smaller = json.dumps(fields, separators=(",", ":")).encode()
        if len(smaller) + _OFFER_ROOM <= packet_limit:
            return smaller
    return smaller


def _keep_few_boxes(fields: dict[str, Any]) -> None:
    """Keeps the best boxes of a prediction, and counts the others as not carried."""
    prediction = fields.get("prediction") or {}
    boxes, more = prediction.get("boxes"), prediction.get("more")
    if isinstance(boxes, list) and isinstance(more, int) and len(boxes) > _FEW_BOXES:
        prediction.update(boxes=boxes[:_FEW_BOXES], more=more + len(boxes) - _FEW_BOXES)
