"""From the `[triggers.NAME]` tables to triggers. Those that no group names stand for themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from misfire_runtime.config.tables import (
    GroupTable,
    PercentileTable,
    RuleTable,
    TargetRateTable,
    ThresholdTable,
)
from misfire_runtime.engines.scoring import Scorer, quantile
from misfire_runtime.errors import ConfigError
from misfire_runtime.triggers.compose import AllOf, AnyOf, CoolDown
from misfire_runtime.triggers.expression import Rule
from misfire_runtime.triggers.observation import Trigger
from misfire_runtime.triggers.rates import Percentile, TargetRate, Threshold

MAX_BUILT = 256
"""Triggers with those inside groups, each time that one is named: groups of groups multiply."""
AnyTable: TypeAlias = ThresholdTable | PercentileTable | TargetRateTable | RuleTable | GroupTable


def build_triggers(tables: Mapping[str, AnyTable], *, scorer: Scorer) -> list[Trigger]:
    """The top-level triggers, in the order of the file.

    Raises ConfigError where a table names a score the bundle lacks, a trigger that is not there, or itself.
    """
    builder = _Builder(tables, scorer)
    grouped = {part for table in tables.values() if isinstance(table, GroupTable) for part in table.of}
    built = [builder.build(name, ()) for name in tables if name not in grouped]
    if tables and not built:
        raise ConfigError(f"triggers: {', '.join(tables)} only name each other")
    return built


class _Builder:
    def __init__(self, tables: Mapping[str, AnyTable], scorer: Scorer) -> None:
        self._tables = tables
        self._scorer = scorer
        self._built = 0

    def build(self, name: str, above: tuple[str, ...]) -> Trigger:
        self._built += 1
        if self._built > MAX_BUILT:
            raise ConfigError(f"triggers.{name}: groups name more than {MAX_BUILT} triggers in all")
        if name in above:
            raise ConfigError(f"triggers.{name}: contains itself by way of {' -> '.join((*above, name))}")
        table = self._tables.get(name)
        if table is None:
            raise ConfigError(
                f"triggers.{above[-1]}.of: no trigger {name!r}; there are {', '.join(self._tables)}"
            )
        trigger = self._bare(name, table, above)
        if table.cool_down_s > 0 or table.cool_down_frames > 0:
            return CoolDown(trigger, seconds=table.cool_down_s, frames=table.cool_down_frames)
        return trigger

    def _bare(self, name: str, table: AnyTable, above: tuple[str, ...]) -> Trigger:
        if isinstance(table, GroupTable):
            parts = [self.build(part, (*above, name)) for part in table.of]
            priority = table.priority if "priority" in table.model_fields_set else None
            group = AnyOf if table.kind == "any" else AllOf
            return group(name, parts=parts, priority=priority)
        if isinstance(table, RuleTable):
            try:
                return Rule(name, when=table.when, scores=self._scorer.tables, priority=table.priority)
            except ConfigError as error:
                raise ConfigError(f"triggers.{name}.when: {error}") from error
        score = self._score(name, table.score)
        if isinstance(table, ThresholdTable):
            return Threshold(name, score=score, above=table.above, priority=table.priority)
        if isinstance(table, PercentileTable):
            return Percentile(name, score=score, level=table.level, priority=table.priority)
        return TargetRate(
            name,
            score=score,
            rate=table.rate,
            prior=quantile(self._scorer.tables[score], 1.0 - table.rate),
            window=table.window,
            warm_up=table.warm_up,
            priority=table.priority,
        )

    def _score(self, name: str, wanted: str | None) -> str:
        score = wanted or self._scorer.default_score
        if score not in self._scorer.tables:
            known = ", ".join(self._scorer.tables)
            raise ConfigError(
                f"triggers.{name}.score: {self._scorer.label} has no score {score!r}; it has {known}"
            )
        return score
