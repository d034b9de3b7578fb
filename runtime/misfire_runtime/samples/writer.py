"""Writes chosen frames as samples into the spool, on one thread beside the frame path.

pipeline --bounded queue--> privacy --> encode --> budget --> spool.add --> budget booked, progress marked

A picture that no privacy stage changed is kept as the very bytes it was read from; any other is encoded once,
and those bytes are what arrives. Recorded sources wait for room in the queue; live ones never do: what
finds no room is counted as lost, by reason.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from misfire_runtime.clock import boot_id
from misfire_runtime.errors import DiskFullError, ImageError, MisfireError, PrivacyError, SpoolError
from misfire_runtime.messages import Clock, Counters, Offer, pack_embedding
from misfire_runtime.samples.clips import ClipRecorder
from misfire_runtime.samples.encoding import Encoded, encode
from misfire_runtime.samples.privacy import Privacy
from misfire_runtime.service.logs import Throttle
from misfire_runtime.service.worker import Worker
from misfire_runtime.state.progress import Progress
from misfire_runtime.state.statistics import Statistics
from misfire_runtime.triggers.budget import Budget
from misfire_runtime.triggers.scored_frame import Choice, ScoredFrame

_LOG = logging.getLogger(__name__)
MAX_EMBEDDING = 3000
"""Numbers that fit the offer's 8 KiB as base64 of float16."""


class SampleStore(Protocol):
    """Defines what the writer needs of a spool."""

    def add(self, payload: bytes, offer: Offer, *, priority: int) -> bool:
        """Keeps a sample, durably on return; returns False if it is known already."""
        ...

    def count(self, **increments: int) -> None:
        """Adds to persistent counters."""
        ...

    def lose(self, reason: str, samples: int) -> None:
        """Adds to persistent counts of chosen frames that never became samples."""
        ...

    def counters(self) -> Counters:
        """Returns all counters."""
        ...


