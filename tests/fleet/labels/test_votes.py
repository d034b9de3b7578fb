"""Votes of two trained digit classifiers, and of one behind a real HTTP server, on real digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fleet import gates
from typer.testing import CliRunner, Result

from misfire_export.options import Options
from misfire_export.sources.frames import Frames
from misfire_export.sources.run import export_run
from misfire_fleet.commands.labelling.app import app
from misfire_fleet.commands.options import WHERE_HELP
from misfire_fleet.labels.content import Box, BoxesLabel, ClassLabel
from misfire_fleet.labels.ledger import LabelLedger, NewLabel
from misfire_fleet.labels.votes.ballots import Ballot, Journal, VoteError, question_of
from misfire_fleet.labels.votes.boxes import joined, pairs
from misfire_fleet.labels.votes.bundles import CHANGES, Model, place_before
from misfire_fleet.labels.votes.endpoint import Endpoint, EndpointVoter, class_in
from misfire_fleet.labels.votes.poll import Poll, VoteRun, is_audited
from misfire_fleet.store import Store
from misfire_fleet.store.records import NewSample, SampleFilter
from misfire_fleet.store.where import CONDITIONS
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import encode_png
from misfire_runtime.testing import make_offer
from misfire_train.data import load_dataset
from misfire_train.fit import train_run
from misfire_train.runs import run_splits
from misfire_train.train_config import parse_train_config
from proving_ground.vision_server import Fault, VisionServer, vision_server

pytestmark = pytest.mark.slow
SAMPLES = 60


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two networks, trained for four epochs from two seeds: mostly right, and wrong about other digits."""
    folder = tmp_path_factory.mktemp("voters")
    digits = load_dataset("digits")
    made = []
    for seed in (1, 2):
        config = parse_train_config(
            {"dataset": "digits", "seed": seed}, overrides={"training.epochs": 4, "head.recipe": "none"}
        )
        trained = train_run(config, out=folder / f"run-{seed}")
        frames = Frames(run_splits(trained, digits)["calibration"])
        made.append(folder / f"bundle-{seed}")
        export_run(trained, frames, out=made[-1], options=Options(f"digits-{seed}", "1.0.0"))
    return made[0], made[1]


@dataclass(frozen=True)
class Digits:
    """Holds a store with real digits, and what they are."""

    store: Store
    truth: dict[str, str]
    place: tuple[str, str]


@pytest.fixture
def digits(tmp_path: Path) -> Iterator[Digits]:
    data = load_dataset("digits")
    truth, new = {}, []
    for index in range(SAMPLES):
        picture = encode_png(data.test.images[index])
        offer = make_offer(picture, number=index, media_type="image/png")
        if offer.id not in truth:
            truth[offer.id] = data.classes[int(data.test.targets[index])]
            new.append(NewSample(offer, picture, 8, 8, "collector-1"))
    with Store.open_folder(tmp_path / "fleet") as store:
        store.add_many(new)
        LabelLedger(store).add_classes(data.classes)
        yield Digits(store, truth, ("--fleet-dir", str(tmp_path / "fleet")))


@pytest.fixture
def server(bundles: tuple[Path, Path]) -> Iterator[VisionServer]:
    with vision_server(bundles[1]) as running:
        yield running


def vote(digits: Digits, *words: str | Path) -> Result:
    return CliRunner().invoke(app, ["vote", *map(str, words), *digits.place])


def poll_of(
    digits: Digits, folder: Path, *voters: EndpointVoter, model: Path, audit: float = 0.2
) -> tuple[VoteRun, Journal, Model]:
    journal, loaded = Journal(folder / "ballots.jsonl"), Model(model)
    classes = [each.name for each in LabelLedger(digits.store).classes()]
    run = VoteRun(digits.store, [*voters, *loaded.voters()], classes, journal, audit=audit)
    return run, journal, loaded


def endpoint(server: VisionServer, *, temperature: float = 0.0, timeout_s: float = 10.0) -> EndpointVoter:
    place = Endpoint(server.url, "digits", consent=True, timeout_s=timeout_s, attempts=1)
    return EndpointVoter(place, temperature=temperature)


def people_say(digits: Digits, samples: list[str]) -> None:
    new = [NewLabel(sample, ClassLabel(name=digits.truth[sample]), source="person") for sample in samples]
    assert LabelLedger(digits.store).add(new).ok


