"""A new trigger is one file: its settings, its class, `@register`. This is such a file, with its tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field
from vehicle_support import EVERY, make, run

from misfire_runtime.bundle import Bundle
from misfire_runtime.config.desired import with_desired
from misfire_runtime.config.tables import VehicleConfig, parse_config
from misfire_runtime.errors import ConfigError
from misfire_runtime.triggers import ScoredFrame, Trigger, TriggerEvent
from misfire_runtime.triggers.base import BuildContext, TriggerKind, TriggerTable
from misfire_runtime.triggers.registry import register, unregister


class RiseTable(TriggerTable):
    """The score rises from one frame to the next."""

    kind: Literal["rise"]
    score: str | None = None
    by: float = Field(gt=0)


class Rise(TriggerKind):
    """Fires if the score is at least `by` above that of the frame before."""

    Settings = RiseTable

    def __init__(self, name: str, *, score: str, by: float, priority: int) -> None:
        self.name = name
        self._score = score
        self._by = by
        self._priority = priority
        self._before = float("inf")

    @classmethod
    def build(cls, settings: RiseTable, context: BuildContext) -> Trigger:
        score = context.score(settings.score)
        return cls(context.name, score=score, by=settings.by, priority=settings.priority)

    def look(self, frame: ScoredFrame) -> TriggerEvent | None:
        before, self._before = self._before, frame.scored.scores[self._score]
        if self._before - before < self._by:
            return None
        return TriggerEvent(self.name, f"{self._score} rose from {before:.5f}", self._priority)

    def learned(self) -> Mapping[str, Any]:
        return {"before": self._before}

    def relearn(self, learned: Mapping[str, Any]) -> bool:
        self._before = float(learned["before"])
        return True


BY = 0.0001
JUMP = f'[triggers.jump]\nkind = "rise"\nscore = "entropy"\nby = {BY:f}\npriority = 7\n'
ALONE = JUMP + "[random]\nrate = 0.0\n"


@pytest.fixture
def known() -> Iterator[None]:
    register(Rise)
    yield
    unregister(Rise)


def rises(scores: Mapping[int, float]) -> list[int]:
    return [frame for frame in sorted(scores)[1:] if scores[frame] - scores[frame - 1] >= BY]


@pytest.fixture
def expected(bundle: Bundle, new_store: Any, tmp_path: Path, clip: Path) -> list[int]:
    """The frames it has to take, from the scores of all frames."""
    store = new_store()
    run(make(bundle, store, tmp_path / "all", clip, EVERY + "[random]\nrate = 0.0\n"))
    found = rises({offer.frame: offer.scores["entropy"] for offer in store.offers})
    assert 5 < len(found) < 200
    return found


@pytest.mark.usefixtures("known")
def test_a_run_takes_the_frames_that_it_wants(
    bundle: Bundle, store: Any, tmp_path: Path, clip: Path, expected: list[int]
) -> None:
    report = run(make(bundle, store, tmp_path, clip, ALONE))
    assert [offer.frame for offer in store.offers] == expected
    assert report.chosen == {"jump": len(expected)}
    assert all(offer.priority == 7 and "rose from" in offer.trigger.reason for offer in store.offers)


@pytest.mark.usefixtures("known")
def test_groups_cool_downs_and_memory_take_it_as_any_other(
    bundle: Bundle, store: Any, tmp_path: Path, clip: Path, expected: list[int]
) -> None:
    text = ALONE.replace("by =", "cool_down_frames = 10\nby =")
    vehicle = make(bundle, store, tmp_path, clip, text + '[triggers.any]\nkind = "any"\nof = ["jump"]\n')
    run(vehicle)
    frames = [offer.frame for offer in store.offers]
    assert set(frames) < set(expected) and frames[0] == expected[0]
    assert all(later - earlier > 10 for earlier, later in itertools.pairwise(frames))
    learned = vehicle.selector.learned()
    assert learned.keys() == {"jump"} and learned["jump"]["before"] < float("inf")
    again = make(bundle, store, tmp_path / "again", clip, text)
    again.selector.relearn(learned)
    assert again.selector.learned() == learned
    again.close()


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ((f"by = {BY:f}", "by = 0"), r"v.toml:4: triggers.jump.by: .*greater than 0"),
        (('score = "', 'scores = "'), r"v.toml:3: triggers.jump.scores: unknown key"),
        (('"rise"', '"rises"'), r"triggers.jump: .*'threshold', .*'rise'"),
    ],
)
def test_a_mistake_in_its_table_is_named_with_its_line(change: tuple[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config(JUMP.replace(*change), file="v.toml")


@pytest.mark.usefixtures("known")
def test_the_fleet_may_ask_for_it_and_a_changed_configuration_keeps_its_settings() -> None:
    wish = {"kind": "rise", "by": 0.5}
    config = with_desired(VehicleConfig(), {"triggers": {"jump": wish}})
    assert config.triggers == {"jump": RiseTable(kind="rise", by=0.5)}
    assert config.model_dump(exclude_unset=True)["triggers"] == {"jump": wish}
    assert "RiseTable" in str(VehicleConfig.model_json_schema())


def test_a_kind_that_is_not_registered_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"triggers.jump: .*'rise'.* does not match"):
        parse_config(JUMP)


def test_two_classes_cannot_have_the_same_kind() -> None:
    class Again(Rise):
        Settings = type("ThresholdAgain", (RiseTable,), {"__annotations__": {"kind": Literal["threshold"]}})

    with pytest.raises(ValueError, match=r"'threshold' is taken by Threshold"):
        register(Again)
