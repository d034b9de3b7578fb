"""What this unit raises on purpose, beside the tree of misfire_runtime.errors.

MisfireError
└── DatasetError      a data set is missing, changed, malformed, or too small: says which, where, what to do
"""

from __future__ import annotations

from misfire_runtime.errors import MisfireError


class DatasetError(MisfireError):
    """A data set is missing, changed, malformed, or too small for what was asked."""
