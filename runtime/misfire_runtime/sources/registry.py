"""Finds the class that reads a user's `input`: a path, a URL, a device, or `gst:` and a pipeline.

input --`prefixes` of the kinds--> LiveStream, GStreamerPipeline
path  --`reads` of the kinds--> McapReplay, RecordedFiles

A new kind is one file: a subclass of `SourceKind` that names its prefixes or suffixes, `@register` above it,
and, if it has settings of its own, a subclass of `SourceTable`. The kinds that come with the runtime are
imported when a source is first asked for, because they bring FFmpeg.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from misfire_runtime.errors import SourceError
from misfire_runtime.sources.frame import Frame, Source, SourceCounts
from misfire_runtime.tables import Table, beside_file

# The last one is asked first (see `register`), so "files", which reads any path, comes last.
_BUILT_IN = ("files", "replay", "stream", "gstreamer")
_FILE = "file://"


def _any_name(value: Any, handler: ValidatorFunctionWrapHandler) -> str:
    """Takes every text: names of files that are not UTF-8 are no strings for pydantic."""
    return value if isinstance(value, str) and value else str(handler(value))


def _input_beside_file(text: str, info: ValidationInfo) -> str:
    return text if _is_address(text) else str(beside_file(Path(text), info))


class SourceTable(Table):
    """One camera or recording."""

    input: Annotated[
        str, Field(min_length=1), WrapValidator(_any_name), AfterValidator(_input_beside_file)
    ] = Field(description="path, rtsp:// URL, /dev/videoN, gst:PIPELINE, or .mcap")
    name: str = Field(default="", max_length=64)
    topic: str | None = None
    options: dict[str, str] = Field(default={}, description="FFmpeg options of a live source")

    @property
    def path(self) -> Path:
        """Returns the input as a path, for kinds that read files."""
        return Path(self.input.removeprefix(_FILE))


class SourceKind(ABC):
    """Defines a source that a configuration can name; see `Source` for what the pipeline needs of it.

    prefixes: inputs that begin with one of these are its own.
    suffixes: paths that end in one of these are its own, in lower case.
    """

    Settings: ClassVar[type[SourceTable]] = SourceTable
    prefixes: ClassVar[tuple[str, ...]] = ()
    suffixes: ClassVar[tuple[str, ...]] = ()
    name: str
    live: bool
    identity: str = ""
    counts: SourceCounts

    @classmethod
    def reads(cls, path: Path) -> bool:
        """Returns whether it reads that path. A kind that looks into the file or folder overrides it."""
        return path.suffix.lower() in cls.suffixes

    @classmethod
    @abstractmethod
    def open(cls, settings: Any) -> Source:
        """Returns the source of a table.

        Args:
            settings: an instance of `Settings`.

        Raises:
            SourceError: there is nothing to read, or what is needed to read it is not installed.
        """

    @abstractmethod
    def frames(self, stop: Event, *, start: int = 0) -> Iterator[Frame]:
        """See Source."""

    @abstractmethod
    def close(self) -> None:
        """See Source."""


_KINDS: list[type[SourceKind]] = []
T = TypeVar("T", bound=type[SourceKind])


def register(kind: T) -> T:
    """Adds a source class, which is asked before those that are there; for use as a decorator."""
    _KINDS.insert(0, kind)
    return kind


def unregister(kind: type[SourceKind]) -> None:
    """Removes a source class; for tests that add one."""
    _KINDS.remove(kind)


def open_table(table: SourceTable) -> Source:
    """Returns the source of a `[[source]]` table.

    Raises:
        SourceError: no kind reads the input, or there is nothing to read.
    """
    kind = _by_text(table.input)
    if kind is None:
        scheme, separator, _path = table.input.partition("://")
        # Before the paths are tried: a mistyped scheme would be reported as a missing file.
        if separator and scheme != "file":
            known = ", ".join(prefix for kind in _kinds() for prefix in kind.prefixes)
            raise SourceError(f"{table.input}: unknown scheme {scheme!r}; known are a path, {known}")
        kind = next((kind for kind in _kinds() if kind.reads(table.path)), None)
    if kind is None:
        raise SourceError(f"{table.input}: no source reads this")
    # What a kind finds out by looking into a file came after the table was checked: it has no settings beside
    # those of every source, so the kind's own defaults apply.
    own = isinstance(table, kind.Settings)
    return kind.open(table if own else kind.Settings.model_validate(table.model_dump(exclude_unset=True)))


def open_source(
    where: str, *, name: str = "", topic: str | None = None, options: Mapping[str, str] | None = None
) -> Source:
    """Returns the source that reads `where`.

    Args:
        where: a path, a URL, a device, or `gst:` and a pipeline.
        name: what offers call it.
        topic: image topic of an MCAP file; None is the first.
        options: FFmpeg's options of a live source.

    Raises:
        SourceError: the message says what is wrong with `where`.
    """
    try:
        fields = {"input": where, "name": name, "topic": topic, "options": dict(options or {})}
        table = _settings_for(where).model_validate(fields)
    except ValidationError as error:
        raise SourceError(f"{where!r}: {error.errors()[0]['msg']}") from error
    return open_table(table)


def _kinds() -> list[type[SourceKind]]:
    for module in _BUILT_IN:
        import_module(f"misfire_runtime.sources.{module}")
    return _KINDS


def _by_text(where: str) -> type[SourceKind] | None:
    """Returns the kind that an input names by its beginning."""
    return next((kind for kind in _kinds() if where.startswith(kind.prefixes)), None)


def _is_address(text: str) -> bool:
    """Returns True for an input that is no path: it must not be taken as relative to a file."""
    return "://" in text or _by_text(text) is not None


def _by_input(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> SourceTable:
    """Checks a table against the settings of the kind that reads its input."""
    where = value.get("input") if isinstance(value, Mapping) else None
    if not isinstance(where, str):
        checked: SourceTable = handler(value)
        return checked
    return _settings_for(where).model_validate(value, context=info.context)


def _settings_for(where: str) -> type[SourceTable]:
    """Returns the settings that an input may have, without a look at the file: it may come later."""
    kind = _by_text(where)
    if kind is None:
        kind = next((kind for kind in _kinds() if Path(where).suffix.lower() in kind.suffixes), None)
    return SourceTable if kind is None else kind.Settings


AnySourceTable = Annotated[SerializeAsAny[SourceTable], WrapValidator(_by_input)]
"""A `[[source]]` table of any registered kind."""
