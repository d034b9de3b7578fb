"""Writes and reads WebDataset shards: tar files in which the members of one sample follow each other.

DIR/shard-000000.tar: <id>.jpg, <id>.json, <id>.cls (number of its class, if that is the label)
DIR/classes.txt

<id>.json has the fields, `label` (the label's content), and `answer` with confidence and P(correct). Shards
are read in a stream; nothing is unpacked.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

from misfire_fleet.labels.content import ClassLabel, parse
from misfire_fleet.labels.formats.base import (
    ALL_KINDS,
    ClassNumbers,
    ExportItem,
    Format,
    ImportedLabel,
    Known,
    Plan,
    Problem,
    Written,
    id_in,
)
from misfire_fleet.labels.formats.parts.fields import fields_of, moment_of
from misfire_fleet.labels.formats.parts.json_stream import json_text
from misfire_fleet.labels.formats.parts.tar_headers import BoundedHeader
from misfire_fleet.labels.formats.registry import register
from misfire_runtime.errors import ConfigError

_MAX_SHARD_BYTES = 512 * 1024 * 1024
_MAX_JSON_BYTES = 64 * 1024 * 1024
_MAX_MEMBERS = 50_000_000
_END = bytes(1024)
"""Two empty blocks end a tar; one without them was cut off."""


@register
class WebDataset(Format):
    """Shards for training at scale."""

    name = "webdataset"
    help = "tar shards of pictures and JSON, as the webdataset library streams them"
    kinds = ALL_KINDS
    answers = True

    def write(self, items: Iterable[ExportItem], folder: Path, plan: Plan) -> Written:
        """Writes shards of at most 512 MiB; a sample is never divided between two."""
        written, numbers = Written(), ClassNumbers(plan.classes)
        with closing(_Shards(folder)) as shards:
            for item in items:
                picture = item.read() if plan.pictures else None
                document = json_text(_document(item)).encode()
                shards.begin(len(document) + len(picture or b""))
                if picture is not None:
                    shards.add(item.file_name, picture)
                shards.add(f"{item.sample}.json", document)
                if isinstance(item.label, ClassLabel):
                    shards.add(f"{item.sample}.cls", str(numbers.of(item.label.name)).encode())
                written.count(item)
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in numbers.names), encoding="utf-8")
        return written

    def recognise(self, path: Path) -> str | None:
        """Accepts a folder with tar files, or a tar whose first members are of one sample."""
        shards = _shards(path)
        if not shards or not _first_is_a_sample(shards[0]):
            return None
        return f"{len(shards)} WebDataset shards ({shards[0].name})"

    def read(self, path: Path, known: Known) -> Iterator[ImportedLabel | Problem]:
        """Yields the labels of all shards: `label` of a sample's JSON, else its .cls."""
        folder = path if path.is_dir() else path.parent
        classes = _classes(folder) or known.classes
        for shard in _shards(path):
            yield from _read_shard(shard, classes)


class _Shards:
    """Writes numbered tar files; the same samples give the same bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number, self._bytes = folder, 0, 0
        self._open: tarfile.TarFile | None = None

    def begin(self, size: int) -> None:
        """Starts a sample of so many bytes, in the next shard if this one is full."""
        if self._open is not None and self._bytes + size > _MAX_SHARD_BYTES:
            self.close()
        if self._open is None:
            path = self._folder / f"shard-{self._number:06d}.tar"
            self._open = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
            self._number, self._bytes = self._number + 1, 0
        self._bytes += size

    def add(self, name: str, data: bytes) -> None:
        """Adds a member to the sample."""
        assert self._open is not None
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._open.addfile(member, io.BytesIO(data))
        # A TarFile remembers all members, which only reading needs.
        self._open.members.clear()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Ends the open shard."""
        if self._open is not None:
            self._open.close()
            self._open = None


def _document(item: ExportItem) -> dict[str, Any]:
    answer, label = item.answer, item.label
    return {
        **fields_of(item),
        **({} if label is None else {"label": label.model_dump(mode="json")}),
        **(
            {}
            if answer is None
            else {
                "answer": {
                    "label": answer.label.model_dump(mode="json"),
                    "confidence": answer.confidence,
                    "p_correct": answer.p_correct,
                    "more": answer.more,
                }
            }
        ),
    }


