"""The keys of a config that its method does not read, and those that nothing reads beside another key's value.

Where such a key can only be a mistake, the section itself refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config.base import Section, semantic
from pipeline.config.distillation import Distillation
from pipeline.config.learners import Uda
from pipeline.config.methods import METHOD_CONFIGS
from pipeline.config.network import Optimizer
from pipeline.config.selection import Select
from pipeline.config.training import Training
from pipeline.config.views import StrongView, WeakView

if TYPE_CHECKING:
    from pipeline.config.config import Config

_A_PROBE_READS = (
    *("probe", "model", "model_args", "activation", "fractional_pooling", "start", "targets", "target_temperature"),
    *("image_size", "evaluation_size", "mean", "std", "preprocessing", "crop_pct", "crop_mode", "interpolation"),
    "weak",
)
"""The keys that count in a training with a probe. Of `weak` that is `flip`, which a fine-tune takes over."""


@dataclass(frozen=True)
class _Row:
    """Keys of a section that nothing reads under a condition."""

    section: type[Section]
    keys: tuple[str, ...]
    condition: Callable[[Any], bool]
    """Whether nothing reads the keys of this section."""
    words: str
    """The condition in words."""


_UNREAD_BESIDE = (
    _Row(WeakView, ("padding",), lambda view: view.crop != "pad", "without crop: pad"),
    _Row(WeakView, ("min_area",), lambda view: view.crop != "resized", "without crop: resized"),
    _Row(WeakView, ("min_scale", "max_scale"), lambda view: view.crop != "scale", "without crop: scale"),
    _Row(StrongView, ("magnitude",), lambda view: not view.num_ops, "with num_ops: 0"),
    _Row(Optimizer, ("nesterov",), lambda optimizer: not optimizer.momentum, "with momentum: 0"),
    _Row(Optimizer, ("decay_vectors",), lambda optimizer: not optimizer.weight_decay, "with weight_decay: 0"),
    _Row(Distillation, ("temperature",), lambda distillation: not distillation.weight, "with weight: 0"),
    _Row(Uda, ("ramp_steps",), lambda uda: not uda.weight, "with weight: 0"),
    _Row(Select, ("max_copies",), lambda select: select.balance == "off", "with balance: off"),
    _Row(
        Training,
        (
            *(key for key in Training.model_fields if key not in _A_PROBE_READS),
            *(f"weak.{key}" for key in WeakView.model_fields if key != "flip"),
        ),
        lambda training: training.probe is not None,
        "of a probe",
    ),
)
EVERY_METHOD_READS = (
    "seed",
    "method",
    "data",
    "evaluate",
    "runtime",
    "finetune",
    "rounds.judge_by",
    "rounds.promotion_level",
)


def unread_keys(config: Config) -> list[str]:
    """The keys, such as `select.threshold`, that differ from their defaults but that the method does not read."""
    defaults = type(config).model_validate({"method": config.method, **{name: {} for name in config.model_extra or ()}})
    return [key for key in _changed(semantic(config), semantic(defaults)) if not reads(config, key)]


def unread_beside(config: Config) -> list[str]:
    """One sentence for each set of keys that differ from their defaults but that nothing reads beside other keys."""
    groups: dict[str, list[str]] = {}
    for key, words in keys_unread_beside(config).items():
        groups.setdefault(words, []).append(key)
    return [f"nothing reads {', '.join(keys)} {words}" for words, keys in groups.items()]


def keys_unread_beside(config: Config) -> dict[str, str]:
    """The keys that differ from their defaults but that nothing reads beside other keys -> those others, in words.

    A key that the method does not read at all is left out, and so is one that another round of the run reads.
    """
    unread: dict[str, str] = {}
    read: set[str] = set()
    for number in range(1, max(len(config.rounds.overrides), 1) + 1):
        of_round = config.for_round(number)
        given: dict[str, str] = {}
        for where, section in _sections(of_round):
            for row in (row for row in _UNREAD_BESIDE if isinstance(section, row.section)):
                changes = _changed(semantic(section), semantic(row.section()), where)
                keys = [key for key in changes if _is_below(key, (f"{where}.{name}" for name in row.keys))]
                words = row.words if row.condition(section) else ""
                given |= {key: given.get(key, words) or words for key in keys if reads(of_round, key)}
        unread |= {key: words for key, words in given.items() if words}
        read |= {key for key, words in given.items() if not words}
    return {key: words for key, words in unread.items() if key not in read}


def _sections(section: Section, where: str = "") -> Iterator[tuple[str, Section]]:
    """All sections of a section, with the keys at which they are."""
    for name, value in section:
        items = enumerate(value) if isinstance(value, tuple) else [("", value)]
        for number, item in items:
            if isinstance(item, Section):
                key = ".".join(filter(None, (where, name, str(number))))
                yield key, item
                yield from _sections(item, key)


def is_read(method: str, key: str) -> bool:
    """Whether a method reads a section, or a key below one, if all else has its default."""
    from pipeline.config.config import Config

    return reads(Config(method=method), key)


def settings_of(config: Config) -> dict[str, Section]:
    """Name -> section of the method's learner. What it does not read of them has its default, so that changing it
    repeats nothing."""
    asked = METHOD_CONFIGS[config.method]
    unread = asked.unread(config)
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


def by_fix(config: Config, keys: Iterable[str]) -> dict[str, list[str]]:
    """What to set in a config so that its method reads keys -> those of these keys; "" where it never reads them."""
    unread = METHOD_CONFIGS[config.method].unread(config)
    result: dict[str, list[str]] = {}
    for key in keys:
        fix = next((fix for above, fix in unread.items() if _is_below(key, [above])), "")
        result.setdefault(fix, []).append(key)
    return result


def _is_below(key: str, sections: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


def _changed(value: Any, default: Any, key: str = "") -> list[str]:
    if isinstance(value, dict) and isinstance(default, dict):
        names = [*value, *(name for name in default if name not in value)]
        parts = (_changed(value.get(name), default.get(name), f"{key}.{name}" if key else name) for name in names)
        return [changed for part in parts for changed in part]
    return [] if value == default else [key]
