"""The cells of an ablation: which techniques are on in which run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pipeline.config import Config, Section, changed, parse, semantic
from pipeline.config.base import set_key
from pipeline.config.unread import by_fix, keys_unread_beside, reads
from pipeline.errors import UserError, did_you_mean
from pipeline.methods import METHODS
from pipeline.runs.dry_run import check_networks
from pipeline.runs.inputs import with_inputs
from pipeline.shards.dataset import open_split
from pipeline.stages.fingerprint import digest
from pipeline.techniques import TECHNIQUES, Technique

log = logging.getLogger("selftrain.ablation")

Mode = Literal["alone", "drop-one", "stack"]
_OF_NETWORKS = ("network", "init", "label", "rounds", "evaluate")
"""The seams at which it depends on the network whether it can have a technique."""
MODES: tuple[Mode, ...] = get_args(Mode)
BASE = "base"
WITHOUT = "no-"
"""Prefix of a technique whose row takes it away: `no-decay_vectors` is off in the base and spares them in its row."""


@dataclass(frozen=True)
class Cell:
    """One row of the table: a config that all seeds share."""

    name: str
    """`base`, or the technique that the row is about."""
    on: tuple[str, ...]
    """The listed techniques that are on."""
    against: str
    """The row that it is compared with; empty for the base."""
    config: Config

    def for_seed(self, seed: int) -> Config:
        """The cell's config of one seed."""
        return changed(self.config, seed=seed)


def folder_of(config: Config) -> str:
    """The name of the run folder of a config: equal ones share it, whatever the mode that asks for them."""
    return digest(semantic(config))[:12]


def plan_cells(config: Config, techniques: Sequence[str], mode: Mode) -> list[Cell]:
    """The cells of an ablation, the base first.

    `alone` turns all of the techniques off and then each one on. `drop-one` turns all on and then each one off. `stack`
    turns all off and then one after another on, in the order given.

    Args:
        config: A technique that is on in it keeps its settings; another gets a usual value.
        techniques: Names in `TECHNIQUES`. One with `no-` before it is turned the other way: its row has it off.
        mode: One of `MODES`.

    A row that nothing would read beside the others, such as the kind of momentum where there is none, is left out and
    logged.

    Raises:
        UserError: a technique is unknown, is not read by the config's method, or cannot be switched in this config; or
            nothing would read any row.
    """
    rows = {name: _row(config, name) for name in techniques}
    if len({name.removeprefix(WITHOUT) for name in techniques}) < len(techniques):
        raise UserError(f"--techniques {','.join(techniques)} names one twice; name each once")
    names = tuple(techniques)
    of: dict[str, tuple[str, ...]]
    if mode == "alone":
        of = {BASE: (), **{name: (name,) for name in names}}
    elif mode == "drop-one":
        of = {BASE: names, **{name: tuple(n for n in names if n != name) for name in names}}
    else:
        of = {BASE: (), **{name: names[: number + 1] for number, name in enumerate(names)}}
    cells: list[Cell] = []
    for name, on in of.items():
        against = (cells[-1] if mode == "stack" else cells[0]) if cells else None
        cell = Cell(name, on, against.name if against else "", _switched(config, rows, on))
        if against is not None and (why := _why_idle(rows[name], against.config, cell.config)):
            log.warning("the row %s is left out: %s", name, why)
            if len(names) == 1:
                raise UserError(f"technique {name} would change nothing: {why}")
        else:
            cells.append(cell)
    return cells


def all_techniques(config: Config) -> list[str]:
    """The techniques that can be switched on and off in this config, each by itself. The others are logged.

    Whether the networks can have them is tried without values, so that it shows before the first run.
    """
    config, names = with_inputs(config), []
    num_classes = _num_classes(config)
    for name in TECHNIQUES:
        try:
            row = _row(config, name)
            _, on = (_switched(config, {name: row}, switched_on) for switched_on in ((), (name,)))
            if row.seam in _OF_NETWORKS:
                check_networks(on, METHODS[on.method], num_classes)
        except UserError as error:
            log.warning("%s is left out: %s", name, error)
        else:
            names.append(name)
    return names


def check_cells(cells: Sequence[Cell]) -> None:
    """Try the networks of all cells, without values. Raises UserError if one cannot have the cell's techniques."""
    num_classes = _num_classes(cells[0].config)
    for cell in cells:
        try:
            check_networks(cell.config, METHODS[cell.config.method], num_classes)
        except UserError as error:
            raise UserError(f"the row {cell.name}: {error}") from error


def _num_classes(config: Config) -> int:
    return len(open_split(config.data, "labeled").classes)


def _why_idle(row: Technique, *configs: Config) -> str:
    """Why two configs, one with a technique and one without, train alike; empty if they do not."""
    unread: dict[str, str] = {}
    for config in configs:
        unread |= keys_unread_beside(config)
    before, after = configs
    keys = [key for key in row.switch_in(before) if _at(before, key) != _at(after, key)]
    return "" if any(key not in unread for key in keys) else "; ".join(f"nothing reads {k} {unread[k]}" for k in keys)


def _row(config: Config, given: str) -> Technique:
    name = given.removeprefix(WITHOUT)
    if name not in TECHNIQUES:
        raise UserError(f"--techniques: there is no technique {name!r}, {did_you_mean(name, TECHNIQUES)}")
    row = TECHNIQUES[name]
    if not _keys(config, row):
        fixes = [fix for fix in by_fix(config, row.switch_in(config)) if fix]
        where = "in this config" if fixes else f"by `method: {config.method}`"
        raise UserError(f"technique {name} is not read {where}; {', or '.join([*fixes, 'leave it out'])}")
    if row.on is None and all(_at(config, key) == row.off for key in _keys(config, row)):
        raise UserError(
            f"technique {name} is off in this config, and has no usual value; set {' or '.join(_keys(config, row))} "
            "to ablate it"
        )
    return row


def _keys(config: Config, row: Technique) -> list[str]:
    """The keys that switch it, of those that the config's method reads."""
    return [key for key in row.switch_in(config) if reads(config, key)]


def _switched(config: Config, rows: Mapping[str, Technique], on: Sequence[str]) -> Config:
    raw = config.model_dump(mode="json")
    switched_on = {name for name, row in rows.items() if (name in on) != name.startswith(WITHOUT)}
    for name, row in rows.items():
        values: Mapping[str, Any] = {key: _at(config, key) for key in _keys(config, row)}
        for key, value in values.items():
            is_on = value != row.off
            # A technique that only one of the trainings has stays that one's.
            elsewhere = not is_on and any(other != row.off for other in values.values())
            new = row.off if name not in switched_on or elsewhere else value if is_on else row.usual(config, key)
            set_key(raw, key, new.model_dump(mode="json") if isinstance(new, Section) else new, "ablation")
    return parse(Config, raw, f"with {', '.join(on) or 'none'} of {', '.join(rows)} on")


def _at(config: Section, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
