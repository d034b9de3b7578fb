"""Provides frame sources: `open_source` turns what a user writes into the class that reads it.

folder, image or video file  -> files.RecordedFiles      recorded: every frame, then the end
drive.mcap, rosbag2 folder   -> replay.McapReplay         recorded (extra `replay`)
rtsp://..., http://...       -> stream.LiveStream         live: reconnects
/dev/video0, v4l2:/dev/...   -> stream.LiveStream         live
gst:PIPELINE                 -> gstreamer.GStreamerPipeline  live: a process of its own
"""

from __future__ import annotations

from misfire_runtime.sources.frame import Frame, Source, SourceCounts
from misfire_runtime.sources.reader import FrameReader
from misfire_runtime.sources.registry import open_source

__all__ = ["Frame", "FrameReader", "Source", "SourceCounts", "open_source"]
