"""Reads the frozen test side of a snapshot: pictures, labels and what each frame belongs to.

snapshot --verify--> members of the test side, each frozen --> TestFrames
TestFrames --each--> (sample, picture, label), one at a time: the frames need not fit into memory
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from misfire_fleet.datasets.freezing import frozen_among
from misfire_fleet.datasets.manifest import Member
from misfire_fleet.datasets.snapshots import Snapshots
from misfire_fleet.errors import SampleGoneError, StoreError
from misfire_fleet.labels.content import Label
from misfire_fleet.retrain.snapshot import LabelContents
from misfire_fleet.store import Store
from misfire_fleet.store.records import StoredSample
from misfire_runtime.errors import ImageError
from misfire_runtime.preprocess import Image, decode_image


@dataclass(frozen=True)
class TestFrames:
    """Holds the test side of a snapshot.

    Attributes:
        name, sha256: of the snapshot.
        kind: of its labels.
        classes: the names that its labels use, with the number of frames.
        members: of the test side, by id.
        samples: those that are stored and pictures, in the order of their ids.
        left_out: sentences about those that are not.
    """

    # Not a test case, whatever its name: pytest collects classes that begin with this word.
    __test__ = False

    name: str
    sha256: str
    kind: str
    classes: dict[str, int]
    members: dict[str, Member]
    samples: tuple[StoredSample, ...]
    left_out: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class TestFrame:
    """Holds one frame with its label. `group`: what a resample draws whole."""

    __test__ = False

    sample: StoredSample
    image: Image
    label: Label
    group: str


def open_frames(store: Store, snapshot: str) -> TestFrames:
    """Returns the test side of a snapshot.

    Raises:
        StoreError: there is no such snapshot, it was altered, its test side is empty, or a sample of it is
            not frozen, so that a bundle may have been trained on it.
    """
    verified = Snapshots(store).verify(snapshot)
    if not verified.intact:
        raise StoreError(
            verified.altered
            or f"snapshot {snapshot}: {len(verified.lost_labels)} labels were lost or changed"
        )
    manifest, sha256 = Snapshots(store).read(snapshot)
    members = {member.id: member for member in manifest.members if member.side == "test"}
    if not members:
        raise StoreError(
            f"snapshot {snapshot} has no test side: make one with misfire fleet snapshot NAME --test 0.2 "
            "--frozen"
        )
    free = len(members) - len(frozen_among(store, list(members)).keys() & members.keys())
    # A deleted sample has no row that tells its group; by its id it is known all the same.
    if free:
        raise StoreError(
            f"snapshot {snapshot}: {free} samples of its test side are not frozen, so a bundle may have been "
            "trained on them; judge on a snapshot made with --frozen, or with --test-from such a one"
        )
    samples = store.among(list(members))
    pictures = tuple(sample for sample in samples if sample.media_type.startswith("image/"))
    left_out = []
    if len(samples) < len(members):
        left_out.append(
            f"{len(members) - len(samples)} test samples were deleted since the snapshot was made"
        )
    if len(pictures) < len(samples):
        left_out.append(f"{len(samples) - len(pictures)} test samples are not pictures")
    return TestFrames(
        snapshot,
        sha256,
        manifest.kind,
        manifest.classes.get("test", {}),
        members,
        pictures,
        tuple(left_out),
    )


def each_frame(store: Store, frames: TestFrames, *, undecodable: list[str]) -> Iterator[TestFrame]:
    """Yields the frames one by one, with labels whose hashes were checked.

    Args:
        store: that has them.
        frames: the test side.
        undecodable: gets the id of each sample whose picture cannot be decoded.

    Raises:
        StoreError: the bytes or the label of a sample were altered.
    """
    contents = LabelContents(store, [frames.members[sample.id] for sample in frames.samples])
    for sample in frames.samples:
        try:
            data = store.read_blob(sample.id)
            if hashlib.sha256(data).hexdigest() != sample.id:
                raise StoreError(
                    f"sample {sample.id[:16]}: its bytes were altered; misfire fleet check --deep"
                )
            image = decode_image(data, name=sample.id)
        except (ImageError, SampleGoneError):
            undecodable.append(sample.id)
            continue
        yield TestFrame(sample, image, contents.of(sample.id), frames.members[sample.id].group)
