"""Names who does something, for the audit log and for records that say who made them."""

from __future__ import annotations

import getpass
import os


def current_actor() -> str:
    """Returns the name of the user of this process, or `uid-1234` if it has none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid-{os.getuid()}"
