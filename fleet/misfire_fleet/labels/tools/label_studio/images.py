"""Gives Label Studio addresses of pictures: uploaded copies, links elsewhere, or the data itself.

Uploading is the default: it needs no address that the browsers of the people who label can reach.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from misfire_fleet.errors import LabelToolError, SampleGoneError
from misfire_fleet.labels.formats.base import ExportItem, id_in
from misfire_fleet.labels.tools.http import FilePart, checked_url
from misfire_fleet.labels.tools.label_studio.api import LabelStudioApi, Project, Upload

_REQUEST_BYTES = 32 * 1024 * 1024
"""Of one upload; Label Studio takes 250 MB, proxies before it often less."""
MAX_EMBEDDED = 4 * 1024 * 1024
"""Bytes of a picture inside a task: every list of tasks carries it."""


@dataclass(frozen=True)
class Addresses:
    """Holds addresses by sample, and why the others have none."""

    found: Mapping[str, str]
    missing: Mapping[str, str]


class Images(Protocol):
    """Gives addresses of pictures."""

    expires: bool
    """True if addresses stop working after some time, so that old tasks get new ones."""

    def addresses(self, items: Sequence[ExportItem]) -> Addresses:
        """Returns the addresses of pictures, which work from now on."""


class UploadedImages:
    """Uploads pictures to the server. A copy that an earlier, killed push left is used."""

    expires = False

    def __init__(self, api: LabelStudioApi, project: Project) -> None:
        self._api, self._project = api, project
        self._earlier: dict[str, Upload] | None = None

    def addresses(self, items: Sequence[ExportItem]) -> Addresses:
        """Uploads in requests of bounded size."""
        found: dict[str, str] = {}
        missing: dict[str, str] = {}
        for group in self._groups(items, found, missing):
            uploads = self._api.upload(self._project, [part for _, part in group])
            for (sample, _), upload in zip(group, uploads, strict=True):
                found[sample] = _address(upload)
        return Addresses(found, missing)

    def _groups(
        self, items: Sequence[ExportItem], found: dict[str, str], missing: dict[str, str]
    ) -> Iterator[list[tuple[str, FilePart]]]:
        group: list[tuple[str, FilePart]] = []
        size = 0
        for item in items:
            try:
                data = item.read()
            except SampleGoneError:
                missing[item.sample] = "its picture is no longer stored"
                continue
            earlier = self._uploaded().get(item.sample)
            # A killed push may leave a part of a file.
            if earlier is not None and earlier.size == len(data):
                found[item.sample] = _address(earlier)
                continue
            if group and size + len(data) > _REQUEST_BYTES:
                yield group
                group, size = [], 0
            group.append((item.sample, FilePart(item.file_name, item.media_type, data)))
            size += len(data)
        if group:
            yield group

    def _uploaded(self) -> Mapping[str, Upload]:
        if self._earlier is None:
            self._earlier = {id_in(each.file): each for each in self._api.uploads(self._project)}
        return self._earlier


def _address(upload: Upload) -> str:
    """Returns the path of an upload on the server. Raises LabelToolError if it is none."""
    if re.fullmatch(r"upload/[0-9]+/[A-Za-z0-9._-]{1,200}", upload.file) is None:
        raise LabelToolError(f"Label Studio names an uploaded file {upload.file[:200]!r}")
    return f"/data/{upload.file}"


class LinkedImages:
    """Links to pictures elsewhere, which the browsers of the people who label must reach.

    Args:
        link: returns the address of a sample's picture.
        expires: True if addresses stop working after some time.
    """

    def __init__(self, link: Callable[[str], str], *, expires: bool) -> None:
        self._link, self.expires = link, expires

    @classmethod
    def at_console(cls, url: str, *, insecure: bool, sign: Callable[[str], str]) -> LinkedImages:
        """Links to the console.

        Args:
            url: of the console.
            insecure: allows plain http to another machine.
            sign: returns the query string of a sample's link, which shows it without an account.

        Raises:
            ConfigError: the URL is none.
        """
        root = checked_url(url, insecure=insecure)
        return cls(lambda sample: f"{root}/blobs/{sample}?{sign(sample)}", expires=True)

    def addresses(self, items: Sequence[ExportItem]) -> Addresses:
        """Returns the links."""
        return Addresses({item.sample: self._link(item.sample) for item in items}, {})


class EmbeddedImages:
    """Puts pictures into the tasks themselves."""

    expires = False

    def addresses(self, items: Sequence[ExportItem]) -> Addresses:
        """Returns data: addresses of the pictures that are small enough."""
        found: dict[str, str] = {}
        missing: dict[str, str] = {}
        for item in items:
            try:
                data = item.read()
            except SampleGoneError:
                missing[item.sample] = "its picture is no longer stored"
                continue
            if len(data) > MAX_EMBEDDED:
                missing[item.sample] = (
                    f"its picture has more than {MAX_EMBEDDED:,} bytes; use --images upload"
                )
                continue
            found[item.sample] = f"data:{item.media_type};base64,{base64.b64encode(data).decode('ascii')}"
        return Addresses(found, missing)
