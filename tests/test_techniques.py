"""The table of techniques holds in both directions: rows have keys, code and cards; keys have rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.ablation.rows import effects, read_rows
from pipeline.config import Config, Evaluate, Label, Rounds, Section, Select, Training, parse
from pipeline.config.base import is_operational, is_technique, set_key
from pipeline.techniques import PLUMBING, TECHNIQUES, Technique, field_of

ROOT = Path(pipeline.__file__).parent.parent
PUBLISHED = {"digits-alone": "Alone on digits", "cifar10-alone": "Alone on a CIFAR-10 teacher of 300 steps"}
"""The published ablations that cards quote, with their words for them."""
CARDS = ROOT / "docs" / "techniques"
PARTS = ("Effect", "Cost", "Avoid when", "Source", "Test", "Measured here")
every_row = pytest.mark.parametrize("row", TECHNIQUES.values(), ids=list(TECHNIQUES))


@every_row
def test_a_row_owns_keys_that_exist(row: Technique) -> None:
    for key in row.keys:
        field_of(key)
    assert is_technique(field_of(row.switch)), f"{row.switch} has no value that turns it off: declare it technique()"


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> value, of everything in nested mappings that is no mapping."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@every_row
def test_the_off_value_parses_and_switches_nothing_else(row: Technique) -> None:
    raw = Config().model_dump(mode="json")
    off = {}
    for key in row.switch_in(Config()):
        set_key(raw, key, row.off, "test")
        off[key] = row.off
    found, before = (dict(leaves(c.model_dump(mode="json"))) for c in (parse(Config, raw, "test"), Config()))
    assert {key: found.get(key) for key in off} == {
        key: list(v) if isinstance(v, tuple) else v for key, v in off.items()
    }
    switched = {key for key in {*found, *before} if found.get(key) != before.get(key)}
    assert all(any(f"{key}.".startswith(f"{switch}.") for switch in off) for key in switched)


@every_row
def test_the_code_of_a_row_can_be_imported(row: Technique) -> None:
    module, _, name = row.code.partition(":")
    found: object = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)


@every_row
def test_a_row_has_a_card_with_every_part(row: Technique) -> None:
    text = (CARDS / f"{row.name}.md").read_text()
    for part in PARTS:
        assert f"**{part}**" in text, f"{row.name}.md says nothing of: {part}"
    for key in row.keys:
        assert key.removeprefix("training.") in text, f"{row.name}.md does not name its key {key}"


def test_every_card_has_a_row() -> None:
    assert {path.stem for path in CARDS.glob("*.md")} - {"index"} == set(TECHNIQUES)


def semantic_keys(section: type[Section], prefix: str) -> list[str]:
    """The keys below a section that enter fingerprints; a section that is a technique's switch counts as one key."""
    keys = []
    for name, inner in section.known_keys().items():
        field = section.model_fields[name]
        if field.annotation is inner is not None and not is_technique(field):
            keys += semantic_keys(inner, f"{prefix}.{name}")
        elif not is_operational(field):
            keys.append(f"{prefix}.{name}")
    return keys


def test_every_semantic_key_belongs_to_a_technique_or_to_plumbing() -> None:
    """So a key cannot be added without a card."""
    sections = {"training": Training, "label": Label, "select": Select}
    found = {key for name, section in sections.items() for key in semantic_keys(section, name)}
    owned = [key for row in TECHNIQUES.values() for key in row.keys]
    assert len(owned) == len(set(owned)), "two techniques own one key"
    assert not set(owned) & PLUMBING
    assert found - set(owned) == PLUMBING, "a key without a technique"
    others = {"evaluate": Evaluate, "rounds": Rounds}
    assert set(owned) - found <= {key for name, section in others.items() for key in semantic_keys(section, name)}


@every_row
def test_a_card_names_a_test_that_exists(row: Technique) -> None:
    text = (CARDS / f"{row.name}.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert named, f"{row.name}.md names no test as `tests/FILE.py::test_name`"
    for file, test in named:
        assert re.search(rf"^def {test}\b", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {test}"


@every_row
def test_a_card_quotes_the_published_ablation(row: Technique) -> None:
    text = " ".join((CARDS / f"{row.name}.md").read_text().split())
    for name, words in PUBLISHED.items():
        of = {effect.technique: effect for effect in effects(read_rows(ROOT / f"docs/ablations/{name}.jsonl"))}
        if row.name not in of or of[row.name].interval is None:
            continue
        effect = of[row.name]
        low, high = effect.interval or (0.0, 0.0)
        figures = f"{effect.points:+.2f} points of val accuracy ({low:+.2f} to {high:+.2f}, {effect.num_seeds} seeds)"
        assert f"{words} {figures}, {effect.verdict}" in text