def test_two_bundles_label_what_they_agree_on(
    digits: Digits, bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    words = ("--bundle", bundles[0], "--bundle", bundles[1], "--audit", "0.3", "--out", tmp_path / "votes")
    result = vote(digits, *words, "--json")
    assert result.exit_code == 0, result.output
    poll = json.loads(result.stdout)
    assert poll["samples"] == len(digits.truth)
    assert 0 < poll["unanimous"] < poll["samples"]
    assert poll["recorded"] == poll["unanimous"]
    records = list(LabelLedger(digits.store).current())
    assert len(records) == poll["unanimous"]
    assert {record.source for record in records} == {"vote"}
    right = sum(record.label == ClassLabel(name=digits.truth[record.sample]) for record in records)
    assert right > 0.7 * len(records)
    listed = (tmp_path / "votes" / "to-people.txt").read_text().split()
    assert listed == list(poll["to_people"])
    assert len(listed) == poll["samples"] - poll["unanimous"] + poll["audited"]
    assert poll["slip_rate"] is None
    # People label the list: now it is known how many automatic labels are wrong.
    people_say(digits, listed)
    again = json.loads(vote(digits, *words, "--json").stdout)
    voted = {record.sample: record.label for record in records}
    audited = [sample for sample in voted if is_audited(sample, 0.3)]
    wrong = sum(voted[sample] != ClassLabel(name=digits.truth[sample]) for sample in audited)
    assert (again["checked"], again["slipped"]) == (len(audited), wrong)
    assert again["slip_rate"]["low"] <= wrong / len(audited) <= again["slip_rate"]["high"]
    assert again["recorded"] == 0
    assert again["to_people"] == []


def test_an_endpoint_at_two_temperatures(
    digits: Digits, bundles: tuple[Path, Path], server: VisionServer, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    words = ("--endpoint", server.url, "--send-images", "--model", "digits", "--temperature", "0")
    words += (
        "--temperature",
        "1.5",
        "--api-key-file",
        str(key),
        "--price-in",
        "2",
        "--out",
        str(tmp_path / "v"),
    )
    result = vote(digits, *words, "--bundle", bundles[0], "--limit", "30")
    assert result.exit_code == 0, result.output
    assert server.calls == 60
    assert set(server.pictures) <= set(digits.truth)
    assert set(server.keys) == {"Bearer s3cret"}
    assert "digits at 0: 30 calls" in result.stdout and "digits at 1.5: 30 calls" in result.stdout
    assert "tokens" in result.stdout and "at the given prices" in result.stdout
    # Asking again costs nothing.
    assert vote(digits, *words, "--bundle", bundles[0], "--limit", "30").exit_code == 0
    assert server.calls == 60


def test_pictures_do_not_leave_unless_somebody_says_so(
    digits: Digits, bundles: tuple[Path, Path], server: VisionServer, tmp_path: Path
) -> None:
    result = vote(digits, "--endpoint", server.url, "--bundle", bundles[0], "--out", tmp_path / "v")
    assert isinstance(result.exception, ConfigError)
    assert "--send-images" in str(result.exception)
    assert server.keys == []
    far = Endpoint("http://192.0.2.7/v1", "m", consent=True)
    with pytest.raises(ConfigError, match="in clear"):
        far.check()
    with pytest.raises(ConfigError, match="api-key-file"):
        Endpoint("https://user:pass@host/v1", "m", consent=True).check()
    with pytest.raises(ConfigError, match="expected http"):
        Endpoint("file:///etc/passwd", "m", consent=True).check()


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("silent", "did not answer within 0.5 s"),
        ("slow", "did not answer within 0.5 s"),
        ("html", "not JSON"),
        ("broken", "not JSON"),
        ("empty", "no chat completion"),
        ("chat", "named none of the classes 5 times"),
        ("busy", "answers 503"),
        ("redirect", "answers 307"),
        ("huge", "answers more than"),
    ],
)
def test_a_failing_endpoint_loses_nothing(  # noqa: PLR0917 (fixtures, and what is tried)
    digits: Digits, bundles: tuple[Path, Path], server: VisionServer, tmp_path: Path, fault: Fault, why: str
) -> None:
    server.fault, server.good = fault, 12
    run, journal, model = poll_of(digits, tmp_path, endpoint(server, timeout_s=0.5), model=bundles[0])
    with pytest.raises(VoteError, match=why) as raised:
        run.run()
    assert "run the same command again" in str(raised.value)
    assert server.calls == 12
    labelled = {record.sample: record.label for record in LabelLedger(digits.store).current()}
    assert labelled
    journal.close()
    server.fault = ""
    server.released.set()
    again, journal, other = poll_of(digits, tmp_path, endpoint(server), model=bundles[0])
    poll = again.run()
    assert poll.samples == len(digits.truth)
    # Of the answers that named no class, the vote is not asked again: those samples go to people.
    unsure = poll.cost["digits at 0"].unsure
    assert server.calls == len(digits.truth) - unsure
    now = {record.sample: record.label for record in LabelLedger(digits.store).current()}
    assert labelled.items() <= now.items()
    assert len(now) == poll.unanimous
    for each in (journal, model, other):
        each.close()


