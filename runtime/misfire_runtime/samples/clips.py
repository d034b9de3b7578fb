"""Collects the frames before and after a chosen one, from a ring of encoded frames.

every frame (thinned to `fps`) --encoded--> ring of `before_s`, bounded in bytes
a chosen frame --> the ring is emptied into its clip, and the next `after_s` are added

"frames" gives each as a sample of its own, tied together by context["clip"]; "video" gives one MP4 whose
pictures are the ring's JPEGs, not encoded again. Frames of one source never enter another's clip.
"""

from __future__ import annotations

import io
from collections import deque
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from pydantic import Field

from misfire_runtime.encoded import exif_block
from misfire_runtime.messages import Trigger
from misfire_runtime.preprocess import encode_jpeg
from misfire_runtime.samples.encoding import Encoded
from misfire_runtime.sources.recording_time import exif_orientation
from misfire_runtime.tables import Table
from misfire_runtime.triggers.scored_frame import Choice

_TIME_BASE = Fraction(1, 1000)
"""Milliseconds: frames come at their own times, not at a fixed rate."""
CLIP_PRIORITY = 4
"""Below the 5 of triggers: a full spool gives up the frames around a chosen one before it."""


class ClipsTable(Table):
    """Frames around a chosen one. "frames" uploads each as its own sample, "video" one MP4."""

    before_s: float = Field(default=1.0, ge=0, le=60)
    after_s: float = Field(default=1.0, ge=0, le=60)
    fps: float = Field(default=5.0, gt=0, le=60)
    format: Literal["frames", "video"] = "frames"
    max_bytes: int = Field(
        default=256 * 1024**2, gt=0, description="memory of the ring and of the open video, per source"
    )


@dataclass(slots=True)
class _Lane:
    """Holds the ring and the open clip of one source."""

    ring: deque[Encoded] = field(default_factory=deque)
    ring_bytes: int = 0
    next_s: float = float("-inf")
    last_s: float = float("-inf")
    clip: str = ""
    key_s: float = float("-inf")
    video: list[Encoded] = field(default_factory=list)
    video_bytes: int = 0
    key: Encoded | None = None


