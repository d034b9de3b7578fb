"""What the fleet's programs raise on purpose; all are `MisfireError`s, so a program's edge catches one thing.

MisfireError (misfire_runtime.errors)
├── StoreError               the store's content or its settings are wrong: not cured by waiting
│   ├── SampleGoneError      the sample is not, or no longer, in the store
│   └── RowRefusedError      the database refuses the values of a row
├── StoreUnavailableError    database or blob store cannot do its work now: try again later
├── CheckFailedError         a sample could not be checked, and nothing was learnt about it: try again later
└── CollectorError           the collector cannot do its work with this broker
"""

from __future__ import annotations

from misfire_runtime.errors import MisfireError


class StoreError(MisfireError):
    """The store's content or its settings are wrong."""


class SampleGoneError(StoreError):
    """The sample is not, or no longer, in the store."""


class RowRefusedError(StoreError):
    """The database refuses the values of a row. Whether the row is at fault shows when it takes others."""


class StoreUnavailableError(MisfireError):
    """Database or blob store cannot do its work now; nothing was half-stored; try again later."""


class CheckFailedError(MisfireError):
    """The collector could not check a sample: no time, no memory, the decoder's process ended.

    It says nothing about the sample, which may be offered again. What a sample proves about itself, such as a
    cost above the documented bound, is an ImageError.
    """


class CollectorError(MisfireError):
    """The collector cannot do its work with this broker."""
