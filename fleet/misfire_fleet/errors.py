"""What the fleet's programs raise on purpose; all are `MisfireError`s, so a program's edge catches one thing.

MisfireError (misfire_runtime.errors)
├── StoreError               the store's content or its settings are wrong: not cured by waiting
│   └── SampleGoneError      the sample is not, or no longer, in the store
├── StoreUnavailableError    database or blob store cannot be reached, or is full: try again later
└── CollectorError           the collector cannot do its work with this broker
"""

from __future__ import annotations

from misfire_runtime.errors import MisfireError


class StoreError(MisfireError):
    """The store's content or its settings are wrong."""


class SampleGoneError(StoreError):
    """The sample is not, or no longer, in the store."""


class StoreUnavailableError(MisfireError):
    """Database or blob store cannot be reached or has no room; nothing was half-stored; try again later."""


class CollectorError(MisfireError):
    """The collector cannot do its work with this broker."""
