"""Finds, reads, splits and corrupts labelled images.

load_dataset(name) -> Dataset(train, test)     catalogue of named sets and readers of folders
Examples.batch(indices, contract) -> [n,C,H,W]  through the vehicle's own preprocessing
split(examples, fractions=...)                  by group, stratified, deterministic
corruptions.corrupt_all(examples, family, ...)  weather and faults that training has not seen
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from misfire_runtime.front_door import front_door

if TYPE_CHECKING:
    from misfire_train.data.examples import Dataset, Examples
    from misfire_train.data.loading import load_dataset
    from misfire_train.data.splits import split
else:
    __getattr__, __dir__ = front_door(
        __name__,
        {
            "Dataset": "misfire_train.data.examples",
            "Examples": "misfire_train.data.examples",
            "load_dataset": "misfire_train.data.loading",
            "split": "misfire_train.data.splits",
        },
    )

__all__ = ["Dataset", "Examples", "load_dataset", "split"]
