"""Frame sources: `open_source` turns what a user writes into the class that reads it.

folder, image or video file  -> files.RecordedFiles      recorded: every frame, then the end
drive.mcap, rosbag2 folder   -> replay.McapReplay         recorded (extra `replay`)
rtsp://..., http://...       -> stream.LiveStream         live: reconnects
/dev/video0, v4l2:/dev/...   -> stream.LiveStream         live
gst:PIPELINE                 -> gstreamer.GStreamerPipeline  live: a process of its own
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from misfire_runtime.errors import SourceError
from misfire_runtime.sources.files import RecordedFiles
from misfire_runtime.sources.frame import Frame, Source, SourceCounts
from misfire_runtime.sources.gstreamer import GStreamerPipeline
from misfire_runtime.sources.kinds import kind_of
from misfire_runtime.sources.reader import FrameReader
from misfire_runtime.sources.stream import NETWORK_SCHEMES, LiveStream

__all__ = ["Frame", "FrameReader", "Source", "SourceCounts", "open_source"]


def open_source(
    where: str, *, name: str = "", topic: str | None = None, options: Mapping[str, str] | None = None
) -> Source:
    """The source that reads `where`: a path, a URL, a device, or `gst:` and a pipeline.

    name: what offers call it.  topic: image topic of an MCAP file; None is the first.
    options: FFmpeg's options of a live source. Raises SourceError that says what is wrong with it.
    """
    if where.startswith("gst:"):
        return GStreamerPipeline(where[len("gst:") :], name=name or "gstreamer")
    if where.startswith("v4l2:") or where.startswith("/dev/video"):
        return LiveStream(where.removeprefix("v4l2:"), name=name, format_name="v4l2", options=options)
    scheme, separator, _rest = where.partition("://")
    if separator:
        if scheme in NETWORK_SCHEMES:
            return LiveStream(where, name=name, options=options)
        if scheme != "file":
            known = ", ".join(NETWORK_SCHEMES)
            raise SourceError(
                f"{where}: unknown scheme {scheme!r}; known are {known}, a path, /dev/videoN and gst:"
            )
        where = where[len("file://") :]
    path = Path(where)
    if _is_recording(path):
        from misfire_runtime.sources.replay import McapReplay

        return McapReplay(path, name=name, topic=topic)
    return RecordedFiles(path, name=name)


def _is_recording(path: Path) -> bool:
    """An MCAP file, there or not, or a folder with one."""
    try:
        if path.is_dir():
            return any(file.suffix.lower() == ".mcap" for file in path.iterdir())
        return path.suffix.lower() == ".mcap" or (path.is_file() and kind_of(path) == "mcap")
    except OSError:  # RecordedFiles says what is wrong with it
        return False
