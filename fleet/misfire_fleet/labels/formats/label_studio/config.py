"""Writes and reads labelling configurations of Label Studio: the XML that says what people can mark.

The names of the controls and of the field with the picture are fixed here. Label Studio checks none of them:
a prediction with another `from_name` is stored and never shown. So a project's configuration is compared with
what misfire would write, and every difference is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from misfire_fleet.labels.formats.base import Kind
from misfire_fleet.labels.formats.parts.plain_xml import parse_xml
from misfire_runtime.errors import ConfigError

PICTURE = "image"
"""Name of the object tag, and of the field of a task's data that it shows."""
FLAGS = "flags"
"""Control for what is special about a box."""
CROWD, IGNORE = "crowd", "ignore"
HIDDEN = "hidden"
VISIBILITY = "visibility"
"""Control for whether a point is hidden behind something."""


@dataclass(frozen=True)
class Control:
    """Describes the tag that carries labels of a kind.

    tag: of the control.  choice: of the values inside it.  name: of the control.  result: `type` of a result.
    """

    tag: str
    choice: str
    name: str
    result: str


CONTROLS: Mapping[Kind, Control] = {
    "class": Control("Choices", "Choice", "class", "choices"),
    "classes": Control("Choices", "Choice", "classes", "choices"),
    "values": Control("Number", "", "value", "number"),
    "boxes": Control("RectangleLabels", "Label", "box", "rectanglelabels"),
    "points": Control("KeyPointLabels", "Label", "point", "keypointlabels"),
    "mask": Control("BrushLabels", "Label", "mask", "brushlabels"),
}


@dataclass(frozen=True)
class LabellingConfig:
    """Says what a project lets people mark.

    Attributes:
        kind: of the labels.
        names: classes; names of the points of a skeleton; names of the values of a regression.
    """

    kind: Kind
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            what = {"points": "points", "values": "values"}.get(self.kind, "classes")
            raise ConfigError(f"a labelling configuration for {self.kind} needs {what}; name them")
        if len(set(self.names)) < len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise ConfigError(f"named twice: {', '.join(twice)}")

    def controls(self) -> tuple[str, ...]:
        """Returns the names of the controls that carry the labels: one, or one per value of a regression."""
        return tuple(name for name, _, _ in _expected(self) if name not in (FLAGS, VISIBILITY))

    def xml(self) -> str:
        """Returns the configuration as Label Studio takes it."""
        view = Element("View")
        SubElement(view, "Image", name=PICTURE, value=f"${PICTURE}", zoom="true", zoomControl="true")
        for name, tag, values in _expected(self):
            attributes = {"name": name, "toName": PICTURE} | _ATTRIBUTES.get((self.kind, name), {})
            if self.kind == "values":
                SubElement(view, "Header", value=name)
            control = SubElement(view, tag, attributes)
            for value in values:
                SubElement(control, "Label" if tag.endswith("Labels") else "Choice", value=value)
        indent(view)
        return tostring(view, encoding="unicode")


_PER_REGION = {"perRegion": "true", "choice": "multiple", "showInline": "true"}
_ATTRIBUTES: Mapping[tuple[Kind, str], dict[str, str]] = {
    ("class", "class"): {"choice": "single", "showInline": "true"},
    ("classes", "classes"): {"choice": "multiple", "showInline": "true"},
    ("boxes", "box"): {"canRotate": "true"},
    ("boxes", FLAGS): _PER_REGION,
    ("points", VISIBILITY): _PER_REGION,
}


def _expected(config: LabellingConfig) -> list[tuple[str, str, tuple[str, ...]]]:
    """Returns name, tag and values of each control."""
    control = CONTROLS[config.kind]
    if config.kind == "values":
        return [(name, control.tag, ()) for name in config.names]
    found = [(control.name, control.tag, config.names)]
    if config.kind == "boxes":
        found.append((FLAGS, "Choices", (CROWD, IGNORE)))
    if config.kind == "points":
        found.append((VISIBILITY, "Choices", (HIDDEN,)))
    return found


@dataclass(frozen=True)
class Difference:
    """Compares a project's configuration with the one that misfire needs.

    Attributes:
        problems: sentences about what does not fit.
        missing: names that the project lacks; they can be added without touching its labels.
        extra: names that only the project has.
    """

    problems: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


def difference(text: str, wanted: LabellingConfig) -> Difference:
    """Compares a project's XML with what is wanted.

    Raises:
        ConfigError: the XML is malformed, or has a document type.
    """
    root = _parsed(text)
    controls = {e.get("name", ""): e for e in root.iter() if e.get("toName") is not None}
    pictures = {e.get("name", ""): e.get("value", "") for e in root.iter("Image")}
    problems = []
    if pictures.get(PICTURE) != f"${PICTURE}":
        found = ", ".join(f"<Image name={n!r} value={v!r}>" for n, v in pictures.items()) or "no <Image>"
        problems.append(f"expected <Image name='{PICTURE}' value='${PICTURE}'>, found {found}")
    missing: list[str] = []
    extra: list[str] = []
    expected = _expected(wanted)
    for name, tag, values in expected:
        control = controls.get(name)
        if control is None or control.tag != tag or control.get("toName") != PICTURE:
            found = "nothing" if control is None else _shown(control)
            problems.append(f"expected <{tag} name={name!r} toName={PICTURE!r}>, found {found}")
            continue
        there = [e.get("value", "") for e in control if e.tag in ("Label", "Choice")]
        missing += [value for value in values if value not in there]
        extra += [value for value in there if value not in values]
    known = {name for name, _, _ in expected}
    # Another control is not ours to fill, but nobody would read what people mark with it.
    problems += [
        f"has {_shown(e)}, which misfire does not read" for n, e in controls.items() if n not in known
    ]
    return Difference(tuple(problems), tuple(missing), tuple(extra))


def read_config(text: str) -> LabellingConfig | None:
    """Returns what a project's XML lets people mark, if misfire could have written it; else None.

    Raises:
        ConfigError: the XML is malformed, or has a document type.
    """
    root = _parsed(text)
    for kind, control in CONTROLS.items():
        tags = [e for e in root.iter(control.tag) if e.get("toName") == PICTURE and not e.get("perRegion")]
        names: Sequence[str] = [e.get("name", "") for e in tags]
        if kind != "values":
            if len(tags) != 1 or names[0] != control.name:
                continue
            names = [e.get("value", "") for e in tags[0] if e.tag == control.choice]
        if names and len(set(names)) == len(names) and "" not in names:
            config = LabellingConfig(kind, tuple(names))
            if not difference(text, config).problems:
                return config
    return None


def _shown(element: Element) -> str:
    return f"<{element.tag} name={element.get('name')!r} toName={element.get('toName')!r}>"


def _parsed(text: str) -> Element:
    try:
        return parse_xml(text.encode())
    except ValueError as error:
        raise ConfigError(f"the project's labelling configuration is no plain XML ({error})") from error
