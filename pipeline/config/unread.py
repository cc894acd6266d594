"""The keys of a config that its method does not read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pipeline.config.base import Section, semantic
from pipeline.config.methods import METHOD_CONFIGS

if TYPE_CHECKING:
    from pipeline.config.config import Config

EVERY_METHOD_READS = ("seed", "method", "data", "evaluate", "runtime", "finetune", "rounds.judge_by")


def unread_keys(config: Config) -> list[str]:
    """The keys, such as `select.threshold`, that differ from their defaults but that the method does not read."""
    defaults = type(config).model_validate({"method": config.method, **{name: {} for name in config.model_extra or ()}})
    return [key for key in _changed(semantic(config), semantic(defaults)) if not reads(config, key)]


def is_read(method: str, key: str) -> bool:
    """Whether a method reads a section, or a key below one, if all else has its default."""
    from pipeline.config.config import Config

    return reads(Config(method=method), key)


def settings_of(config: Config) -> dict[str, Section]:
    """Name -> section of the method's learner. What it does not read of them has its default, so that changing it
    repeats nothing."""
    asked = METHOD_CONFIGS[config.method]
    unread = list(asked.unread(config))
    result = {}
    for name, section in asked.settings.items():
        given: Section = getattr(config, name)
        read = {key: value for key, value in dict(given).items() if not _is_below(f"{name}.{key}", unread)}
        result[name] = section.model_validate(read)
    return result


def reads(config: Config, key: str) -> bool:
    """Whether the method of a config reads a section, or a key below one, beside what else the config says."""
    asked = METHOD_CONFIGS[config.method]
    return _is_below(key, (*EVERY_METHOD_READS, *asked.reads)) and not _is_below(key, asked.unread(config))


def _is_below(key: str, sections: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


def _changed(value: Any, default: Any, key: str = "") -> list[str]:
    if isinstance(value, dict) and isinstance(default, dict):
        names = [*value, *(name for name in default if name not in value)]
        parts = (_changed(value.get(name), default.get(name), f"{key}.{name}" if key else name) for name in names)
        return [changed for part in parts for changed in part]
    return [] if value == default else [key]
