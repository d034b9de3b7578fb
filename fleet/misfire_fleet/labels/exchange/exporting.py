"""Writes an export that is whole or not there: into a temporary place, which is renamed at the end.

    .NAME.partial-XXXX/ (marked as partial) --Format.write--> files --manifest--> renamed to NAME

A destination with the ending of an archive is packed; one with the ending of the format's main document
(`labels.csv` for csv) is that document alone, without pictures.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from misfire_fleet.labels.exchange.archives import ARCHIVES, pack
from misfire_fleet.labels.exchange.manifest import ExportManifest, begin, finish
from misfire_fleet.labels.formats.base import ExportItem, Format, Plan, Written
from misfire_runtime import __version__
from misfire_runtime.clock import utc_text, wall_time
from misfire_runtime.errors import ConfigError

_ABANDONED_S = 24 * 3600.0
"""Age of temporary places of killed exports that are removed by the next one to the same destination."""


@dataclass(frozen=True)
class Exported:
    """Tells what was written. `pictures`: False if it is one document without them."""

    destination: Path
    format: str
    written: Written
    pictures: bool


def is_archive(path: Path) -> bool:
    """Returns whether a destination is to be packed."""
    return path.name.lower().endswith(ARCHIVES)


def is_document(path: Path, form: Format) -> bool:
    """Returns whether a destination is the format's main document alone."""
    return bool(form.main) and path.suffix.lower() == Path(form.main).suffix and not path.is_dir()


def export(
    items: Iterable[ExportItem],
    form: Format,
    destination: Path,
    *,
    plan: Plan,
    where: Sequence[str] = (),
    left_out: Counter[str] | None = None,
) -> Exported:
    """Writes items to a new folder, archive or document.

    Args:
        items: consumed once, one after another.
        form: the format.
        destination: does not exist, or is an empty folder.
        plan: classes and options.
        where: conditions of the items, for the manifest.
        left_out: counts, filled while items are consumed, of what was not yielded; they go to the manifest.

    Raises:
        ConfigError: the destination is taken, or a label cannot be written in this format.
    """
    _require_free(destination)
    single = is_document(destination, form)
    if single:
        plan = replace(plan, pictures=False)
        # One document has no halves.
        items = (replace(item, split="") for item in items)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(destination)
        # Hidden, so that no tool takes it for an export; with a mark inside for those that look.
        temporary = destination.with_name(f".{destination.name}.partial-{secrets.token_hex(4)}")
        temporary.mkdir()
    except OSError as error:
        raise ConfigError(f"{destination}: cannot be written ({error.strerror})") from error
    try:
        begin(temporary)
        written = form.write(items, temporary, plan)
        written.left_out.update(left_out or {})
        finish(temporary, _manifest(form, plan, where, written))
        _publish(temporary, destination, form, single=single)
    except OSError as error:
        raise ConfigError(f"{destination}: cannot be written ({error.strerror or error})") from error
    except ValueError as error:
        raise ConfigError(f"{destination}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            _packed(temporary).unlink()
    return Exported(destination, form.name, written, plan.pictures)


def _manifest(form: Format, plan: Plan, where: Sequence[str], written: Written) -> ExportManifest:
    return ExportManifest(
        to=form.name,
        project=plan.project,
        misfire=__version__,
        created_at=utc_text(wall_time()),
        where=tuple(where),
        samples=written.samples,
        labelled=written.labelled,
        answered=written.answered,
        left_out=dict(sorted(written.left_out.items())),
        classes=plan.classes,
    )


def _publish(temporary: Path, destination: Path, form: Format, *, single: bool) -> None:
    """Gives the export its name, after its bytes are on the disk."""
    source = temporary
    if single:
        source = temporary / form.main
    elif is_archive(destination):
        source = _packed(temporary)
        pack(temporary, source, like=destination.name)
    # One flush of everything: a hundred thousand files would need as many.
    os.sync()
    _require_free(destination)
    source.rename(destination)


def _packed(temporary: Path) -> Path:
    return temporary.with_name(f"{temporary.name}.packed")


def _require_free(destination: Path) -> None:
    """Raises ConfigError if something is there already."""
    if destination.is_dir() and not is_archive(destination):
        if any(destination.iterdir()):
            raise ConfigError(f"{destination} is not empty; choose another folder")
    elif os.path.lexists(destination):
        raise ConfigError(f"{destination} exists already; choose another name")


def _remove_abandoned(destination: Path) -> None:
    for left in destination.parent.glob(f".{_escaped(destination.name)}.partial-*"):
        with suppress(OSError):
            if wall_time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
