"""Marks an export as whole: the last file says what there is, the first one that there is no whole yet.

DIR/misfire-export.json     format, counts and classes of a whole export
DIR/misfire-export.partial  there is no whole export here (yet)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from misfire_runtime.errors import ConfigError
from misfire_runtime.toml import explain

MANIFEST, PARTIAL = "misfire-export.json", "misfire-export.partial"
_MAX_BYTES = 16 * 1024 * 1024
_Count = Annotated[int, Field(ge=0)]


class ExportManifest(BaseModel):
    """Describes a whole export.

    Attributes:
        format: of this manifest.
        to: name of the label format.
        project: name of the fleet that it was exported from.
        misfire: version of the program.
        created_at: ISO 8601, UTC.
        where: conditions that the samples met, as `--where` takes them.
        samples: number of pictures.
        labelled: number of those with a label.
        answered: number of those with the vehicle's answer.
        left_out: what was not written, by reason.
        classes: the project's classes by number.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["misfire-export/1"] = "misfire-export/1"
    to: str
    project: str = ""
    misfire: str = ""
    created_at: str = ""
    where: tuple[str, ...] = ()
    samples: _Count = 0
    labelled: _Count = 0
    answered: _Count = 0
    left_out: Mapping[str, int] = {}
    classes: tuple[str, ...] = ()


def begin(folder: Path) -> None:
    """Marks a folder as not whole."""
    (folder / PARTIAL).write_text(
        "This export is not complete. It is being written or copied, or that was interrupted.\n",
        encoding="ascii",
    )


def finish(folder: Path, manifest: ExportManifest) -> None:
    """Writes the manifest, and takes the mark away."""
    text = json.dumps(manifest.model_dump(mode="json"), ensure_ascii=False, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    (folder / PARTIAL).unlink()


def manifest_of(path: Path) -> ExportManifest | None:
    """Returns the manifest of a folder, None if it has none: another tool's files have none.

    Raises:
        ConfigError: the export is not whole, or its manifest is damaged.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / PARTIAL).exists():
        raise ConfigError(
            f"{path}: is half of an export ({PARTIAL} is there): it is still being written or copied, or "
            "that was interrupted; export or copy it again"
        )
    file = folder / MANIFEST
    if not path.is_dir() or not file.is_file():
        return None
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{file}: is no manifest: it has more than {_MAX_BYTES:,} bytes")
        return ExportManifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ConfigError(explain(error, file=f"{file}: damaged", most=1)) from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
