"""Asks all voters about samples: unanimous samples get a label, the rest and an audit go to people.

unlabelled samples --every voter--> ballots (journal) --all the same answer--> label record, source `vote`
                                                      --not, or drawn for the audit--> list for people
people's labels of audited samples --> share of the automatic labels that is wrong, with an interval

Which unanimous samples are audited is decided by a hash of their id: at random, and again in the same way.
The list mixes both kinds, so nobody who labels can tell which picture the models agreed on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

from misfire_fleet.errors import SampleGoneError, StoreError
from misfire_fleet.labels.content import BoxesLabel, ClassLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.labels.votes.ballots import Ballot, Journal, Picture, VoteError, Voter, question_of
from misfire_fleet.labels.votes.boxes import agree, joined
from misfire_fleet.store import Store
from misfire_fleet.store.labels import MACHINES
from misfire_fleet.store.records import ANY, SampleFilter, StoredSample
from misfire_runtime.errors import ConfigError, ImageError
from misfire_runtime.preprocess import decode_image

SOURCE = "vote"
Agreed: TypeAlias = str | BoxesLabel
"""A class, or boxes."""
_PAGE = 200
_GROUP = 50
_UNIT = 1.0 / 2**64


@dataclass(frozen=True)
class Cost:
    """Adds up what a voter has cost: calls, seconds, tokens; `unsure`: answers that named no class."""

    calls: int = 0
    seconds: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    unsure: int = 0

    def with_ballot(self, ballot: Ballot) -> Cost:
        """Returns the cost with one more ballot."""
        return Cost(
            self.calls + 1,
            round(self.seconds + ballot.seconds, 4),
            self.tokens_in + ballot.tokens_in,
            self.tokens_out + ballot.tokens_out,
            self.unsure + (ballot.opinion is None),
        )


@dataclass(frozen=True)
class Poll:
    """Reports a poll, over all runs with the same voters and classes.

    Attributes:
        voters: their names.
        samples: that all voters were asked about.
        unanimous: of these, with one answer of all; they have a label of source `vote`.
        to_people: samples in the list: the others, and the audit.
        audited: unanimous samples in the audit.
        checked: of these, labelled by people since.
        slipped: of these, with another answer than the vote.
        recorded: labels that this run added.
        unreadable: samples without a picture that can be shown, for example clips; they go to people.
        cost: by voter.
    """

    voters: tuple[str, ...]
    samples: int
    unanimous: int
    to_people: tuple[str, ...]
    audited: int
    checked: int
    slipped: int
    recorded: int
    unreadable: int
    cost: dict[str, Cost] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns an object for JSON."""
        return asdict(self)


def is_audited(sample: str, share: float) -> bool:
    """Returns whether a sample is in the audit if it is unanimous: a random share, the same every time."""
    digest = blake2b(sample.encode(), digest_size=8, person=b"misfire-audit").digest()
    return int.from_bytes(digest, "big") * _UNIT < share


