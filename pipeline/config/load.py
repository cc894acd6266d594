"""Read a config from a YAML file and from overrides, `--set key.path=value`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pipeline.config.base import Section, parse, set_key
from pipeline.config.config import Config
from pipeline.errors import UserError

S = TypeVar("S", bound=Section)


class _Loader(yaml.SafeLoader):
    """Loads YAML and raises an error for a key that is given twice, because the first value would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if any(key.value == earlier.value for earlier in keys[:place]):
                raise yaml.MarkedYAMLError(problem=f"`{key.value}` is given twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read the config of a run and apply `key.path=value` overrides. It raises UserError as `load` does."""
    return load(Config, path, overrides)


def load(section: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read a YAML file as a section and apply `key.path=value` overrides.

    Raises:
        UserError: the file is missing or is not a YAML mapping, a key is unknown, or a value is wrong. The message
            names the key, the value and the fix.
    """
    try:
        raw = yaml.load(path.read_text(), _Loader) or {}
    except FileNotFoundError as error:
        raise UserError(f"config {path} does not exist; `selftrain init DATA > {path.name}` writes one") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"config {path} cannot be read as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"config {path} must be a mapping of sections, not {type(raw).__name__}")
    for override in overrides:
        _apply(raw, override)
    return parse(section, raw, str(path))


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override!r} must look like key.path=value, e.g. --set student.steps=2000")
    try:
        value = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"--set {key}: {text!r} is not a YAML value: {error}") from error
    set_key(raw, key, value, "--set")
