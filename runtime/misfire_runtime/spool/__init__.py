"""Keeps selected samples on disk until the fleet has stored them."""

from misfire_runtime.spool.spool import RESUME, Pending, Spool, Terminal

__all__ = ["RESUME", "Pending", "Spool", "Terminal"]
