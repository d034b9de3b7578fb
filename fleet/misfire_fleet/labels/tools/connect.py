"""Opens the project of a label tool that a command names: address, token, configuration, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from misfire_fleet.errors import LabelToolError
from misfire_fleet.labels.content import PointsLabel, ValuesLabel, names_in
from misfire_fleet.labels.formats.base import ExportItem, Kind
from misfire_fleet.labels.formats.label_studio.results import numbered
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.labels.tools.base import LabelTool
from misfire_fleet.labels.tools.cvat import server as cvat_server
from misfire_fleet.labels.tools.cvat import tool as cvat
from misfire_fleet.labels.tools.http import Endpoint, Limits, checked_url
from misfire_fleet.labels.tools.label_studio.api import LabelStudioApi, Project
from misfire_fleet.labels.tools.label_studio.credentials import credentials_of
from misfire_fleet.labels.tools.label_studio.images import (
    EmbeddedImages,
    Images,
    LinkedImages,
    UploadedImages,
)
from misfire_fleet.labels.tools.label_studio.project import config_of, find_project, prepare_project
from misfire_fleet.labels.tools.label_studio.tool import LabelStudioProject
from misfire_fleet.labels.tools.selection import blinded, most_suspicious
from misfire_fleet.labels.tools.tokens import read_token
from misfire_fleet.store import Store
from misfire_fleet.store.records import SampleFilter
from misfire_runtime.errors import ConfigError

_LOOKED_AT = 1000
"""Answers in which classes are looked for, if the fleet has none yet."""
LIMITS = Limits()
"""Of connections to label tools."""
ToolName = Literal["label-studio", "cvat"]


@dataclass(frozen=True)
class ProjectRequest:
    """Says which project of which tool is meant, and what a push may set up there.

    Attributes:
        tool: its name.
        url: of the server.
        project: title or number.
        token_file: has the token; None reads the environment.
        insecure: allows plain http to another machine.
        kind: of the labels; None takes that of the answers.
        names: classes, or names of points or values; empty takes those of the fleet.
        images: how the tool gets pictures.
        console: address of the console, if it links to it.
        sign: returns the query string that lets a picture's link show it without an account.
        update: adds names that an existing project lacks.
        blind: sends neither answers nor scores, and in no order that tells them.
    """

    tool: ToolName
    url: str
    project: str
    token_file: Path | None = None
    insecure: bool = False
    kind: Kind | None = None
    names: tuple[str, ...] = ()
    images: str = "upload"
    console: str = ""
    sign: Callable[[str], str] = str
    update: bool = False
    blind: bool = False


def connect(request: ProjectRequest) -> LabelTool:
    """Returns an existing project.

    Raises:
        ConfigError: the address, the token or the title is wrong.
        LabelToolError: the tool refuses the token, or has no such project.
        LabelToolUnavailableError: the tool does not work now.
    """
    if request.tool == "cvat":
        server = _cvat(request)
        found = cvat.find_project(server, request.project)
        if found is None:
            raise LabelToolError(
                f"CVAT at {server.url} has no project named {request.project!r}; "
                "`misfire labels push` creates it"
            )
        return cvat.CvatTool(server, found, kind=request.kind)
    api = _label_studio(request)
    project = find_project(api, request.project)
    if project is None:
        raise LabelToolError(
            f"Label Studio at {api.url} has no project titled {request.project!r}; "
            "`misfire labels push` creates it"
        )
    return LabelStudioProject(api, project, config_of(api, project))


def connect_for_push(
    store: Store,
    request: ProjectRequest,
    filters: SampleFilter,
    *,
    limit: int | None = None,
) -> tuple[LabelTool, Iterator[ExportItem]]:
    """Returns the project, created if it does not exist, and the items to be sent to it.

    Args:
        store: of the samples.
        request: the project.
        filters: samples that are wanted.
        limit: at most this many items.

    Raises:
        ConfigError: the address, the token or the title is wrong, or no class is known.
        LabelToolError: the tool refuses the token, or its project is set up otherwise.
        LabelToolUnavailableError: the tool does not work now.
    """
    first, items = _ahead(store, filters, limit, blind=request.blind)
    kind = request.kind or next((item.answer.label.kind for item in first if item.answer), None)
    if kind is None:
        raise ConfigError("no answer of a vehicle tells which kind of labels is wanted; say it with --kind")
    names = request.names or _names(store, kind, first)
    sent = map(blinded, items) if request.blind else items
    if request.tool == "cvat":
        server = _cvat(request)
        if kind == "values":
            raise ConfigError("CVAT has no place for numbers; use --to label-studio")
        there = cvat.prepare_project(server, request.project, kind=kind, names=names, update=request.update)
        points = names if kind == "points" else ()
        return cvat.CvatTool(server, there, kind=kind, points=points), sent
    api = _label_studio(request)
    project, config = prepare_project(api, request.project, kind=kind, names=names, update=request.update)
    images = _images(request, api, project, store)
    return LabelStudioProject(api, project, config, images=images), sent


def _cvat(request: ProjectRequest) -> cvat_server.CvatServer:
    token = read_token(request.token_file, variable="CVAT_ACCESS_TOKEN")
    return cvat_server.SdkServer(checked_url(request.url, insecure=request.insecure), token=token)


def _label_studio(request: ProjectRequest) -> LabelStudioApi:
    token = read_token(request.token_file, variable="LABEL_STUDIO_API_KEY")
    plain = Endpoint(request.url, name="Label Studio", limits=LIMITS, insecure=request.insecure)
    credentials = credentials_of(token, exchange=plain)
    api = LabelStudioApi(
        Endpoint(
            request.url,
            name="Label Studio",
            credentials=credentials,
            limits=LIMITS,
            insecure=request.insecure,
        )
    )
    # One small question proves address and token before anything is sent.
    api.user()
    return api


def _ahead(
    store: Store, filters: SampleFilter, limit: int | None, *, blind: bool
) -> tuple[list[ExportItem], Iterator[ExportItem]]:
    """Returns the first items, and all items."""
    items = most_suspicious(store, filters, limit=limit, by_id=blind)
    first = [item for item, _ in zip(items, range(_LOOKED_AT), strict=False)]
    return first, chain(first, items)


def _names(store: Store, kind: Kind, first: list[ExportItem]) -> tuple[str, ...]:
    """Returns the fleet's classes and those of the first answers; or numbers, for points and values."""
    answers = [item.answer.label for item in first if item.answer and item.answer.label.kind == kind]
    if kind in ("points", "values"):
        counts = [
            len(label.points if isinstance(label, PointsLabel) else label.values)
            for label in answers
            if isinstance(label, PointsLabel | ValuesLabel)
        ]
        return numbered(kind, max(counts, default=0))
    known = [each.name for each in LabelLedger(store).classes()]
    named = sorted({name for label in answers for name in names_in(label)} - set(known))
    return (*known, *named)


def _images(request: ProjectRequest, api: LabelStudioApi, project: Project, store: Store) -> Images:
    if request.images == "console":
        return LinkedImages.at_console(request.console, insecure=request.insecure, sign=request.sign)
    if request.images == "embed":
        return EmbeddedImages()
    if request.images == "signed":
        return LinkedImages(store.blobs.signed_url, expires=True)
    return UploadedImages(api, project)