def test_augmented_copies_vote_and_broken_pictures_go_to_people(
    digits: Digits, bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    clip = b"a clip"
    offer = make_offer(clip, number=900, media_type="video/mp4")
    digits.store.add_many([NewSample(offer, clip, 8, 8, "collector-1")])
    augment = [word for change in CHANGES for word in ("--augment", change)]
    result = vote(digits, "--bundle", bundles[0], *augment, "--out", tmp_path / "v", "--json")
    assert result.exit_code == 0, result.output
    poll = json.loads(result.stdout)
    assert len(poll["voters"]) == 1 + len(CHANGES)
    assert poll["unreadable"] == 1 and offer.id in poll["to_people"]
    assert 0 < poll["unanimous"] < poll["samples"]


def test_votes_never_replace_people(digits: Digits, bundles: tuple[Path, Path], tmp_path: Path) -> None:
    some = sorted(digits.truth)[:20]
    people_say(digits, some)
    result = vote(digits, "--bundle", bundles[0], "--augment", "zoom", "--out", tmp_path / "v", "--json")
    assert json.loads(result.stdout)["samples"] == len(digits.truth) - 20
    for record in LabelLedger(digits.store).current(SampleFilter()):
        assert (record.source == "person") == (record.sample in some)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "no voter"),
        (("--bundle", "B"), "always unanimous"),
        (("--bundle", "B", "--bundle", "B"), "one name"),
        (("--bundle", "B", "--augment", "paint"), "no change 'paint'"),
        (("--bundle", "B", "--augment", "zoom", "--class", "cat", "--class", "dog"), "--add-classes"),
        (
            ("--bundle", "B", "--augment", "zoom", "--class", "cat", "--class", "dog", "--add-classes"),
            "fewer than 2",
        ),
    ],
)
def test_polls_that_make_no_sense_are_refused(
    digits: Digits, bundles: tuple[Path, Path], tmp_path: Path, words: tuple[str, ...], why: str
) -> None:
    named = [str(bundles[0]) if word == "B" else word for word in words]
    result = vote(digits, *named, "--out", tmp_path / "v")
    assert isinstance(result.exception, ConfigError)
    assert why in str(result.exception)


def test_a_journal_survives_a_kill_in_a_line(tmp_path: Path) -> None:
    file, question = tmp_path / "b.jsonl", question_of(("a", "b"))
    ids = [hashlib.sha256(bytes([number])).hexdigest() for number in range(3)]
    journal = Journal(file)
    for sample in ids[:2]:
        journal.add(Ballot(sample=sample, voter="v", question=question, answer="a"))
    journal.close()
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    journal = Journal(file)
    assert journal.samples(question) == [ids[0]]
    journal.add(Ballot(sample=ids[2], voter="v", question=question, answer="b"))
    journal.close()
    journal = Journal(file)
    assert journal.samples(question) == sorted([ids[0], ids[2]])
    journal.close()
    file.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(ConfigError, match="not a ballot"):
        Journal(file)


def detector(folder: Path, *boxes: tuple[float, float, float, float, float], name: str) -> Path:
    """A detector of cars that always finds these boxes: x0, y0, x1, y1, score."""
    answer = np.float32([[*box, 0] for box in boxes])
    made = gates.constant(folder / "first", "detection", answer, classes=("car",))
    gates.changed(made, folder / name, version="1.0.0", name=name)
    return folder / name


