"""Runs the frame path: frames in; scores, choices and samples out.

sources --FrameReader--> Scorer --> (DelayLine) --> Selector --> SampleWriter (its own thread) --> spool

`Vehicle.run` is the frame path and the only place that takes frames. What other threads want of it (a new
bundle, a new configuration) is prepared by them completely and taken over between two frames; the old is
closed afterwards. So a bundle that does not load, or a table that is wrong, changes nothing.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from misfire_runtime.config.tables import VehicleConfig
from misfire_runtime.engines.scoring import Scored, Scorer
from misfire_runtime.errors import EngineError, ImageError, SpoolError
from misfire_runtime.samples.clips import ClipRecorder
from misfire_runtime.samples.privacy import Privacy
from misfire_runtime.samples.writer import SampleStore, SampleWriter, WriterOptions
from misfire_runtime.service.degrade import DegradationLadder
from misfire_runtime.sources import Frame, FrameReader, Source
from misfire_runtime.sources.context import Context
from misfire_runtime.state.progress import Progress
from misfire_runtime.state.statistics import Statistics
from misfire_runtime.temporal.base import NAME as TEMPORAL
from misfire_runtime.temporal.drop import NAME as BOX_DROP
from misfire_runtime.temporal.drop import BoxDrop
from misfire_runtime.temporal.levels import Levels
from misfire_runtime.triggers import ScoredFrame, Selector, build_triggers
from misfire_runtime.triggers.base import TriggerTable
from misfire_runtime.triggers.budget import Budget
from misfire_runtime.triggers.build import default_triggers
from misfire_runtime.triggers.memory import Learned, TriggerMemory
from misfire_runtime.triggers.novelty import Novelty
from misfire_runtime.triggers.random_stream import (
    RandomStream,
    kept_seed,
    live_identity,
    recorded_identity,
)
from misfire_runtime.vehicle.delay import DelayLine, Held
from misfire_runtime.vehicle.probation import Vitals, memory_bytes

_LOG = logging.getLogger(__name__)
TICK_S = 1.0
"""Between two ticks: counts are written and the watchdog is fed; systemd waits for 60 s."""
REMEMBER_S = 30.0
"""How often it is written down what triggers have learned."""
MAX_ENGINE_FAILURES = 10
"""In a row: one bad frame is skipped, an engine that is lost ends the run, so that it is started again."""
COMING_S = 5.0
"""Frames are coming if the last was taken from a source within this time."""


@dataclass(frozen=True)
class Report:
    """Reports what a run did. `frames` were scored; `unreadable` and `dropped` were not."""

    frames: int
    unreadable: int
    dropped: int
    chosen: dict[str, int]
    spooled: int
    duplicates: int
    suppressed: dict[str, int]
    lost: dict[str, int]
    refused_scores: dict[str, int]
    engine: str
    provider: str
    bundle: str
    frames_per_s: float
    latency_ms_p50: float
    latency_ms_p99: float
    problems: list[str] = field(default_factory=list)
    finished: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Returns the report for JSON."""
        return asdict(self)


