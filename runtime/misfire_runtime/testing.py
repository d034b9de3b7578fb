r"""Provides doubles for tests of your own integration: no camera, no model file, no disk, no broker.

    ListSource --frames--> Vehicle(Scorer(make_bundle(...), FakeEngine(...))) --samples--> MemoryStore

Each double implements one protocol of the vehicle (`Source`, `Engine`, `SampleStore`) and can be told to
fail. `make_offer` makes valid messages for tests of what comes after the vehicle. This example drives a whole
vehicle with an engine whose score is the image's brightness, and asks which frames were kept:

>>> import tempfile, threading
>>> from pathlib import Path
>>> import numpy as np
>>> from misfire_runtime.config.tables import parse_config
>>> from misfire_runtime.engines.scoring import Scorer
>>> from misfire_runtime.vehicle.pipeline import Vehicle
>>> text = '[triggers.bright]\nkind = "threshold"\nabove = 0.5\n[random]\nrate = 0.0\n'
>>> images = [np.full((8, 8, 3), level, np.uint8) for level in (10, 240, 20)]
>>> store = MemoryStore()
>>> with tempfile.TemporaryDirectory() as folder:
...     engine = FakeEngine(lambda batch: {"entropy": batch.mean()})
...     vehicle = Vehicle(
...         parse_config(text),
...         scorer=Scorer(make_bundle(Path(folder) / "bundle"), engine),
...         store=store,
...         sources=[ListSource(images)],
...         state_dir=Path(folder) / "state",
...     )
...     report = vehicle.run(threading.Event())
...     vehicle.close()
>>> report.frames, [offer.frame for offer in store.offers]
(3, [1])
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.bundle import (
    MODEL,
    Bundle,
    Calibration,
    Lineage,
    Manifest,
    OutputSpec,
    QuantileTable,
    ScoreSpec,
    hash_files,
    write_manifest,
)
from misfire_runtime.errors import DiskFullError, EngineError
from misfire_runtime.messages import Clock, Counters, Offer, Trigger, decode, encode, pack_embedding
from misfire_runtime.preprocess import Image, InputContract
from misfire_runtime.sources.frame import Frame, SourceCounts

CAPTURED_AT = Clock(wall=1_700_000_000.0, monotonic=5.0, boot_id="boot")
"""When every made offer was captured, so that two runs of a test make equal offers."""


def make_offer(
    payload: bytes, *, vehicle: str = "car-1", number: int | None = None, **fields: object
) -> Offer:
    """Makes a complete, valid offer of a sample.

    Args:
        payload: The sample's bytes; the offer's id is their SHA-256.
        vehicle: Name of the vehicle that offers it.
        number: Gives the offer a frame number, a percentile and an embedding that other numbers do not have.
            Without one, all offers look alike to the collector's near-duplicate check.
        fields: Replace fields of the offer by name.

    Returns:
        The offer, validated.

    Raises:
        pydantic.ValidationError: A field does not fit the message.

    >>> offer = make_offer(b"a picture", media_type="image/png")
    >>> offer.size, offer.vehicle, offer.media_type
    (9, 'car-1', 'image/png')
    """
    embedding = np.ones(8) if number is None else np.random.default_rng(number).normal(size=32)
    values: dict[str, object] = {
        "id": hashlib.sha256(payload).hexdigest(),
        "vehicle": vehicle,
        "size": len(payload),
        "captured_at": CAPTURED_AT,
        "bundle": "lights@1.0.0",
        "scores": {"entropy": 0.7},
        "percentiles": {"entropy": 0.97 if number is None else number % 100 / 100},
        "trigger": Trigger(name="target-rate", reason="above its quantile"),
        "prediction": {"class": "red", "confidence": 0.6},
        "embedding": pack_embedding(embedding / np.linalg.norm(embedding)),
        "source": "front",
        "frame": number or 0,
    }
    return Offer.model_validate(values | fields)


def make_bundle(
    folder: Path,
    *,
    scores: Sequence[str] = ("entropy",),
    classes: Sequence[str] = ("no", "yes"),
    size: int = 8,
) -> Bundle:
    """Writes a bundle whose graph is a placeholder, for a FakeEngine to stand in for.

    Args:
        folder: Is made; the manifest and the placeholder are written into it.
        scores: Names of the failure scores. The first is the default score. Each is calibrated as uniform
            between 0 and 1, so a score's value is also its percentile.
        classes: Class names of the classification task.
        size: Height and width of the network's input in pixels.

    Returns:
        The opened bundle. `load_engine` refuses it: it holds no ONNX graph.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL).write_bytes(b"a placeholder; misfire_runtime.testing.FakeEngine answers instead")
    uniform = QuantileTable(levels=(0.0, 1.0), values=(0.0, 1.0), count=2)
    calibration = Calibration(engine=FakeEngine.name, precision="fp32", quantiles=uniform)
    outputs = [OutputSpec(name=f"score.{name}", kind="score", shape=(-1,)) for name in scores]
    manifest = Manifest(
        name="fake",
        version="1.0.0",
        task="classification",
        created_at="2025-01-01T00:00:00Z",
        input=InputContract(height=size, width=size),
        outputs=(OutputSpec(name="logits", kind="logits", shape=(-1, len(classes))), *outputs),
        classes=tuple(classes),
        scores=tuple(
            ScoreSpec(name=name, definition="of a double", free=True, calibration=calibration)
            for name in scores
        ),
        default_score=scores[0],
        lineage=Lineage(run_id="none", dataset="none", dataset_sha256="0" * 64),
        files=hash_files(folder),
    )
    write_manifest(folder, manifest)
    return Bundle.open(folder)


