"""Compiles rules over scores and context: entropy > 0.9 and prediction == "yellow" and context.speed > 10

text --ast.parse--> whitelist --> closures. Nothing but what is listed here can be written: no calls but abs,
min, max and has, no attributes but score., percentile., boxes. and context., no names but the scores of the
bundle, `prediction`, `confidence`, `boxes`, `source`. A value that is not there (a context signal not yet
received) is unknown: a comparison with it is false, so `not` of it is true; `has(context.speed)` asks for it.

Of a detector, `boxes` is the number of boxes and `boxes.car` that of one class; `prediction == "car"` holds
if there is a car, and `confidence` is the best score.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection
from typing import Any, Literal

from misfire_runtime.engines.detections import class_name
from misfire_runtime.errors import ConfigError
from misfire_runtime.triggers.base import (
    BuildContext,
    Trigger,
    TriggerEvent,
    TriggerKind,
    TriggerTable,
)
from misfire_runtime.triggers.registry import register
from misfire_runtime.triggers.scored_frame import ScoredFrame

MAX_LENGTH = 1000
MAX_NODES = 200
"""A rule is evaluated on every frame, and may come from the fleet: it must not cost more than scoring."""
# An object of its own: None, 0 and "" are values that a signal may have.
_UNKNOWN = object()
Getter = Callable[[ScoredFrame], Any]

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: _among(a, b),  # noqa: PLW0108  (defined below, with what it needs)
    ast.NotIn: lambda a, b: not _among(a, b),
}
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    # Without **: a power of large numbers takes minutes and gigabytes.
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"abs": abs, "min": min, "max": max}


class RuleTable(TriggerTable):
    """An expression over scores and context."""

    kind: Literal["rule"]
    when: str


@register
class Rule(TriggerKind):
    """Fires if its expression is true."""

    Settings = RuleTable

    def __init__(
        self,
        name: str,
        *,
        when: str,
        scores: Collection[str],
        classes: Collection[str] = (),
        priority: int = 5,
    ) -> None:
        """scores, classes: the names the bundle has. Raises ConfigError that shows the place in `when`."""
        self.name = name
        self._when = when
        self._priority = priority
        self._test = compile_rule(when, scores=scores, classes=classes)

    @classmethod
    def build(cls, settings: RuleTable, context: BuildContext) -> Trigger:
        """See TriggerKind."""
        try:
            rule = cls(
                context.name,
                when=settings.when,
                scores=context.scores,
                classes=context.scorer.classes,
                priority=settings.priority,
            )
        except ConfigError as error:
            raise ConfigError(f"triggers.{context.name}.when: {error}") from error
        context.used.update(scores_named(settings.when, scores=context.scores))
        return rule

    def look(self, frame: ScoredFrame) -> TriggerEvent | None:
        """See Trigger."""
        if not self._test(frame):
            return None
        return TriggerEvent(self.name, self._when[:200], self._priority)


def compile_rule(
    text: str, *, scores: Collection[str], classes: Collection[str] = ()
) -> Callable[[ScoredFrame], bool]:
    """Returns a function from a frame to whether the rule holds; it never raises.

    Args:
        text: the expression.
        scores: the names the bundle has.
        classes: the names of its classes; none: any name may follow `boxes.`.

    Raises:
        ConfigError: the text is no expression, or says something that is not allowed.
    """
    # Before the parser, whose time and memory grow with the text.
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"rule of {len(text)} characters; at most {MAX_LENGTH}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    # ast.parse raises ValueError for zero bytes, MemoryError for deep nesting.
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        at = getattr(error, "offset", None)
        raise ConfigError(
            f"rule {text!r}: not an expression" + (f" (at column {at})" if at else "")
        ) from error
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise ConfigError(f"rule {text[:60]!r}...: too long")
    getter = _Compiler(text, scores, classes).build(tree.body)
    return lambda frame: _true(getter(frame))


def scores_named(text: str, *, scores: Collection[str]) -> set[str]:
    """Returns the scores that a rule names, by value or by percentile; `text` compiles."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text.strip(), mode="eval")):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant):
            found.add(str(node.value))
    return found & set(scores)


