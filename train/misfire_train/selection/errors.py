"""What selection raises on purpose.

SelectionError      the pool, the budget or an option does not fit: says which, where, and what to do
"""

from __future__ import annotations

from misfire_runtime.errors import MisfireError


class SelectionError(MisfireError, ValueError):
    """The pool, the budget or an option does not fit."""