class VoteRun:
    """Runs a poll, or goes on with one.

    Args:
        store: has the samples; labels are recorded there.
        voters: at least two, with distinct names.
        classes: that the voters choose from.
        journal: keeps the ballots.
        audit: share of the unanimous samples that people label, too, 0..1.

    Raises:
        ConfigError: voters or classes are too few, two voters have one name, or they do not vote on the same
            kind of answer.
    """

    def __init__(
        self, store: Store, voters: Sequence[Voter], classes: Sequence[str], journal: Journal, *, audit: float
    ) -> None:
        names = [voter.name for voter in voters]
        if len(names) < 2:
            raise ConfigError("one voter is always unanimous; name at least two")
        if len(set(names)) < len(names):
            raise ConfigError(f"two voters have one name: {', '.join(sorted(names))}")
        kinds = {voter.kind for voter in voters}
        if len(kinds) > 1:
            raise ConfigError("some voters name a class, others boxes: let them vote apart")
        self._kind = kinds.pop()
        if len(classes) < (2 if self._kind == "class" else 1):
            raise ConfigError("voters need at least two classes to choose from; give --class NAME for each")
        self._store = store
        self._voters = tuple(voters)
        self._classes = tuple(classes)
        self._question = question_of(classes, self._kind)
        self._journal = journal
        self._audit = audit
        self._ledger = LabelLedger(store)
        self._recorded = 0
        self._unreadable: set[str] = set()

    def run(
        self,
        filters: SampleFilter = ANY,
        *,
        limit: int | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Poll:
        """Asks about unlabelled samples, and records the unanimous.

        Args:
            filters: select samples.
            limit: samples of this poll at most, those of earlier runs included.
            progress: gets the number of finished samples after each.

        Raises:
            VoteError: a voter does not answer; what was answered before is kept, and a rerun goes on there.
            StoreError, StoreUnavailableError: a label could not be recorded; likewise.
        """
        known = self._journal.samples(self._question)
        done = 0
        waiting: list[tuple[str, Agreed]] = []
        try:
            for sample in self._samples(known, filters, limit):
                answer = self._answer(sample)
                done += 1
                if answer is not None:
                    waiting.append((sample.id, answer))
                if len(waiting) >= _GROUP:
                    self._record(waiting)
                    waiting = []
                progress(done)
        except VoteError as error:
            self._record(waiting)
            waiting = []
            raise VoteError(
                f"{error}; {done} samples are finished and kept: run the same command again to go on"
            ) from error
        self._record(waiting)
        return self.report()

    def report(self) -> Poll:
        """Returns the poll's state: of all ballots in the journal, and of people's labels until now."""
        cost = {voter.name: Cost() for voter in self._voters}
        people, counts = [], {"samples": 0, "unanimous": 0, "audited": 0, "checked": 0, "slipped": 0}
        for sample in self._journal.samples(self._question):
            ballots = self._ballots(sample)
            for ballot in ballots:
                cost[ballot.voter] = cost[ballot.voter].with_ballot(ballot)
            if len(ballots) < len(self._voters):
                continue
            counts["samples"] += 1
            answer = _unanimous(ballots)
            if answer is None:
                people.append(sample)
                continue
            counts["unanimous"] += 1
            if is_audited(sample, self._audit):
                people.append(sample)
                counts["audited"] += 1
                said = self._said_by_people(sample)
                counts["checked"] += said is not None
                counts["slipped"] += said is not None and not _alike(answer, said)
        listed = sorted({*people, *self._unreadable}, key=lambda sample: blake2b(sample.encode()).digest())
        return Poll(
            voters=tuple(voter.name for voter in self._voters),
            to_people=tuple(sample for sample in listed if self._said_by_people(sample) is None),
            recorded=self._recorded,
            unreadable=len(self._unreadable),
            cost=cost,
            **counts,
        )

    def _samples(
        self, known: Sequence[str], filters: SampleFilter, limit: int | None
    ) -> Iterator[StoredSample]:
        """Yields the samples of earlier runs, then unlabelled ones, newest first."""
        given = 0
        for start in range(0, len(known), _PAGE):
            for sample in self._store.among(known[start : start + _PAGE]):
                if limit is not None and given >= limit:
                    return
                given += 1
                yield sample
        seen = set(known)
        page = replace(filters, labelled=False)
        while True:
            found = self._store.newest(_PAGE, page)
            for sample in found:
                if sample.id in seen:
                    continue
                if limit is not None and given >= limit:
                    return
                given += 1
                yield sample
            if len(found) < _PAGE:
                return
            page = replace(page, before_seq=found[-1].seq)

    def _answer(self, sample: StoredSample) -> Agreed | None:
        """Returns the unanimous answer about a sample, asking the voters that were not asked yet."""
        picture: Picture | None = None
        for voter in self._voters:
            if self._journal.find(sample.id, voter.name, self._question) is not None:
                continue
            picture = picture or self._picture(sample)
            if picture is None:
                self._unreadable.add(sample.id)
                return None
            began = time.monotonic()
            answer, tokens_in, tokens_out = voter.vote(picture, self._classes)
            self._journal.add(
                Ballot(
                    sample=sample.id,
                    voter=voter.name,
                    question=self._question,
                    answer=answer if isinstance(answer, str) else None,
                    boxes=answer if isinstance(answer, BoxesLabel) else None,
                    seconds=time.monotonic() - began,
                    tokens_in=tokens_in,
                    tokens_out=tokens_out,
                )
            )
        return _unanimous(self._ballots(sample.id))

    def _picture(self, sample: StoredSample) -> Picture | None:
        if sample.unreadable or not sample.media_type.startswith("image/"):
            return None
        try:
            data = self._store.read_blob(sample.id)
            image = decode_image(data, name=f"sample {sample.id[:16]}")
        except (ImageError, SampleGoneError):
            return None
        # The file says that the picture is turned: boxes would not be in pixels of the stored one.
        if self._kind == "boxes" and image.shape[:2] != (sample.height, sample.width):
            return None
        return Picture(data, sample.media_type, image)

    def _ballots(self, sample: str) -> list[Ballot]:
        found = (self._journal.find(sample, voter.name, self._question) for voter in self._voters)
        return [ballot for ballot in found if ballot is not None]

    def _record(self, answers: Sequence[tuple[str, Agreed]]) -> None:
        """Records labels of one group; what was recorded before is not recorded again."""
        if not answers:
            return
        annotator = " + ".join(voter.name for voter in self._voters)[:200]
        new = [
            NewLabel(
                sample,
                ClassLabel(name=answer) if isinstance(answer, str) else answer,
                source=SOURCE,
                annotator=annotator,
            )
            for sample, answer in answers
            # Deleted since, or labelled by people: then a vote is of no use.
            if self._said_by_people(sample) is None
        ]
        present = self._store.known([each.sample for each in new])
        added = self._ledger.add([each for each in new if each.sample in present], actor=SOURCE)
        if not added.ok:
            raise StoreError("votes were not recorded: " + "; ".join(added.problems()[:5]))
        self._recorded += added.recorded

    def _said_by_people(self, sample: str) -> Agreed | None:
        record = self._ledger.label_of(sample)
        if record is None or record.source in MACHINES:
            return None
        if isinstance(record.label, BoxesLabel):
            return record.label
        return record.label.name if isinstance(record.label, ClassLabel) else None


def _unanimous(ballots: Sequence[Ballot]) -> Agreed | None:
    boxes = [ballot.boxes for ballot in ballots if ballot.boxes is not None]
    if boxes:
        return joined(boxes) if len(boxes) == len(ballots) else None
    answers = {ballot.answer for ballot in ballots}
    return next(iter(answers)) if len(answers) == 1 else None


def _alike(vote: Agreed, said: Agreed) -> bool:
    if isinstance(vote, BoxesLabel) and isinstance(said, BoxesLabel):
        return agree(vote, said)
    return vote == said


def write_list(file: Path, samples: Sequence[str]) -> None:
    """Writes ids, one a line. Raises ConfigError if the file cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        part.write_text("".join(f"{sample}\n" for sample in samples), encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