class Vehicle:
    """Runs one process's pipeline. `run` may be called once; `close` is safe at any time after it."""

    def __init__(
        self,
        config: VehicleConfig,
        *,
        scorer: Scorer,
        store: SampleStore,
        sources: Sequence[Source],
        state_dir: Path,
        context: Context | None = None,
        resume: bool = True,
        on_tick: Callable[[Vehicle], None] | None = None,
        on_frame: Callable[[ScoredFrame], None] | None = None,
    ) -> None:
        """Builds triggers, privacy and writer, and goes on from the state of an earlier run.

        Args:
            config: the checked configuration.
            scorer: loaded and warmed up; the vehicle closes it.
            store: the spool.
            sources: opened by `run`.
            state_dir: where budgets, positions and what triggers learned are kept.
            context: signals of the vehicle; None has none.
            resume: go on where an interrupted run stopped.
            on_tick: called about once a second from the frame path while it is alive (watchdog, progress).
            on_frame: called from the frame path with every scored frame, once it is decided on.

        Raises:
            ConfigError: triggers do not fit the bundle.
        """
        state_dir.mkdir(parents=True, exist_ok=True)
        self.config = config
        self.scorer = scorer
        self.statistics = Statistics()
        self.context = context or Context()
        self.sources = tuple(sources)
        self.budget = Budget(state_dir / "budget.json", limits=config.limits)
        self.ladder = DegradationLadder(config.degrade)
        self.privacy = Privacy(config.privacy) if config.privacy is not None else None
        self._run_id = secrets.token_hex(8)
        self._kept_seed = kept_seed(state_dir / "seed.json")
        self._random = self._make_random(config)
        self.selector = self._make_selector(config, scorer)
        self._progress = Progress(state_dir / "progress.json")
        self._memory = TriggerMemory(state_dir / "triggers.json")
        self._resume = resume
        self._delay = self._make_delay()
        self._drop = self._make_drop()
        if resume:
            self._relearn(self._memory.load(scorer.label))
        self._on_tick = on_tick
        self.on_frame = on_frame
        self._pending_lock = threading.Lock()
        self._pending: tuple[VehicleConfig, Scorer, Selector] | None = None
        self._counted = {"frames": 0, "frames_dropped": 0, "frames_unreadable": 0}
        self._positions: dict[str, int] = {}
        self._identities = {source.name: source.identity for source in sources}
        self._live = {source.name: source.live for source in sources}
        self._failures = 0
        self._next_tick_s = 0.0
        self._remember_at_s = time.monotonic() + REMEMBER_S
        self._finished = False
        self._busy_since: float | None = None
        self._taken_s = float("-inf")
        self._reader: FrameReader | None = None
        self.writer = SampleWriter(
            store,
            options=_writer_options(config),
            statistics=self.statistics,
            progress=self._progress,
            privacy=self.privacy,
            budget=self.budget,
            clips=_clips(config),
            capacity=config.spool.queue,
        )

    def run(self, stop: threading.Event) -> Report:
        """Processes frames until every source has ended or `stop`; returns with all of them in the spool.

        Raises:
            SourceError: a source cannot be opened, or is lost for good.
            EngineError: the engine failed on ten frames in a row.
        """
        starts = {
            name: self._progress.start(key) for name, key in self._identities.items() if key and self._resume
        }
        self.statistics.started_s = time.monotonic()
        reader = FrameReader(self.sources, start=starts, stall_s=self.config.telemetry.stall_s)
        self._reader = reader
        try:
            while not stop.is_set():
                if not self._next_frame(reader, stop) and reader.ended:
                    break
                if self._delay is not None:
                    self._keep([self._select(held) for held in self._delay.overdue()], stop)
                if time.monotonic() >= self._next_tick_s:
                    self._tick()
        finally:
            self._decide_all(stop)
            self._busy_since = None
            self._finished = reader.ended and not stop.is_set()
            for source in self.sources:
                if reader.finished(source.name) and self._identities[source.name] and self._finished:
                    self._positions[self._identities[source.name]] = 0
            # Before the memory is saved or forgotten: only then are the chosen frames in the spool.
            self.writer.flush(self._new_counts(), self._positions)
            if self._finished:
                self._memory.forget()
            else:
                self._memory.save(self.scorer.label, self._learned())
            reader.close()
        return self.report()

    def report(self) -> Report:
        """Returns the counts so far."""
        stats, (p50, p99) = self.statistics, self.statistics.latency_ms()
        # Never 0: a run of one frame would divide by it.
        elapsed = max(1e-9, stats.last_frame_s - stats.started_s)
        return Report(
            frames=stats.frames,
            unreadable=sum(source.counts.unreadable for source in self.sources),
            dropped=sum(source.counts.dropped for source in self.sources) + stats.skipped,
            chosen=dict(stats.chosen),
            spooled=stats.spooled,
            duplicates=stats.duplicates,
            suppressed=dict(self.selector.suppressed),
            lost=dict(stats.lost),
            refused_scores=dict(stats.refused_scores),
            engine=self.scorer.engine.name,
            provider=self.scorer.engine.provider,
            bundle=self.scorer.label,
            frames_per_s=round(stats.frames / elapsed, 2),
            latency_ms_p50=round(p50, 3),
            latency_ms_p99=round(p99, 3),
            problems=[
                *(problem for source in self.sources for problem in source.counts.problems),
                *self.not_available,
            ],
            finished=self._finished,
        )

    @property
    def finished(self) -> bool:
        """Returns True if every source came to its end; what is left to do is uploading."""
        return self._finished

    @property
    def stalled(self) -> tuple[str, ...]:
        """Returns the live sources that give nothing."""
        return self._reader.stalled if self._reader is not None else ()

    @property
    def lost(self) -> tuple[str, ...]:
        """Returns the sources that ended by an error."""
        return self._reader.lost if self._reader is not None else ()

    @property
    def standing_s(self) -> float:
        """Returns the seconds spent at the current frame (or tick); 0 while waiting for the next."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def unscored_s(self) -> float:
        """Returns for how many seconds frames have come and none was scored; 0 while none come."""
        now = time.monotonic()
        silent = now - self.statistics.last_frame_s
        coming = now - self._taken_s < COMING_S or self.standing_s > 0
        return silent if coming and not self._finished else 0.0

    @property
    def not_available(self) -> list[str]:
        """Returns a sentence per source and score that triggers look at and that cannot be computed."""
        return [] if self._delay is None else self._delay.problems

    def vitals(self) -> Vitals:
        """Returns how it does, for the judgement of a desired configuration on trial."""
        return Vitals(
            frames=self.statistics.frames + self.statistics.skipped,
            unscored_s=self.unscored_s,
            memory_bytes=memory_bytes(),
        )

    def apply(self, config: VehicleConfig) -> None:
        """Switches to `config` between two frames.

        Raises:
            ConfigError: it does not fit; then nothing changes.
        """
        self._prepare(config, None)

    def use(self, scorer: Scorer) -> None:
        """Switches to a loaded and warmed-up scorer between two frames; the old one is closed after that.

        Raises:
            ConfigError: the configured triggers do not fit its scores; then nothing changes.
        """
        self._prepare(None, scorer)

    def switch(self, config: VehicleConfig, scorer: Scorer) -> None:
        """Switches both at once, so that triggers for scores that only the new bundle has are no error.

        Raises:
            ConfigError: see `apply`.
        """
        self._prepare(config, scorer)

    def _prepare(self, config: VehicleConfig | None, scorer: Scorer | None) -> None:
        with self._pending_lock:
            now = self._pending or (self.config, self.scorer, self.selector)
            config, kept = config or now[0], scorer or now[1]
            selector = self._make_selector(config, kept)
            # A scorer that was prepared and never used has no other owner.
            if scorer is not None and now[1] is not self.scorer:
                now[1].close()
            self._pending = (config, kept, selector)

    def credit(self, sample: str) -> None:
        """Gives the cost of a sample that the fleet declined back to the budget."""
        self.budget.credit(sample)

    def close(self) -> None:
        """Writes what waits, ends the threads, frees the engine."""
        if self._reader is not None:
            self._reader.close()
        # Before the budget is kept: the frames that wait still spend.
        self.writer.close()
        with suppress(SpoolError):  # a lost credit errs on the safe side
            self.budget.keep()
        self.scorer.close()

    def _next_frame(self, reader: FrameReader, stop: threading.Event) -> bool:
        """Takes and processes one frame, and keeps nothing of it: its memory serves the next."""
        # 0.2 s: how late `stop` and the next tick are noticed while no frame comes.
        frame = reader.next(0.2)
        if frame is None:
            return False
        self._taken_s = self._busy_since = time.monotonic()
        self._process(frame, stop)
        self._busy_since = None
        return True

    def _process(self, frame: Frame, stop: threading.Event) -> None:
        if self._pending is not None:
            # By the triggers that they were scored for: another bundle's scores are other scores.
            self._decide_all(stop)
            self._take_over()
        live = self._live[frame.source]
        # Before the ladder, which may skip a frame: the random stream must be complete.
        in_stream = self._in_stream(frame, live=live)
        if live and not self.ladder.scores(frame.index) and not in_stream:
            self.statistics.skip()
            return
        began = time.perf_counter()
        scored = self._score(frame)
        if scored is None:
            return
        for name in scored.refused:
            self.statistics.refused_scores[name] += 1
        seen = ScoredFrame(frame, scored, self.scorer.label, self.context.snapshot(), self.statistics.frames)
        self._compare_with_minutes(seen, live=live)
        held = Held(seen, in_stream)
        settled = [held] if self._delay is None else self._delay.add(held, live=live)
        chosen = [self._select(held) for held in settled]
        self.statistics.frame(scored.scores, latency_s=time.perf_counter() - began)
        self._keep(chosen, stop)

    def _compare_with_minutes(self, frame: ScoredFrame, *, live: bool) -> None:
        """Adds the score `box_drop`, if a trigger looks at it and it is known."""
        if self._drop is None:
            return
        drop, levels = self._drop
        time_s = frame.time_s if live or frame.frame.pts_s is not None else None
        value = drop.see(frame.source, frame.scored.answer("boxes"), time_s)
        if value is not None:
            # The level first: a frame is compared with those before it.
            frame.scored.add(BOX_DROP, value, level=levels.level(value))
            levels.add(value)

    def _decide_all(self, stop: threading.Event) -> None:
        """Decides on the frames that wait, without what would have been known of them later."""
        if self._delay is not None:
            self._keep([self._select(held) for held in self._delay.flush()], stop)

    def _select(self, held: Held) -> ScoredFrame:
        """Returns the frame with the choice on it, if it is kept."""
        frame = held.frame
        if self._delay is not None and TEMPORAL in frame.scored.scores:
            self.statistics.late_score(TEMPORAL, frame.scored.scores[TEMPORAL])
        triggered = not (self._live[frame.source] and self.ladder.random_only)
        choice = self.selector.select(frame, in_stream=held.in_stream, triggered=triggered)
        return frame if choice is None else replace(frame, choice=choice)

    def _keep(self, decided: Sequence[ScoredFrame], stop: threading.Event) -> None:
        """Hands in the frames that are kept; the others at most to the clips' ring."""
        for seen in decided:
            if seen.choice is not None:
                self.writer.put(seen, wait=not self._live[seen.source], stop=stop)
            # Clips are the first thing that the ladder leaves out.
            elif self.writer.clips is not None and self.ladder.step == 0:
                self.writer.offer_to_ring(seen)
            if self.on_frame is not None:
                self.on_frame(seen)
            # Only of frames that are decided on: a restart reads those that waited again.
            identity = self._identities[seen.source]
            if identity:
                self._positions[identity] = seen.frame.index + 1

    def _in_stream(self, frame: Frame, *, live: bool) -> bool:
        if self._random.rate <= 0:
            return False
        identity = live_identity(frame, run=self._run_id) if live else recorded_identity(frame)
        return self._random.takes(identity)

    def _score(self, frame: Frame) -> Scored | None:
        try:
            scored = self.scorer.score(frame.image)
        except ImageError as error:
            self._source(frame.source).counts.skip(f"{frame.name}: {error}")
            return None
        except EngineError as error:
            self.statistics.engine_failures += 1
            self._failures += 1
            _LOG.error("engine_failed", extra={"fields": {"frame": frame.index, "problem": str(error)}})
            if self._failures >= MAX_ENGINE_FAILURES:
                raise EngineError(f"gave up after {self._failures} failures in a row: {error}") from error
            return None
        self._failures = 0
        return scored

    def _source(self, name: str) -> Source:
        return next(source for source in self.sources if source.name == name)

    def _take_over(self) -> None:
        with self._pending_lock:
            assert self._pending is not None
            config, scorer, selector = self._pending
            self._pending = None
        # Counts go on; they are those of the process, not of a configuration.
        selector.suppressed = self.selector.suppressed
        old = self.scorer
        # Thresholds learned from one bundle's scores mean nothing for another's.
        learned = self._learned() if scorer is old else {}
        if (config.clips, config.encode) != (self.config.clips, self.config.encode):
            self.writer.change(_writer_options(config), _clips(config))
        self.ladder.table = config.degrade
        self.config, self.scorer, self.selector, self._random = config, scorer, selector, selector.random
        self.budget.limits = config.limits
        self._delay = self._make_delay()
        # A new threshold changes no answer, so what was usual stays.
        if scorer is not old or self._drop is None or BOX_DROP not in selector.used:
            self._drop = self._make_drop()
        self._relearn(learned)
        if scorer is not old:
            old.close()
            _LOG.info("bundle_switched", extra={"fields": {"from": old.label, "to": scorer.label}})

    def _make_selector(self, config: VehicleConfig, scorer: Scorer) -> Selector:
        random = self._random
        if config.random != self.config.random:
            random = self._make_random(config)
        used: set[str] = set()
        tables: Mapping[str, TriggerTable] = config.triggers
        if "triggers" not in config.model_fields_set:
            tables = default_triggers(tables, scorer=scorer)
        return Selector(
            # Campaigns first: of two that want a frame alike, the first names the sample, and the fleet
            # counts a campaign's samples by that name.
            build_triggers({**config.campaigns, **tables}, scorer=scorer, used=used),
            used=used,
            random=random,
            novelty=Novelty(**config.novelty.model_dump()) if config.novelty is not None else None,
            budget=self.budget,
        )

    def _make_delay(self) -> DelayLine | None:
        """Returns a place for frames to wait, if a trigger looks at what is known only later."""
        # A bundle may have a score of that name: then it is known at once.
        if TEMPORAL not in self.selector.used or TEMPORAL in self.scorer.tables:
            return None
        return DelayLine(self.scorer)

    def _make_drop(self) -> tuple[BoxDrop, Levels] | None:
        """Returns the memory of the last minutes, and the drops so far, if a trigger looks at them."""
        if BOX_DROP not in self.selector.used or BOX_DROP in self.scorer.tables:
            return None
        rule = self.scorer.bundle.manifest.detection
        return BoxDrop(threshold=0.0 if rule is None else rule.score_threshold), Levels()

    def _learned(self) -> Learned:
        late = {} if self._delay is None else self._delay.learned()
        return {**self.selector.learned(), **late}

    def _relearn(self, learned: Learned) -> None:
        self.selector.relearn(learned)
        if self._delay is not None:
            self._delay.relearn(learned)

    def _make_random(self, config: VehicleConfig) -> RandomStream:
        seed = config.random.seed
        return RandomStream(rate=config.random.rate, seed=self._kept_seed if seed is None else seed)

    def _tick(self) -> None:
        self._busy_since = time.monotonic()
        self._next_tick_s = self._busy_since + TICK_S
        self.ladder.update(latency_ms=self.statistics.recent_latency_ms, queue_fill=self.writer.fill)
        counts = self._new_counts()
        keep: Callable[[], None] = self.budget.keep
        if time.monotonic() >= self._remember_at_s:
            self._remember_at_s = time.monotonic() + REMEMBER_S
            keep = partial(self._remember, self.scorer.label, self._learned())
        # A copy of the positions: the frame path goes on while the writer writes them.
        if not self.writer.mark(counts, dict(self._positions), keep):
            for name, value in counts.items():
                # The queue is full: these counts are handed in with the next tick.
                self._counted[name] -= value
        if self._on_tick is not None:
            self._on_tick(self)
        self._busy_since = None

    def _remember(self, bundle: str, learned: Learned) -> None:
        """Writes what triggers learned, on the writer's thread: the frame path never waits for the disk."""
        self._memory.save(bundle, learned)
        self.budget.keep()

    def _new_counts(self) -> dict[str, int]:
        """Returns what was not yet added to the spool's counters."""
        now = {
            "frames": self.statistics.frames,
            "frames_dropped": sum(source.counts.dropped for source in self.sources) + self.statistics.skipped,
            "frames_unreadable": sum(source.counts.unreadable for source in self.sources),
        }
        new = {name: value - self._counted[name] for name, value in now.items()}
        self._counted = now
        return new


def _writer_options(config: VehicleConfig) -> WriterOptions:
    return WriterOptions(
        vehicle=config.vehicle,
        jpeg_quality=config.encode.jpeg_quality,
        keep_original=config.encode.keep_original,
        named_sources=any(source.name for source in config.source),
    )


def _clips(config: VehicleConfig) -> ClipRecorder | None:
    table = config.clips
    if table is None:
        return None
    return ClipRecorder(
        before_s=table.before_s,
        after_s=table.after_s,
        fps=table.fps,
        form=table.format,
        max_bytes=table.max_bytes,
    )
