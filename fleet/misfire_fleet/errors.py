"""Defines the errors that the fleet's programs raise; all are MisfireErrors, so a command catches one type.

MisfireError (misfire_runtime.errors)
├── StoreError               the store's content or its settings are wrong: waiting does not help
│   ├── SampleGoneError      the sample is not, or no longer, in the store
│   └── RowRefusedError      the database refuses the values of a row
├── StoreUnavailableError    database or blob store do not work now: try again later
├── CheckFailedError         a sample could not be checked, which proves nothing about it: try again later
└── CollectorError           the collector cannot work with this broker
"""

from __future__ import annotations

from misfire_runtime.errors import MisfireError


class StoreError(MisfireError):
    """Reports that the store's content or its settings are wrong."""


class SampleGoneError(StoreError):
    """Reports that a sample is not, or no longer, in the store."""


class RowRefusedError(StoreError):
    """Reports that the database refuses a row's values. The row is at fault if others are accepted."""


class StoreUnavailableError(MisfireError):
    """Reports that database or blob store do not work now. Nothing was stored in part; try again later."""


class CheckFailedError(MisfireError):
    """Reports that a sample could not be checked: no time, no memory, or the decoder's process ended.

    This proves nothing about the sample, which may be offered again. A fault of the sample itself, such as a
    cost above a limit, is an ImageError.
    """


class CollectorError(MisfireError):
    """Reports that the collector cannot work with this broker."""
