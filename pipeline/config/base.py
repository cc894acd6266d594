"""The base of every section of the config: a frozen pydantic model, its errors in plain words, its semantic part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from reprlib import Repr
from typing import Annotated, Any, Literal, Self, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from pipeline.errors import UserError, did_you_mean

Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Interpolation = Literal["bicubic", "bilinear"]
CropMode = Literal["center", "squash"]
Scalar = bool | int | float | str
JudgeBy = Literal["top1", "balanced_accuracy", "macro_f1"]
"""The figure on val by which models are chosen."""


def operational(default: Any, **kwargs: Any) -> Any:
    """Declare a field that cannot change results (paths, workers, intervals); fingerprints leave it out."""
    return Field(default, json_schema_extra={"operational": True}, **kwargs)


def technique(default: Any, *, off: Any = None, **kwargs: Any) -> Any:
    """Declare a field that switches a technique.

    Fingerprints leave it out while it has the value `off`. A new technique, which is off by default, therefore
    invalidates no run that was ever made.
    """
    return Field(default, json_schema_extra={"off": off}, **kwargs)


def is_operational(field: FieldInfo) -> bool:
    """Whether a field was declared `operational()`."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("operational"))


def is_technique(field: FieldInfo) -> bool:
    """Whether a field was declared `technique()`."""
    return isinstance(field.json_schema_extra, dict) and "off" in field.json_schema_extra


def off_value(field: FieldInfo) -> Any:
    """The value that turns a `technique()` field off."""
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra["off"]


class Section(BaseModel):
    """A frozen part of the config, in which unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @classmethod
    def known_keys(cls) -> dict[str, type[Section] | None]:
        """The keys that a file may give, and the class of those that are sections."""
        result: dict[str, type[Section] | None] = {}
        for name, field in cls.model_fields.items():
            is_list = get_origin(field.annotation) is tuple
            options = [] if is_list else [field.annotation, *getattr(field.annotation, "__args__", ())]
            result[name] = next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)
        return result

    def beside(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values of this section, the default of a field, that hold beside those that are given."""
        return self.model_dump(exclude_unset=True)

    def by_results(self) -> Self:
        """The section that stands for all those that give the same results."""
        return self

    @model_validator(mode="before")
    @classmethod
    def _beside_defaults(cls, raw: Any) -> Any:
        """Fill in what a given section leaves out from the default of its field, which may differ from its class's.

        pydantic would take true for 1, so booleans are refused where a number is meant.
        """
        if not isinstance(raw, Mapping):
            return raw
        for name, field in cls.model_fields.items():
            if isinstance(raw.get(name), bool) and _is_number(field.annotation):
                raise ValueError(f"{name} is {str(raw[name]).lower()}, which is no number")
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        given = {
            name: {**default.beside(raw[name]), **raw[name]}
            for name, default in defaults.items()
            if isinstance(default, Section) and isinstance(raw.get(name), Mapping)
        }
        return {**raw, **given}


S = TypeVar("S", bound=Section)


def changed(section: S, **values: Any) -> S:
    """The section with other values, which are checked as if they were read from a file.

    Raises:
        pydantic.ValidationError: a file with these values would be refused.
    """
    return type(section).model_validate(_with_values(section, values))


def completed(section: S, where: str, **values: Any) -> S:
    """`changed`, with values that the user did not write but that follow from elsewhere, such as from a model.

    Raises:
        UserError: a file with these values would be refused. The message begins with `where`.
    """
    return parse(type(section), _with_values(section, values), where)


def _with_values(section: Section, values: Mapping[str, Any]) -> dict[str, Any]:
    fields = type(section).model_fields
    names = {name: (fields[name].alias if name in fields else None) or name for name, _ in section}
    return {names.get(name, name): value for name, value in [*section, *values.items()]}


def _is_number(annotation: Any) -> bool:
    """Whether a field takes numbers, alone or beside other values, but no booleans."""
    types = [annotation]
    for kind in types:
        types += getattr(kind, "__args__", ())
    return bool({int, float} & {kind for kind in types if isinstance(kind, type)}) and bool not in types


def off_is_a_word(value: Any) -> Any:
    """Turn False back into the word `off`, which YAML reads as False without quotes. It is for validators."""
    return "off" if value is False else value


def parse(section: type[S], raw: Mapping[str, Any], where: str) -> S:
    """Validate a mapping as a config section. Raises one UserError that lists every wrong key."""
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(section, dict(details)) for details in error.errors()]
        raise UserError(f"{where}: " + "; ".join(lines)) from error


def own_first(section: type[Section]) -> list[str]:
    """The names of a section's fields, its own before those that it inherits."""
    own = [name for name in vars(section).get("__annotations__", ()) if name in section.model_fields]
    return [*own, *(name for name in section.model_fields if name not in own)]


def dump_yaml(section: Section) -> str:
    """The section as YAML, with every default written out."""
    values = section.model_dump(mode="json")
    order = own_first(type(section))
    return yaml.safe_dump(
        {name: values[name] for name in [*order, *(n for n in values if n not in order)]}, sort_keys=False
    )


def semantic(section: Section) -> dict[str, Any]:
    """The section's semantic fields as JSON, which its results depend on. A technique that is off is left out."""
    section = section.by_results()
    values = section.model_dump(mode="json")
    result: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if is_operational(field) or (is_technique(field) and value == off_value(field)):
            continue
        result[name] = semantic(value) if isinstance(value, Section) else values[name]
    for name, value in (section.model_extra or {}).items():
        result[name] = semantic(value)
    return result


def set_key(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set `a.b.c` in nested mappings. Raises UserError, whose message begins with `where`, if `a.b` is a value."""
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"{where} {key}: `{parent}` is a value, not a section")
        node = child
    node[last] = value


_SHORT = Repr()
"""Aliases of YAML can make of ten lines a value of a gigabyte, which no message may show."""
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 200, 200
_TAGS = {"int", "float", "str", "bool", "constrained-int", "constrained-float", "constrained-str"}
"""What pydantic puts behind the key of a field that takes values of several types."""


def _explain(section: type[Section], details: dict[str, Any]) -> str:
    location = tuple(part for part in details["loc"] if part not in _TAGS and "[" not in str(part))
    key = ".".join(str(part) for part in location)
    if details["type"] == "extra_forbidden":
        siblings = _fields_at(section, location[:-1])
        return f"unknown key `{key}`, {did_you_mean(str(location[-1]), siblings)}"
    value = details.get("input")
    shown = "" if isinstance(value, dict | BaseModel) else f" (got {_SHORT.repr(value)})"
    message = f"{details['msg'].removeprefix('Value error, ')}{shown}"
    if details["type"] in ("model_type", "tuple_type"):
        message = f"a {'section, {key: value}' if details['type'] == 'model_type' else 'list, [a, b]'} is needed{shown}"
    return f"`{key}`: {message}" if key else message


def _fields_at(section: type[Section], location: Sequence[int | str]) -> list[str]:
    current = section
    for part in location:
        below = current.known_keys()[str(part)]
        assert below is not None
        current = below
    return list(current.known_keys())