@dataclass(frozen=True, slots=True)
class Mark:
    """Marks a point in the queue: what to count and write once everything before it is handled."""

    counts: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    done: threading.Event | None = None
    then: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Switches to other options and another clip recorder from here on."""

    options: WriterOptions
    clips: ClipRecorder | None


@dataclass(frozen=True)
class WriterOptions:
    """Specifies how pictures are written."""

    vehicle: str
    jpeg_quality: int = 90
    keep_original: bool = True
    named_sources: bool = False


class SampleWriter:
    """Owns the thread that writes samples."""

    def __init__(
        self,
        store: SampleStore,
        *,
        options: WriterOptions,
        statistics: Statistics,
        progress: Progress,
        privacy: Privacy | None = None,
        budget: Budget | None = None,
        clips: ClipRecorder | None = None,
        capacity: int = 32,
    ) -> None:
        self.options = options
        self.clips = clips
        self.budget = budget
        self._store = store
        self._statistics = statistics
        self._progress = progress
        self._privacy = privacy
        # Bounded: pictures in it keep their pixels in memory.
        self._queue: queue.Queue[ScoredFrame | Mark | Change | None] = queue.Queue(capacity)
        self._counted_lost: Counter[str] = Counter()
        self._often = Throttle(_LOG)
        self._uncounted: Counter[str] = Counter()
        """What the store could not take yet: a full disk must not make the counters forget frames."""
        self.failure: MisfireError | None = None
        """The last that the run ends with, whether or not it is over."""
        self.trouble: MisfireError | None = None
        """What has kept samples from the store since it last took one."""
        self._worker = Worker("sample-writer", self._run, wake=lambda: self._queue.put(None))
        self._worker.start()

    @property
    def fill(self) -> float:
        """Returns how full the queue is, 0..1."""
        return self._queue.qsize() / self._queue.maxsize

    def put(self, frame: ScoredFrame, *, wait: bool, stop: threading.Event) -> bool:
        """Hands in a frame that is kept.

        Args:
            frame: with its choice.
            wait: until there is room or `stop`; else a full queue loses the frame, which is counted.
            stop: ends the wait.

        Returns:
            False if the frame was lost.
        """
        while True:
            try:
                # Short waits, so that `stop` ends them.
                self._queue.put(frame, block=wait, timeout=0.2)
                return True
            except queue.Full:
                if not wait or stop.is_set():
                    self._statistics.lost["queue full"] += 1
                    return False

    def offer_to_ring(self, frame: ScoredFrame) -> None:
        """Hands in a frame for the clip ring; drops it if the queue is half full."""
        # The other half is for chosen frames: a clip's surroundings are worth less.
        if self.fill < 0.5:
            try:
                self._queue.put_nowait(frame)
            except queue.Full:
                return

    def mark(
        self, counts: dict[str, int], positions: dict[str, int], then: Callable[[], None] | None = None
    ) -> bool:
        """Hands in counts and positions that hold once everything before them is written.

        Args:
            counts: to add to the store's.
            positions: of recordings, by their identity.
            then: something else to write at this point; a MisfireError that it raises is counted.

        Returns:
            False if the queue is full: try again later.
        """
        try:
            self._queue.put_nowait(Mark(counts, positions, then=then))
        except queue.Full:
            return False
        return True

    def change(self, options: WriterOptions, clips: ClipRecorder | None) -> None:
        """Switches to other options behind the frames that wait; open clips are finished first."""
        self._queue.put(Change(options, clips))

    def flush(self, counts: dict[str, int], positions: dict[str, int]) -> None:
        """Waits until everything handed in before is in the spool."""
        done = threading.Event()
        self._queue.put(Mark(counts, positions, done))
        # Looks at the thread in between: if it died, nobody would set the event.
        while not done.wait(0.5):
            if not self._worker.alive:
                return

    def close(self) -> None:
        """Writes what is waiting and ends the thread."""
        # No limit: what waits is chosen, and a slow disk must not lose it.
        self._worker.close(timeout_s=None)

    def _run(self, _stop: threading.Event) -> None:
        while True:
            item = self._queue.get()
            # Queued last by `close`, so everything before it is written.
            if item is None:
                self._guard(self._end_clips)
                self._guard(self._count_lost)
                return
            if isinstance(item, Mark):
                self._settle(item)
            elif isinstance(item, Change):
                self._guard(self._end_clips)
                self.options, self.clips = item.options, item.clips
            else:
                self._guard(partial(self._handle, item))

    def _guard(self, work: Callable[[], None]) -> None:
        """Runs `work`; a failure loses one sample, is counted and logged, and never ends the thread."""
        try:
            work()
        except PrivacyError as error:
            self._lose("privacy", error)
        # Before MisfireError, of which it is a subclass; so are the others above it.
        except DiskFullError as error:
            self._lose("disk full", error)
            self._fail(error)
        except ImageError as error:
            self._lose("encoding", error)
        except MisfireError as error:
            self._lose("spool", error)
            self._fail(error)
        except Exception as error:  # noqa: BLE001  (a codec's or driver's own; the thread must outlive it)
            self._lose(type(error).__name__, error)
            self._fail(SpoolError(f"{type(error).__name__}: {error}"))

    def _count_lost(self) -> None:
        """Makes durable what was lost since the last time, here or on the frame path, which never waits."""
        for reason, count in dict(self._statistics.lost).items():
            if count > self._counted_lost[reason]:
                self._store.lose(reason, count - self._counted_lost[reason])
                self._counted_lost[reason] = count

    def _fail(self, error: MisfireError) -> None:
        self.failure = self.trouble = error

    def _settle(self, mark: Mark) -> None:
        try:
            self._count_lost()
            # Kept until the store has taken them: see `_uncounted`.
            self._uncounted.update({name: value for name, value in mark.counts.items() if value})
            if self._uncounted:
                self._store.count(**self._uncounted)
                self._uncounted.clear()
            # After the counts: a crash in between reads frames again, and does not lose them.
            if mark.positions:
                self._progress.save(mark.positions)
            if mark.then is not None:
                mark.then()
        except MisfireError as error:
            self._lose("counting", error)
            self._fail(error)
        finally:
            if mark.done is not None:
                mark.done.set()

    def _handle(self, frame: ScoredFrame) -> None:
        options = self.options
        try:
            encoded = encode(
                frame,
                privacy=self._privacy,
                jpeg_quality=options.jpeg_quality,
                keep_original=options.keep_original,
            )
        except (PrivacyError, ImageError):
            if frame.choice is None:  # it was for a clip's ring alone: nothing that was chosen is lost
                return
            raise
        sample = self._keep(encoded) if frame.choice is not None else None
        if self.clips is not None:
            self._keep_all(self.clips.see(encoded, sample=sample))

    def _end_clips(self) -> None:
        if self.clips is not None:
            self._keep_all(self.clips.finish())

    def _lose(self, reason: str, error: Exception) -> None:
        self._statistics.lost[reason] += 1
        fields = {"reason": reason, "count": self._statistics.lost[reason], "problem": str(error)}
        self._often.log(logging.ERROR, "sample_lost", fields, key=reason)

    def _keep(self, encoded: Encoded) -> str | None:
        """Spools a sample; its id, or None if the budget had no room."""
        choice, size = encoded.frame.choice, len(encoded.data)
        assert choice is not None
        if choice.budgeted and self.budget is not None and self.budget.refusal(size) is not None:
            self._statistics.lost["budget"] += 1
            return None
        offer = self._offer(encoded, choice)
        self._add(encoded.data, offer, choice.priority, budgeted=choice.budgeted)
        return offer.id

    def _add(self, data: bytes, offer: Offer, priority: int, *, budgeted: bool) -> None:
        added = self._store.add(data, offer, priority=priority)
        self.trouble = None
        if not added:
            self._statistics.duplicates += 1
            return
        self._statistics.spooled += 1
        self._statistics.chosen[offer.trigger.name] += 1
        if budgeted and self.budget is not None:
            # After the sample is durable: a crash in between spends too little, not for nothing.
            self.budget.spend(offer.id, len(data))

    def _keep_all(self, parts: Sequence[Encoded]) -> None:
        """Spools what the clip recorder completed, as far as the budget goes."""
        for part in parts:
            self._keep(part)

    def _offer(self, encoded: Encoded, choice: Choice) -> Offer:
        whole = encoded.frame
        frame, scored = whole.frame, whole.scored
        embedding = scored.embedding
        named = self.options.named_sources and frame.name != frame.source
        return Offer(
            id=hashlib.sha256(encoded.data).hexdigest(),
            vehicle=self.options.vehicle,
            size=len(encoded.data),
            media_type=encoded.media_type,
            captured_at=Clock(wall=frame.wall, monotonic=frame.monotonic, boot_id=boot_id()),
            bundle=whole.bundle,
            scores=scored.scores,
            percentiles=scored.percentiles,
            trigger=choice.trigger,
            prediction=encoded.prediction,
            embedding=None
            if embedding is None or embedding.size > MAX_EMBEDDING
            else pack_embedding(embedding),
            # 64 is the limit of an offer.
            context=dict(list(whole.context.items())[:64]),
            privacy=list(encoded.privacy),
            source=(f"{frame.source}/{frame.name}" if named else frame.name)[:256],
            frame=frame.index,
            priority=choice.priority,
            recorded_at=frame.recorded_at,
            position_s=frame.position_s,
        )
