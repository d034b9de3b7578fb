"""Registers the trigger classes by the `kind` of their tables.

`@register` above a class adds it; a configuration's `[triggers.NAME]` tables are then checked against the
settings of the class that their `kind` names. So a new kind needs no change anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import GetJsonSchemaHandler, SerializeAsAny, ValidationInfo, WrapValidator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError
from pydantic_core.core_schema import ValidatorFunctionWrapHandler

from misfire_runtime.triggers.base import TriggerKind, TriggerTable

_CLASSES: dict[str, type[TriggerKind]] = {}
T = TypeVar("T", bound=type[TriggerKind])


def register(trigger: T) -> T:
    """Adds a trigger class under every `kind` that its `Settings` take; for use as a decorator.

    Raises:
        ValueError: another class has that kind already.
    """
    for kind in kinds_of(trigger.Settings):
        if _CLASSES.setdefault(kind, trigger) is not trigger:
            raise ValueError(f"trigger kind {kind!r} is taken by {_CLASSES[kind].__name__}")
    return trigger


def unregister(trigger: type[TriggerKind]) -> None:
    """Removes a trigger class; for tests that add one."""
    for kind in kinds_of(trigger.Settings):
        _CLASSES.pop(kind, None)


def kinds_of(settings: type[TriggerTable]) -> tuple[str, ...]:
    """Returns the values that a table's `kind`, a Literal, may have."""
    return get_args(settings.model_fields["kind"].annotation)


def class_of(table: TriggerTable) -> type[TriggerKind]:
    """Returns the class that a checked table configures."""
    return _CLASSES[table.kind]


def _by_kind(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> TriggerTable:
    """Checks a table against the settings of its kind; the errors are those of pydantic's tagged unions."""
    if isinstance(value, TriggerTable):
        return value
    if not isinstance(value, Mapping):
        raise PydanticKnownError("model_attributes_type")
    if "kind" not in value:
        raise PydanticKnownError("union_tag_not_found", {"discriminator": "'kind'"})
    kind = value["kind"]
    found = _CLASSES.get(kind) if isinstance(kind, str) else None
    if found is None:
        expected = ", ".join(repr(name) for name in _CLASSES)
        raise PydanticKnownError(
            "union_tag_invalid", {"discriminator": "'kind'", "tag": str(kind), "expected_tags": expected}
        )
    return found.Settings.model_validate(value, context=info.context)


class _OneOfAllKinds:
    """Lets the JSON Schema of a configuration list every kind, as a union would."""

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        tables = {found.Settings: None for found in _CLASSES.values()}
        return {"oneOf": [handler(table.__pydantic_core_schema__) for table in tables]}


AnyTriggerTable = Annotated[SerializeAsAny[TriggerTable], WrapValidator(_by_kind), _OneOfAllKinds()]
"""A `[triggers.NAME]` table of any registered kind."""