class FakeEngine:
    """Answers with what a function of the image returns, in place of a graph.

    >>> engine = FakeEngine({"entropy": 0.25})
    >>> engine.infer(np.zeros((1, 3, 8, 8), np.float32))["score.entropy"]
    array([0.25], dtype=float32)
    """

    name = "fake"
    provider = "fake"

    def __init__(
        self, scores: Mapping[str, float] | Callable[[NDArray[Any]], Mapping[str, float]], *, classes: int = 2
    ) -> None:
        """Keeps the answer.

        Args:
            scores: The scores by name, or a function from the network's input [1,3,H,W] to them.
            classes: Number of logits; all of them are 0.
        """
        self._scores = scores
        self._classes = classes
        self.calls = 0
        """How often `infer` was called."""
        self.failure: str | None = None
        """While set, `infer` raises EngineError with this text."""
        self.closed = False

    def infer(
        self, image: NDArray[Any], *, inputs: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Returns `logits` [1,K] and a `score.NAME` [1] per score. Raises EngineError if told to fail."""
        self.calls += 1
        if self.failure is not None:
            raise EngineError(self.failure)
        scores = self._scores(image) if callable(self._scores) else self._scores
        outputs: dict[str, NDArray[Any]] = {"logits": np.zeros((1, self._classes), np.float32)}
        return outputs | {f"score.{name}": np.asarray([value], np.float32) for name, value in scores.items()}

    def close(self) -> None:
        """Sets `closed`."""
        self.closed = True


class ListSource:
    """Gives the images of a list as frames, as a recording or as a camera."""

    def __init__(
        self,
        images: Iterable[Image],
        *,
        name: str = "front",
        live: bool = False,
        period_s: float = 0.0,
        silent_s: float = 0.0,
        failure: Exception | None = None,
        rate: float | None = None,
    ) -> None:
        """Keeps what to give.

        Args:
            images: [H,W,3] uint8 RGB each. An endless iterator makes a source that never ends by itself.
            name: What frames and offers call it.
            live: True for a camera: its reader keeps the newest frame only and never waits for room.
            period_s: Pause after each frame.
            silent_s: How long it gives nothing after the last image, as a stalled camera does.
            failure: Is raised after the last image, as by a camera that was unplugged.
            rate: Frames per second of a recording, whose frames have times; None: they have none.
        """
        self.name = name
        self.live = live
        self.identity = ""
        self.counts = SourceCounts()
        self.exhausted = threading.Event()
        """Is set when the last image was taken."""
        self._images = images
        self._period_s, self._silent_s = period_s, silent_s
        self._failure = failure
        self._rate = rate

    def frames(self, stop: threading.Event, *, start: int = 0) -> Iterator[Frame]:
        """Yields the frames from index `start` until the last or `stop`; raises `failure` after the last."""
        for index, image in enumerate(islice(self._images, start, None), start):
            pts_s = None if self._rate is None else index / self._rate
            yield Frame(image, self.name, index, self.name, pts_s=pts_s)
            if stop.wait(self._period_s) if self._period_s else stop.is_set():
                return
        self.exhausted.set()
        stop.wait(self._silent_s)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Does nothing: a list holds nothing to release."""


class MemoryStore:
    """Keeps samples in memory, in place of the spool, and checks each as the spool does.

    >>> store = MemoryStore()
    >>> store.add(b"a picture", make_offer(b"a picture"), priority=5)
    True
    >>> store.counters().captured
    1
    """

    def __init__(self) -> None:
        self.samples: dict[str, tuple[bytes, Offer]] = {}
        """Bytes and offer by sample id."""
        self.counted: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        """Chosen frames that never became samples, by reason."""
        self.full = False
        """While True, `add` raises DiskFullError."""
        self.slow_s = 0.0
        """How long each `add` takes, as on a slow disk."""

    def add(self, payload: bytes, offer: Offer, *, priority: int) -> bool:
        """Keeps a sample; False if it is known. Raises DiskFullError while `full` is set."""
        time.sleep(self.slow_s)
        if self.full:
            raise DiskFullError("no room on the disk")
        assert hashlib.sha256(payload).hexdigest() == offer.id and len(payload) == offer.size
        assert priority == offer.priority
        if offer.id in self.samples:
            return False
        # Through the wire's encoding: an offer that could not be sent must fail here and not in the fleet.
        self.samples[offer.id] = (payload, decode(Offer, encode(offer)))
        return True

    def count(self, **increments: int) -> None:
        """Adds to the counters."""
        self.counted.update(increments)

    def lose(self, reason: str, samples: int) -> None:
        """Adds to `lost`."""
        self.lost[reason] += samples

    def counters(self) -> Counters:
        """Returns the counters: all kept samples are pending."""
        kept = len(self.samples)
        return Counters(captured=kept, pending=kept, lost=dict(self.lost), **self.counted)

    @property
    def offers(self) -> list[Offer]:
        """Returns the offers of all samples in the order of their frames."""
        return sorted((offer for _payload, offer in self.samples.values()), key=lambda offer: offer.frame)