def test_detectors_are_unanimous_if_their_boxes_match_one_to_one(tmp_path: Path) -> None:
    pictures = [encode_png(image) for image in gates.pictures(6)]
    one = detector(tmp_path / "a", (2, 2, 10, 10, 0.9), (11, 11, 15, 15, 0.2), name="one")
    like = detector(tmp_path / "b", (3, 2, 11, 10, 0.8), name="like")
    other = detector(tmp_path / "c", (7, 2, 15, 10, 0.9), name="other")
    with Store.open_folder(tmp_path / "fleet") as store:
        samples = [make_offer(data, media_type="image/png") for data in pictures]
        store.add_many([NewSample(o, d, 16, 16, "c") for o, d in zip(samples, pictures, strict=True)])
        LabelLedger(store).add_classes(["car"])
        place, words = ("--fleet-dir", str(tmp_path / "fleet")), ("--out", str(tmp_path / "votes"))

        def ask(*folders: Path) -> dict[str, Any]:
            given = [word for folder in folders for word in ("--bundle", str(folder))]
            done = CliRunner().invoke(app, ["vote", *given, *words, *place, "--json", "--audit", "1"])
            assert done.exit_code == 0, done.output
            return dict(json.loads(done.stdout))

        # The boxes overlap by a seventh: nothing is labelled.
        assert ask(one, other)["unanimous"] == 0 and LabelLedger(store).label_of(samples[0].id) is None
        poll = ask(one, like)
        assert (poll["unanimous"], poll["recorded"]) == (6, 6)
        record = LabelLedger(store).label_of(samples[0].id)
        # A box below the alarm threshold is no answer; the place is the mean.
        assert record is not None and record.source == "vote"
        assert record.label == BoxesLabel(boxes=(Box(name="car", x0=2.5, y0=2, x1=10.5, y1=10),))
        right, wrong = record.label, BoxesLabel(boxes=())
        said = [NewLabel(samples[n].id, right if n else wrong, source="person") for n in range(2)]
        assert LabelLedger(store).add(said).ok
        poll = ask(one, like)
        assert (poll["checked"], poll["slipped"]) == (2, 1)
        digits = CliRunner().invoke(app, ["vote", "--bundle", str(one), *words, *place])
        assert "one voter is always unanimous" in str(digits.exception)


@pytest.mark.parametrize("change", ["flip", "zoom", "shift", "bright"])
def test_boxes_of_a_changed_copy_are_moved_back(change: str) -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[12:28, 30:62] = 255
    copy = CHANGES[change](image)
    rows, columns = np.nonzero(copy[..., 0] > 100)
    edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    box = Box(name="car", **dict(zip(("x0", "y0", "x1", "y1"), map(float, edges), strict=True)))
    found = place_before(change, box, (80, 40))
    assert (found.x0, found.y0, found.x1, found.y1) == pytest.approx((30, 12, 62, 28), abs=0.6)


def test_boxes_pair_by_class_and_overlap() -> None:
    def boxes(*rows: tuple[str, float]) -> BoxesLabel:
        return BoxesLabel(boxes=tuple(Box(name=n, x0=x, y0=0, x1=x + 10, y1=10) for n, x in rows))

    assert pairs(boxes(("car", 0), ("bus", 30)), boxes(("bus", 31), ("car", 1))) == [1, 0]
    assert pairs(boxes(), boxes()) == [] and joined([boxes(), boxes()]) == boxes()
    assert pairs(boxes(("car", 0)), boxes(("bus", 0))) is None
    assert pairs(boxes(("car", 0)), boxes()) is None
    # Two boxes on one object are not one object.
    assert pairs(boxes(("car", 0), ("car", 1)), boxes(("car", 0), ("car", 40))) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("red", "red"),
        (" Red.\n", "red"),
        ('"green"', "green"),
        ('{"class": "green"}', "green"),
        ("**red**", "red"),
        ("red or green", None),
        ("", None),
        ("blue", None),
        ("[" * 100_000, None),
        ('{"class": ["red"]}', None),
    ],
)
def test_answers_are_read_strictly(text: str, answer: str | None) -> None:
    assert class_in(text, ("red", "green")) == answer


def test_the_audit_is_a_random_share() -> None:
    ids = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(4000)]
    assert sum(is_audited(sample, 0.1) for sample in ids) == pytest.approx(400, abs=60)
    assert not any(is_audited(sample, 0.0) for sample in ids)
    assert all(is_audited(sample, 1.0) for sample in ids)


def test_the_help_names_every_condition() -> None:
    named = WHERE_HELP.split(": ")[1].replace(" (@FILE)", "").rstrip(".").split(", ")
    assert named == list(CONDITIONS)


def test_a_poll_counts_nothing_before_it_began() -> None:
    assert Poll((), 0, 0, (), 0, 0, 0, 0, 0).to_dict()["cost"] == {}
