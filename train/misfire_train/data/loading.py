"""From a name to a data set: `mnist`, or a reader and what it reads: `image-folder:PATH`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from misfire_train.data.catalogue import entries
from misfire_train.data.examples import Dataset
from misfire_train.data.figures import load_figures
from misfire_train.data.published import (
    load_digits,
    load_fashion_mnist,
    load_kmnist,
    load_mnist,
    load_traffic_lights,
)
from misfire_train.errors import DatasetError

_NAMED: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
    "kmnist": load_kmnist,
    "traffic-lights": load_traffic_lights,
    "figures": load_figures,
    "figure-parts": lambda root: load_figures(root, labels="parts"),
}
_READERS: dict[str, Callable[[Path], Dataset]] = {}


def load_dataset(name: str, *, root: Path | None = None) -> Dataset:
    """The data set of that name, its files verified by checksum.

    name: one of `misfire data list`; readers of your own files take their path after a colon.
    root: folder of the published sets; else MISFIRE_DATA, `../shared/data` beside the checkout, the cache.
    Raises DatasetError: unknown name, missing or changed file, malformed content.

    >>> digits = load_dataset("digits")
    >>> len(digits.train), len(digits.test), digits.contract.height
    (1347, 450, 8)
    """
    reader, colon, argument = name.partition(":")
    if reader in _READERS:
        if not argument:
            raise DatasetError(f"{reader} needs a path: {reader}:PATH")
        return _READERS[reader](Path(argument))
    if name in _NAMED:
        return _NAMED[name](root)
    if colon and reader in _NAMED:
        raise DatasetError(f"{reader} takes no path; use --data to say where its files are")
    known = [entry + (":PATH" if entry in _READERS else "") for entry in entries() if entry != "dashcam"]
    close = difflib.get_close_matches(reader, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise DatasetError(f"there is no data set {name!r}{hint} Known: {', '.join(known)}")