def _shards(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    return [path] if path.suffix.lower() == ".tar" and path.is_file() else []


def _first_is_a_sample(shard: Path) -> bool:
    """Returns whether a tar begins with a member of a sample at its top: `NAME.json`, .cls or a picture."""
    try:
        with tarfile.open(shard, "r|", tarinfo=BoundedHeader) as archive:
            first = next((member for member in archive if member.isfile()), None)
    except (OSError, tarfile.TarError):
        return False
    if first is None:
        return False
    name = PurePosixPath(first.name)
    return len(name.parts) == 1 and (len(id_in(name.name)) == 64 or name.suffix in (".json", ".cls"))


def _classes(folder: Path) -> tuple[str, ...]:
    from misfire_train.data.readers.class_lists import read_class_list
    from misfire_train.errors import DatasetError

    file = folder / "classes.txt"
    try:
        return read_class_list(file).names if file.is_file() and file.stat().st_size else ()
    except DatasetError as error:
        raise ConfigError(str(error)) from error


def _read_shard(shard: Path, classes: tuple[str, ...]) -> Iterator[ImportedLabel | Problem]:
    _require_end(shard)
    told = ""
    try:
        # "r|" reads forwards only, so that links and offsets of a hostile archive lead nowhere.
        with tarfile.open(shard, "r|", tarinfo=BoundedHeader) as archive:
            for count, member in enumerate(archive):
                archive.members.clear()  # type: ignore[attr-defined]
                if count > _MAX_MEMBERS:
                    raise ConfigError(f"{shard}: has more than {_MAX_MEMBERS:,} members")
                name = PurePosixPath(member.name.replace("\\", "/")).name
                ending = name.rpartition(".")[2]
                if not member.isfile() or ending not in ("json", "cls"):
                    continue
                where = f"{shard.name}: {name}"
                if member.size > _MAX_JSON_BYTES:
                    yield Problem(where, f"{member.size:,} bytes; at most {_MAX_JSON_BYTES:,} are read")
                    continue
                stream = archive.extractfile(member)
                found = None if stream is None else _read_member(name, stream.read(), classes, where)
                if isinstance(found, ImportedLabel):
                    # The JSON and the .cls of one sample say the same; the JSON comes first.
                    if found.sample == told:
                        continue
                    told = found.sample
                if found is not None:
                    yield found
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ConfigError(f"{shard}: damaged or cut off ({error})") from error


def _require_end(shard: Path) -> None:
    """Raises ConfigError if a tar was cut off: Python's reader takes any end for the end."""
    try:
        with shard.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - len(_END)))
            ended = stream.read() == _END
    except OSError as error:
        raise ConfigError(f"{shard}: cannot be read ({error.strerror})") from error
    if not ended:
        raise ConfigError(f"{shard}: has no end: it was cut off, or is still being written")


def _read_member(
    name: str, data: bytes, classes: tuple[str, ...], where: str
) -> ImportedLabel | Problem | None:
    try:
        if name.endswith(".cls"):
            number = int(data)
            if not 0 <= number < len(classes):
                raise ValueError(f"class {number} is not listed; classes are 0 to {len(classes) - 1}")
            return ImportedLabel(id_in(name[:-4]), ClassLabel(name=classes[number]), where)
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError("expected an object")
        if document.get("label") is None:
            return None
        stated = document.get("sample_id")
        sample = id_in(stated if isinstance(stated, str) and stated else name.rpartition(".")[0])
        label = parse(document["label"], where=where)
    except (ConfigError, ValueError, RecursionError) as error:
        return Problem(where, str(error).splitlines()[0].removeprefix(f"{where}: "))
    size = document.get("width"), document.get("height")
    annotator, at = document.get("annotator"), document.get("labelled_at")
    return ImportedLabel(
        sample,
        label,
        where,
        size=size if all(type(side) is int and side > 0 for side in size) else None,  # type: ignore[arg-type]
        annotator=annotator if isinstance(annotator, str) else "",
        at=moment_of(at),
    )