class ClipRecorder:
    """Manages rings and open clips of all sources; used by one thread."""

    def __init__(
        self,
        *,
        before_s: float,
        after_s: float,
        fps: float,
        form: Literal["frames", "video"] = "frames",
        max_bytes: int = 256 * 1024**2,
    ) -> None:
        """fps: at which frames enter the ring, in the time of the recording.

        max_bytes: memory of the ring, and of the open video, of each source. A full ring forgets its oldest
        frame; a full video ends, and the next chosen frame begins another.
        """
        self._before_s = before_s
        self._after_s = after_s
        self._period_s = 1.0 / fps
        self._form = form
        self._max_bytes = max_bytes
        self._lanes: dict[str, _Lane] = {}

    def see(self, entry: Encoded, *, sample: str | None) -> list[Encoded]:
        """Takes the next frame of its source and returns the samples that it completes.

        Args:
            entry: the frame, encoded. A clip begins if a trigger chose it; the random stream begins none.
            sample: its id in the spool; None if it is not there.

        Returns:
            Frames of the clip, or its video, each with the choice to keep it.
        """
        choice, now = entry.frame.choice, entry.time_s
        lane = self._lanes.setdefault(entry.frame.source, _Lane())
        pieces = self._advance(lane, now)
        if choice is not None and not choice.trigger.random and sample is not None:
            pieces += self._chosen(lane, entry, sample)
            lane.next_s = now + self._period_s
        # 1e-6: frames at exactly `fps` must not be left out by a rounding error.
        elif now + 1e-6 >= lane.next_s:
            lane.next_s = now + self._period_s
            pieces += self._passing(lane, entry)
        return pieces

    def finish(self) -> list[Encoded]:
        """Ends every open clip, because the sources have ended, and returns what they complete."""
        return [piece for lane in self._lanes.values() for piece in self._finish(lane)]

    def _advance(self, lane: _Lane, now: float) -> list[Encoded]:
        """Ends a clip whose time is over, and everything if the recording's time went backwards."""
        # A replay began again, or a camera's clock jumped: the frames before do not belong to it.
        if now < lane.last_s:
            pieces = self._finish(lane)
            lane.ring.clear()
            lane.ring_bytes, lane.next_s = 0, now
        else:
            pieces = self._finish(lane) if now - lane.key_s > self._after_s else []
        lane.last_s = now
        return pieces

    def _chosen(self, lane: _Lane, entry: Encoded, sample: str) -> list[Encoded]:
        """Opens a clip for a chosen frame, or prolongs the one that is open."""
        if lane.key is None:
            return self._open(lane, entry, sample)
        lane.key_s = entry.time_s
        return self._film(lane, entry) if self._form == "video" else []

    def _film(self, lane: _Lane, *entries: Encoded) -> list[Encoded]:
        """Adds frames to the open video, and ends it when it is full."""
        lane.video += entries
        lane.video_bytes += sum(entry.memory_bytes for entry in entries)
        return self._finish(lane) if lane.video_bytes > self._max_bytes else []

    def _passing(self, lane: _Lane, entry: Encoded) -> list[Encoded]:
        if lane.key is None:
            self._remember(lane, entry)
            return []
        if self._form == "video":
            return self._film(lane, entry)
        return [self._single(lane, entry)]

    def _remember(self, lane: _Lane, entry: Encoded) -> None:
        lane.ring.append(entry)
        lane.ring_bytes += entry.memory_bytes
        newest = entry.time_s
        while lane.ring and (
            lane.ring_bytes > self._max_bytes or not 0 <= newest - lane.ring[0].time_s <= self._before_s
        ):
            lane.ring_bytes -= lane.ring.popleft().memory_bytes

    def _open(self, lane: _Lane, entry: Encoded, sample: str) -> list[Encoded]:
        # 16 hexadecimal digits are 64 bits: enough to tell clips apart.
        lane.clip, lane.key = sample[:16], entry
        lane.key_s = entry.time_s
        before = [e for e in lane.ring if 0 <= lane.key_s - e.time_s <= self._before_s]
        lane.ring.clear()
        lane.ring_bytes = 0
        if self._form == "video":
            return self._film(lane, *before, entry)
        return [self._single(lane, e) for e in before]

    def _single(self, lane: _Lane, entry: Encoded) -> Encoded:
        assert lane.key is not None
        offset = entry.time_s - lane.key.time_s
        why = f"{offset:+.2f} s from a frame of {_trigger_of(lane.key)}"
        return _part_of_clip(entry, why, clip=lane.clip, clip_offset_s=round(offset, 3))

    def _finish(self, lane: _Lane) -> list[Encoded]:
        key, frames = lane.key, lane.video
        lane.key, lane.video, lane.video_bytes = None, [], 0
        if self._form != "video" or key is None:
            return []
        # One size per video: a folder may mix pictures of several.
        frames = [entry for entry in frames if entry.frame.image.shape == key.frame.image.shape]
        # One frame is no video, and it is a sample of its own already.
        if len(frames) < 2:
            return []
        privacy = sorted({label for entry in frames for label in entry.privacy})
        video = Encoded(mux_mjpeg(frames), "video/mp4", privacy, key.frame, key.region)
        why = f"{len(frames)} frames around a frame of {_trigger_of(key)}"
        return [_part_of_clip(video, why, clip=lane.clip, clip_frames=len(frames))]


def _trigger_of(key: Encoded) -> str:
    assert key.frame.choice is not None
    return key.frame.choice.trigger.name


def _part_of_clip(encoded: Encoded, reason: str, **context: float | str) -> Encoded:
    """Returns the same bytes, chosen because they belong to a clip, which `context` names in the offer."""
    choice = Choice(Trigger(name="clip", reason=reason[:256]), CLIP_PRIORITY, budgeted=True)
    frame = replace(encoded.frame, choice=choice, context={**encoded.frame.context, **context})
    return replace(encoded, frame=frame)


def mux_mjpeg(frames: list[Encoded]) -> bytes:
    """Returns one MP4 of JPEG pictures of the same size at their own times.

    Pictures that are not JPEG, or that only their Exif orientation turns upright, are encoded once.
    """
    import av  # here, because every command that reads a configuration imports this module

    height, width = frames[0].frame.image.shape[:2]
    buffer = io.BytesIO()
    first_s = frames[0].frame.time_s
    with av.open(buffer, "w", format="mp4") as container:
        # A nominal rate: each packet has its own time.
        stream = container.add_stream("mjpeg", rate=25)
        # yuvj420p: JPEG's full range of values.
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        stream.time_base = _TIME_BASE
        for encoded in frames:
            packet = av.Packet(_upright_jpeg(encoded))
            packet.stream = stream
            packet.time_base = _TIME_BASE
            packet.pts = packet.dts = round((encoded.time_s - first_s) * 1000)
            # Each JPEG stands for itself, so a player may begin anywhere.
            packet.is_keyframe = True
            container.mux(packet)
    return buffer.getvalue()


def _upright_jpeg(encoded: Encoded) -> bytes:
    """Returns a JPEG that is upright for players that know no Exif."""
    if encoded.media_type == "image/jpeg" and exif_orientation(exif_block(encoded.data)) == 1:
        return encoded.data
    return encode_jpeg(encoded.frame.image)
