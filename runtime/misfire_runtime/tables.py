"""Provides what all settings tables share: unknown keys are errors, and paths are relative to their file.

Every table is beside the class it configures; `config/tables.py` assembles them into `VehicleConfig`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

Rate = Annotated[float, Field(ge=0, le=1)]


class Table(BaseModel):
    """Base of all tables: an unknown key is an error, and is not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def beside_file(path: Path, info: ValidationInfo) -> Path:
    """Returns `path` in the folder of the file it was read from; unchanged if it came from no file.

    Args:
        path: absolute paths stay as they are.
        info: pydantic's; its context holds the `folder` of the file.
    """
    folder: Path | None = (info.context or {}).get("folder")
    return path if folder is None else folder / path


RelativePath = Annotated[Path, AfterValidator(beside_file)]
"""A path. In a file it is relative to the folder of that file, on the command line to the working folder."""
