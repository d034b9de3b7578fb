"""Finds or creates the project of a push, and checks that its labelling configuration is misfire's."""

from __future__ import annotations

from collections.abc import Sequence

from misfire_fleet.errors import LabelToolError
from misfire_fleet.labels.formats.base import Kind
from misfire_fleet.labels.formats.label_studio.config import LabellingConfig, difference, read_config
from misfire_fleet.labels.tools.label_studio.api import MAX_TITLE, LabelStudioApi, Project
from misfire_runtime.errors import ConfigError

_MIN_TITLE = 3


def find_project(api: LabelStudioApi, name: str) -> Project | None:
    """Returns the project with a title, or with a number; None if there is none.

    Raises:
        ConfigError: the title cannot be one.
        LabelToolError: two projects have it.
    """
    if name.isascii() and name.isdigit():
        try:
            return api.project(int(name))
        except LabelToolError as error:
            if error.status == 404:
                raise LabelToolError(
                    f"Label Studio at {api.url} has no project with the number {name}"
                ) from error
            raise
    if not _MIN_TITLE <= len(name) <= MAX_TITLE or name != name.strip():
        raise ConfigError(
            f"--project {name!r}: Label Studio takes titles of {_MIN_TITLE} to {MAX_TITLE} characters"
        )
    found = api.projects(name)
    if len(found) > 1:
        numbers = ", ".join(str(each.id) for each in found)
        raise LabelToolError(
            f"Label Studio at {api.url} has {len(found)} projects titled {name!r}; "
            f"give the number of one as --project: {numbers}"
        )
    return found[0] if found else None


def config_of(api: LabelStudioApi, project: Project) -> LabellingConfig:
    """Returns what a project lets people mark.

    Raises:
        LabelToolError: misfire could not have written its configuration.
    """
    config = read_config(project.label_config) if project.label_config.strip() else None
    if config is None:
        raise LabelToolError(
            f"project {project.title!r} of Label Studio at {api.url}: its labelling configuration is not "
            "one that misfire reads; choose another --project, and let `misfire labels push` create it"
        )
    return config


def prepare_project(
    api: LabelStudioApi,
    title: str,
    *,
    kind: Kind,
    names: Sequence[str],
    update: bool,
) -> tuple[Project, LabellingConfig]:
    """Returns the project for a push, created if it does not exist, and what it lets people mark.

    Args:
        api: of the server.
        title: of the project, or its number.
        kind: of the labels.
        names: classes, points or values that it must have.
        update: adds names that an existing project lacks.

    Raises:
        ConfigError: there are no names, or the title cannot be one.
        LabelToolError: the existing project has other controls, or lacks names and `update` is False.
    """
    project = find_project(api, title)
    if project is None:
        wanted = LabellingConfig(kind, tuple(names))
        return api.create_project(title, wanted.xml()), wanted
    here = f"project {project.title!r} ({project.id}) of Label Studio at {api.url}"
    wanted = LabellingConfig(kind, tuple(names)) if names else config_of(api, project)
    there = read_config(project.label_config) if project.label_config.strip() else None
    if there is not None and there.kind != kind:
        raise LabelToolError(f"{here}: is set up for labels of {there.kind}; these are of {kind}")
    found = difference(project.label_config, wanted)
    if found.problems:
        raise LabelToolError(f"{here}: its labelling configuration {'; '.join(found.problems)}")
    if kind in ("points", "values") and (found.missing or found.extra):
        raise LabelToolError(f"{here}: has other {kind}: {config_of(api, project).names}, not {wanted.names}")
    if found.missing and not update:
        raise LabelToolError(
            f"{here}: lacks {', '.join(map(repr, found.missing))}; add them with --update-project"
        )
    if not found.missing and not found.extra:
        return project, wanted
    # Names that only the project has stay: people may have used them.
    config = LabellingConfig(kind, (*config_of(api, project).names, *found.missing))
    if found.missing:
        api.set_config(project, config.xml())
    return project, config
