"""The page of all config keys, generated from the models: `python -m pipeline.config.reference`."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.config.base import Section, is_operational, is_technique, off_value, own_first
from pipeline.config.config import Config
from pipeline.remote import Remote

_HEAD = """\
# Config keys

This page is generated from the models in `pipeline/config/` (`python -m pipeline.config.reference > docs/config.md`).
Precedence: defaults < YAML file < `--set key.path=value`. An unknown key is an error that names the nearest valid one.
`RUN/config.yaml` has every key of a run with what was resolved for its machine.

A key marked *operational* cannot change results, so changing it repeats nothing. While a key that names an
*off* value is off, it is left out of the fingerprints of finished stages. Most such keys switch a
[technique](techniques/index.md), and the others a part of one [method](methods/index.md).
Sections of methods are read by those methods only; a changed key that the method does not read is a warning.
"""
_TITLES = {"": "Top level", "teacher": "teacher and student"}
_NOTES = {"teacher": " `student` has the same keys; its `unlabeled_ratio` is 4.0 by default."}


def reference() -> str:
    """The page as Markdown, one table per section."""
    lines = [_HEAD]
    for title, section, default in _sections("", Config, Config()):
        lines += [f"## {_TITLES.get(title, title)}", "", _one_line(section.__doc__) + _NOTES.get(title, ""), ""]
        lines += ["| key | type | default | what it does |", "|---|---|---|---|"]
        for name in own_first(section):
            field = section.model_fields[name]
            value = getattr(default, name) if default is not None else field.default
            lines.append(f"| `{name}` | {_escape(_type(field))} | {_default(value)} | {_help(field)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _sections(
    title: str, section: type[Section], default: Section | None
) -> Iterator[tuple[str, type[Section], Section | None]]:
    """Each section with its path and its defaults. `student` is left out, because its keys are those of `teacher`."""
    yield title, section, default
    known = section.known_keys()
    for name in own_first(section):
        below = known[name]
        if below is None or name == "student":  # its keys are the teacher's
            continue
        value = getattr(default, name) if default is not None and name in section.model_fields else None
        yield from _sections(f"{title}.{name}".lstrip("."), below, value)


def _help(field: FieldInfo) -> str:
    notes = ["*Operational.*"] if is_operational(field) else []
    if is_technique(field):
        notes.append(f"*Off:* {_value(off_value(field))}.")
    return _escape(" ".join([_one_line(field.description), *notes]))


def _type(field: FieldInfo) -> str:
    text = _name(field.annotation)
    bounds = {annotated_types.Gt: ">", annotated_types.Ge: ">=", annotated_types.Lt: "<", annotated_types.Le: "<="}
    for limit in field.metadata:
        for kind, sign in bounds.items():
            if isinstance(limit, kind):
                text += f" {sign} {getattr(limit, kind.__name__.lower())}"
    return text


def _name(annotation: Any) -> str:
    """A type in plain words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType,) or str(origin) == "typing.Union":
        return " or ".join("nothing" if a is type(None) else _name(a) for a in arguments)
    if origin is tuple:
        return f"list of {' or '.join(map(_plural, _name(arguments[0]).split(' or ')))}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    if hasattr(annotation, "__metadata__"):
        return _name(arguments[0])
    return {Remote: "address", int: "integer", float: "number", str: "text", bool: "true or false"}.get(
        annotation, getattr(annotation, "__name__", str(annotation)).lower()
    )


def _plural(name: str) -> str:
    return f"{name}{'es' if name.endswith('s') else 's'}"


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    return "below" if isinstance(value, Section) else _value(value)


def _value(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`" if value != {} else "`{}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
