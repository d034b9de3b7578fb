"""Builds triggers from the `[triggers.NAME]` tables. Those that no group names stand alone."""

from __future__ import annotations

from collections.abc import Mapping

from misfire_runtime.boxes import SILENCE
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import ConfigError
from misfire_runtime.triggers.base import BuildContext, Trigger, TriggerTable
from misfire_runtime.triggers.compose import CoolDown
from misfire_runtime.triggers.rates import PercentileTable, TargetRateTable
from misfire_runtime.triggers.registry import class_of

MAX_BUILT = 256
"""Triggers with those inside groups, each time that one is named: groups of groups multiply."""

SILENCE_LEVEL = 0.99
SILENCE_COOL_DOWN_S = 10.0
"""Fog lasts: a frame every ten seconds shows it, and leaves the budget to others."""


def default_triggers(tables: Mapping[str, TriggerTable], *, scorer: Scorer) -> Mapping[str, TriggerTable]:
    """Returns the triggers of a vehicle that configures none, as its bundle wants them.

    They take the share of frames that the bundle was made for, if it declares one, and see silence.
    """
    if scorer.upload_rate is not None:
        own = {"rate": scorer.upload_rate}
        tables = {
            name: table.model_copy(update=own) if isinstance(table, TargetRateTable) else table
            for name, table in tables.items()
        }
    return with_silence(tables, scorer=scorer)


def with_silence(tables: Mapping[str, TriggerTable], *, scorer: Scorer) -> Mapping[str, TriggerTable]:
    """Returns the default triggers of a bundle: `tables`, and one for silence if it has that score.

    A detector that sees nothing has no box to be unsure of, so the default score alone would miss it.
    """
    if SILENCE not in scorer.tables:
        return tables
    table = PercentileTable(
        kind="percentile", score=SILENCE, level=SILENCE_LEVEL, cool_down_s=SILENCE_COOL_DOWN_S
    )
    return {**tables, SILENCE: table}


def build_triggers(
    tables: Mapping[str, TriggerTable], *, scorer: Scorer, used: set[str] | None = None
) -> list[Trigger]:
    """Returns the top-level triggers, in the order of the file.

    Args:
        tables: `[triggers.NAME]` by name.
        scorer: whose scores they look at.
        used: the names of those scores are added to it.

    Raises:
        ConfigError: a table names a score the bundle lacks, a trigger that is not there, or itself.
    """
    builder = _Builder(tables, scorer, set() if used is None else used)
    grouped = {part for table in tables.values() for part in table.part_names}
    built = [builder.build(name, ()) for name in tables if name not in grouped]
    if tables and not built:
        raise ConfigError(f"triggers: {', '.join(tables)} only name each other")
    return built


class _Builder:
    def __init__(self, tables: Mapping[str, TriggerTable], scorer: Scorer, used: set[str]) -> None:
        self._tables = tables
        self._used = used
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
        context = BuildContext(
            name, self._scorer, part=lambda part: self.build(part, (*above, name)), used=self._used
        )
        trigger = class_of(table).build(table, context)
        if table.cool_down_s > 0 or table.cool_down_frames > 0:
            return CoolDown(trigger, seconds=table.cool_down_s, frames=table.cool_down_frames)
        return trigger
