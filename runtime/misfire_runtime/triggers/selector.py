"""Decides on one frame: triggers, then near-duplicates, then the budget; the random stream is independent.

A frame of the random stream is taken whatever the triggers say, and is marked so even if a trigger wanted
it too: the stream is only unbiased if it is complete.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Sequence

from misfire_runtime.messages import Trigger as TriggerMessage
from misfire_runtime.triggers.base import Trigger, TriggerEvent, every
from misfire_runtime.triggers.budget import Budget
from misfire_runtime.triggers.memory import Learned
from misfire_runtime.triggers.novelty import Novelty
from misfire_runtime.triggers.random_stream import RandomStream
from misfire_runtime.triggers.scored_frame import Choice, ScoredFrame

_LOG = logging.getLogger(__name__)
RANDOM_PRIORITY = 6
"""Above the 5 of triggers: a full spool evicts these last, so that statistics stay unbiased."""


class Selector:
    """Holds all triggers and what limits them. `suppressed` counts events that were not taken, by why."""

    def __init__(
        self,
        triggers: Sequence[Trigger],
        *,
        random: RandomStream,
        novelty: Novelty | None = None,
        budget: Budget | None = None,
        used: Collection[str] = (),
    ) -> None:
        """Takes the triggers. used: names of the scores they look at."""
        self.triggers = tuple(triggers)
        self.used = frozenset(used)
        self.random = random
        self.budget = budget
        self.suppressed: Counter[str] = Counter()
        self._novelty = novelty

    def select(self, frame: ScoredFrame, *, in_stream: bool, triggered: bool = True) -> Choice | None:
        """Returns the choice on a frame, or None.

        in_stream: the random stream takes it.  triggered: False leaves only the random stream (the last step
        of the degradation ladder).
        """
        fired: list[tuple[Trigger, TriggerEvent]] = []
        for trigger in self.triggers:
            # Every trigger looks, even after one has fired: they learn from each frame.
            event = trigger.look(frame)
            if event is not None:
                fired.append((trigger, event))
        wanted = bool(fired) and triggered and self._allowed(frame, in_stream=in_stream)
        if not wanted and not in_stream:
            return None
        return self._take(frame, fired if wanted else [], in_stream=in_stream)

    @property
    def thresholds(self) -> dict[str, float]:
        """Returns the current thresholds of the triggers that adapt theirs."""
        found = {trigger.name: trigger.threshold for trigger in self.triggers}
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}

    def learned(self) -> Learned:
        """Returns what the triggers that learn have learned, by name."""
        found = {trigger.name: trigger.learned() for trigger in every(self.triggers)}
        return {name: learned for name, learned in found.items() if learned is not None}

    def relearn(self, learned: Learned) -> None:
        """Takes over what fits; what makes no sense is logged and left."""
        for trigger in every(self.triggers):
            try:
                if trigger.name in learned:
                    trigger.relearn(learned[trigger.name])
            except (ValueError, KeyError, TypeError) as error:
                _LOG.warning(
                    "trigger_forgot", extra={"fields": {"trigger": trigger.name, "problem": str(error)}}
                )

    def _allowed(self, frame: ScoredFrame, *, in_stream: bool) -> bool:
        if in_stream:
            return True
        if self._novelty is not None and self._novelty.is_duplicate(frame.scored.embedding):
            self.suppressed["near-duplicate"] += 1
            return False
        if self.budget is not None and self.budget.refusal(0) is not None:
            self.suppressed["budget"] += 1
            return False
        return True

    def _take(
        self, frame: ScoredFrame, fired: list[tuple[Trigger, TriggerEvent]], *, in_stream: bool
    ) -> Choice:
        for trigger, _event in fired:
            # Only now: a trigger pays and cools down for what is taken, not for what was suppressed.
            trigger.taken(frame)
        if self._novelty is not None:
            self._novelty.remember(frame.scored.embedding)
        best = max((event for _trigger, event in fired), key=lambda f: f.priority, default=None)
        reason = "" if best is None else f"{best.name}: {best.reason}"[:256]
        if in_stream:
            message = TriggerMessage(name=self.random.name, random=True, reason=reason, rate=self.random.rate)
            return Choice(message, max(RANDOM_PRIORITY, best.priority if best else 0), budgeted=False)
        assert best is not None
        return Choice(TriggerMessage(name=best.name, reason=best.reason[:256]), best.priority, budgeted=True)