class _Compiler:
    def __init__(self, text: str, scores: Collection[str], classes: Collection[str]) -> None:
        self._text = text
        self._scores = frozenset(scores)
        self._classes = tuple(classes)

    def build(self, node: ast.expr) -> Getter:
        # A node without a method here is not allowed: the whitelist is this class.
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise self._error(node, f"{type(node).__name__} is not allowed")
        getter: Getter = method(node)
        return getter

    def _error(self, node: ast.AST, problem: str) -> ConfigError:
        column = getattr(node, "col_offset", 0) + 1
        return ConfigError(f"rule {self._text!r}, column {column}: {problem}")

    def _constant(self, node: ast.Constant) -> Getter:
        value = node.value
        if not isinstance(value, int | float | str) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise self._error(node, f"{value!r} is not a number, text, True or False")
        return lambda _o: value

    def _list(self, node: ast.List | ast.Tuple) -> Getter:
        items = [self.build(item) for item in node.elts]
        return lambda o: [item(o) for item in items]

    _tuple = _list

    def _name(self, node: ast.Name) -> Getter:
        name = node.id
        if name in self._scores:
            return lambda o: o.scored.scores.get(name, _UNKNOWN)
        if name == "prediction":
            return _prediction
        if name == "confidence":
            return _confidence
        if name == "boxes":
            return lambda o: _UNKNOWN if o.scored.boxes is None else len(o.scored.boxes)
        if name == "source":
            return lambda o: o.source
        known = ", ".join(sorted(self._scores))
        raise self._error(
            node,
            f"unknown name {name!r}; there are prediction, confidence, boxes, source, context.* and {known}",
        )

    def _attribute(self, node: ast.Attribute) -> Getter:
        path: list[str] = [node.attr]
        inner: ast.expr = node.value
        while isinstance(inner, ast.Attribute):
            path.append(inner.attr)
            inner = inner.value
        root = inner.id if isinstance(inner, ast.Name) else "?"
        return self._member(node, root, ".".join(reversed(path)))

    def _subscript(self, node: ast.Subscript) -> Getter:
        if isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Constant):
            return self._member(node, node.value.id, str(node.slice.value))
        raise self._error(node, 'write context["key"]')

    def _member(self, node: ast.AST, root: str, key: str) -> Getter:
        if root == "context":
            return lambda o: o.context.get(key, _UNKNOWN)
        if root in ("score", "percentile"):
            if key not in self._scores:
                raise self._error(node, f"no score {key!r}; there are {', '.join(sorted(self._scores))}")
            if root == "score":
                return lambda o: o.scored.scores.get(key, _UNKNOWN)
            return lambda o: o.scored.percentile(key) if key in o.scored.scores else _UNKNOWN
        if root == "boxes":
            if self._classes and key not in self._classes:
                raise self._error(node, f"no class {key!r}; there are {', '.join(self._classes[:20])}")
            return lambda o: _count(o, key)
        raise self._error(node, f"{root}.{key}: only score., percentile., boxes. and context. have members")

    def _boolop(self, node: ast.BoolOp) -> Getter:
        parts = [self.build(value) for value in node.values]
        if isinstance(node.op, ast.And):
            return lambda o: all(_true(part(o)) for part in parts)
        return lambda o: any(_true(part(o)) for part in parts)

    def _unaryop(self, node: ast.UnaryOp) -> Getter:
        inner = self.build(node.operand)
        if isinstance(node.op, ast.Not):
            return lambda o: not _true(inner(o))
        if isinstance(node.op, ast.USub):
            return lambda o: _numeric(operator.neg, inner(o))
        raise self._error(node, "only `not` and `-` may stand before a value")

    def _binop(self, node: ast.BinOp) -> Getter:
        apply = _ARITHMETIC.get(type(node.op))
        if apply is None:
            raise self._error(node, "only + - * / % are allowed")
        left, right = self.build(node.left), self.build(node.right)
        return lambda o: _numeric(apply, left(o), right(o))

    def _compare(self, node: ast.Compare) -> Getter:
        first = self.build(node.left)
        links = []
        for link, comparator in zip(node.ops, node.comparators, strict=True):
            compare = _COMPARE.get(type(link))
            if compare is None:
                raise self._error(node, "`is` is not allowed; write ==")
            links.append((compare, self.build(comparator)))
        return lambda o: _chain(o, first, links)

    def _call(self, node: ast.Call) -> Getter:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if node.keywords or not node.args or (name != "has" and name not in _FUNCTIONS):
            raise self._error(
                node, f"{name or 'this'}(...) cannot be called; there are has, {', '.join(_FUNCTIONS)}"
            )
        arguments = [self.build(argument) for argument in node.args]
        if name == "has":
            return lambda o: all(argument(o) is not _UNKNOWN for argument in arguments)
        if (name == "abs") != (len(arguments) == 1):
            raise self._error(node, "abs takes one value, min and max several")
        apply = _FUNCTIONS[name]
        return lambda o: _numeric(apply, *(argument(o) for argument in arguments))


class _Present(tuple[str, ...]):
    """Holds the classes of a detector's boxes; equal to a name that is among them."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return other in tuple(self)

    def __ne__(self, other: object) -> bool:
        return other not in tuple(self)


def _among(value: Any, many: Any) -> bool:
    """Returns whether a value, or one of the classes of a detector's boxes, is in a list or text."""
    return any(one in many for one in tuple(value)) if isinstance(value, _Present) else value in many


def _prediction(frame: ScoredFrame) -> Any:
    """Returns the class of the answer; of a detector, the classes of its boxes."""
    boxes = frame.scored.boxes
    if boxes is None:
        return frame.scored.prediction.get("class", _UNKNOWN)
    return _Present(class_name(int(label), frame.scored.classes) for label in set(boxes.labels.tolist()))


def _confidence(frame: ScoredFrame) -> Any:
    boxes = frame.scored.boxes
    if boxes is None:
        return frame.scored.prediction.get("confidence", _UNKNOWN)
    return float(boxes.scores[0]) if len(boxes) else _UNKNOWN


def _count(frame: ScoredFrame, name: str) -> Any:
    """Returns the number of boxes of a class."""
    boxes = frame.scored.boxes
    if boxes is None:
        return _UNKNOWN
    classes = frame.scored.classes
    return sum(1 for label in boxes.labels.tolist() if class_name(label, classes) == name)


def _true(value: Any) -> bool:
    return value is not _UNKNOWN and bool(value)


def _numeric(apply: Callable[..., float], *values: Any) -> Any:
    """Returns unknown if an operand is unknown or no number, or if the result is not finite."""
    if not all(isinstance(value, int | float) for value in values):
        return _UNKNOWN
    try:
        result = apply(*values)
    except (ArithmeticError, ValueError):
        return _UNKNOWN
    return result if math.isfinite(result) else _UNKNOWN


def _chain(frame: ScoredFrame, first: Getter, links: list[tuple[Callable[[Any, Any], bool], Getter]]) -> bool:
    left = first(frame)
    for compare, getter in links:
        right = getter(frame)
        if left is _UNKNOWN or right is _UNKNOWN:
            return False
        try:
            if not compare(left, right):
                return False
        # Text is compared with a number: neither is larger.
        except TypeError:
            return False
        left = right
    return True
