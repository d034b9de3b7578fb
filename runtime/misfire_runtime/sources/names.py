"""Turns names of files into text that can be shown, logged, hashed and sent.

Names on a disk are bytes. Python keeps those that are not UTF-8 as lone surrogates, which no encoder, JSON
parser or message takes.
"""

from __future__ import annotations

import os
from pathlib import Path


def shown(name: str | Path) -> str:
    r"""Returns the name with every byte that is not UTF-8 written as \xNN."""
    # fsencode gives the very bytes on the disk, surrogates included.
    return os.fsencode(name).decode("utf-8", "backslashreplace")
