"""Chosen samples wait here until the fleet has them."""

from misfire_runtime.spool.spool import RESUME, Pending, Spool, Terminal

__all__ = ["RESUME", "Pending", "Spool", "Terminal"]
