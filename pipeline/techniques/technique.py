"""What a technique is, and the config fields that its keys name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from pipeline.config import Evaluate, Label, Rounds, Section, Select, Training
from pipeline.config.base import off_value
from pipeline.config.methods import sections
from pipeline.errors import UserError, did_you_mean

Seam = Literal[
    "view", "batch", "network", "init", "loss", "optimizer", "update", "label", "select", "target", "rounds", "evaluate"
]


@dataclass(frozen=True)
class Technique:
    """One technique."""

    name: str
    seam: Seam
    """Where on the way of the data it acts."""
    keys: tuple[str, ...]
    """The config keys that it owns, the one that switches it on first. `training` stands for `teacher` and
    `student`."""
    on: Any
    """A usual value of the first key, for ablations of a config that has it off; or, if it depends on the training, the
    function of it. None if there is none, such as for weights that only a user has."""
    code: str
    """`module:name` of what does it."""
    source: str
    """Paper and section."""
    card: Path | None = None
    """Its card, where that is not docs/techniques/NAME.md: a plugin's lies beside the plugin."""

    @property
    def switch(self) -> str:
        """The key that turns it on and off."""
        return self.keys[0]

    def usual(self, config: Section, key: str) -> Any:
        """The usual value of a key of `switch_in`, in this config."""
        return self.on(getattr(config, key.partition(".")[0])) if callable(self.on) else self.on

    @property
    def off(self) -> Any:
        """The value of `switch` that turns it off."""
        return off_value(field_of(self.switch))

    def switch_in(self, config: Section) -> list[str]:
        """The switch as keys of this config: of `training` there are two, the teacher's and the student's."""
        section, _, rest = self.switch.partition(".")
        return [f"{name}.{rest}" for name in (("teacher", "student") if section == "training" else (section,))]


def field_of(key: str) -> FieldInfo:
    """The config field of a key such as `training.strong.cutout`.

    Raises:
        UserError: there is none.
    """
    known: Mapping[str, type[Section] | None] = {**_SECTIONS, **sections()}
    parent, current, part = None, None, ""
    for part in key.split("."):
        if part not in known:
            raise UserError(f"there is no config key `{key}`, {did_you_mean(part, known)}")
        parent, current = current, known[part]
        known = current.known_keys() if current is not None else {}
    if parent is None:
        raise UserError(f"`{key}` is a section of the config; name a key of it")
    return parent.model_fields[part]


_SECTIONS: Mapping[str, type[Section]] = {
    "training": Training,
    "label": Label,
    "select": Select,
    "evaluate": Evaluate,
    "rounds": Rounds,
}
